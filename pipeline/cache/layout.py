"""Where things lie in a feature folder, and the exact bytes of its Zarr metadata.

The metadata is written by us, not by the Zarr library, so that its bytes depend on the definition and the number of
rows alone and can be recomputed to check a file. Each document carries a checksum of itself in its attributes.
"""

import json
from typing import Any

from unic_pipe.pipeline.cache.spec import ArraySpec
from unic_pipe.pipeline.storage import fast_hash
from unic_pipe.schemas.base import canonical_json
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.features import FeatureManifest

MANIFEST = "manifest.json"
ROOT_METADATA = "zarr.json"
LEDGER = "ledger.parquet"
LOSSES = "losses.json"
DAMAGED = "damaged"
CALIBRATION = "calibration"


def view_folder(view: int) -> str:
    """Folder of a view: its Zarr group."""
    return f"view-{view:03d}"


def records_folder(view: int, token: TokenType) -> str:
    """Folder of the loose records of a (view, token type)."""
    return f"records/{view_folder(view)}/{token}"


def record_key(view: int, token: TokenType, block: int) -> str:
    """A unit's loose record."""
    return f"{records_folder(view, token)}/{block:06d}.json"


def statistics_key(view: int, token: TokenType, block: int) -> str:
    """A unit's row statistics, beside its loose record."""
    return f"{records_folder(view, token)}/{block:06d}.stats"


def folded_key(view: int, token: TokenType) -> str:
    """The table of folded records of a (view, token type)."""
    return f"{records_folder(view, token)}.parquet"


def group_key(view: int) -> str:
    """Metadata of a view's group."""
    return f"{view_folder(view)}/zarr.json"


def array_key(view: int, spec: ArraySpec) -> str:
    """Metadata of an array."""
    return f"{view_folder(view)}/{spec.name}/zarr.json"


def shard_key(view: int, spec: ArraySpec, block: int) -> str:
    """A unit's shard of an array."""
    return f"{view_folder(view)}/{spec.name}/{spec.chunk_key(block)}"


def calibration_key(token: TokenType) -> str:
    """The calibration document of a token type."""
    return f"{CALIBRATION}/{token}.json"


def escape_key(view: int, token: TokenType, block: int) -> str:
    """A unit's escape table; it exists only where something did not fit."""
    return f"{view_folder(view)}/{token}_escape/c/{block}"


def root_metadata(manifest: FeatureManifest, how: str) -> bytes:
    """The group at the top; its attributes tell a plain Zarr reader what it sees."""
    definition = manifest.definition
    encoder = definition.encoder
    return _checked(
        {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {
                "unic_pipe": {
                    "digest": manifest.digest,
                    "dataset": manifest.dataset,
                    "encoder": manifest.encoder,
                    "cls_dim": encoder.cls_dim,
                    "patch_dim": encoder.patch_dim,
                    "grid": list(encoder.grid),
                    "block_rows": definition.block_rows,
                    "codec": definition.codec.model_dump(mode="json", exclude_none=True),
                    "reading": how,
                }
            },
        }
    )


def group_metadata(view: int) -> bytes:
    """A view's group."""
    return _checked({"zarr_format": 3, "node_type": "group", "attributes": {"unic_pipe": {"view": view}}})


def array_metadata(spec: ArraySpec, end_row: int, block_rows: int) -> bytes:
    """An array of a dataset whose rows end at `end_row`."""
    codecs: list[dict[str, Any]] = list(spec.codecs)
    if spec.inner != spec.shard:
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": list(spec.inner),
            "codecs": codecs,
            "index_codecs": index,
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    return _checked(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(spec.shape(end_row, block_rows)),
            "data_type": spec.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(spec.shard)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": spec.fill_value,
            "codecs": codecs,
            "dimension_names": list(spec.dimensions),
            "attributes": {"unic_pipe": {"end_row": end_row}},
        }
    )


def stated_end_row(raw: bytes) -> int | None:
    """The `end_row` that array metadata states, or None if it is unreadable. To be confirmed by its exact bytes."""
    try:
        end_row = json.loads(raw)["attributes"]["unic_pipe"]["end_row"]
    except (ValueError, KeyError, TypeError):
        return None
    return end_row if isinstance(end_row, int) and end_row >= 0 else None


def _checked(document: dict[str, Any]) -> bytes:
    document["attributes"]["unic_pipe"]["checksum"] = fast_hash(canonical_json(document))
    return (json.dumps(document, indent=1) + "\n").encode()
