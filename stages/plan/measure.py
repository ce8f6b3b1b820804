"""A short measurement of an encoder on the user's own images: what its features take on disk, and how long they take.

Some rows are read, rendered, encoded and written by the very functions that extract, into a temporary folder, so that
the prediction cannot drift away from the code.

Shapes: N measured rows, P patch tokens, D dimensions.
"""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unic_pipe.pipeline.cache.arrays import encode_part
from unic_pipe.pipeline.cache.calibration import bound_codec, ensure_calibration
from unic_pipe.pipeline.cache.commit import commit_unit, prepare_view
from unic_pipe.pipeline.cache.layout import folded_key, record_key, statistics_key, view_folder
from unic_pipe.pipeline.cache.ledger import write_ledger
from unic_pipe.pipeline.cache.losses import write_losses
from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.extraction.calibrate import calibration_of
from unic_pipe.pipeline.extraction.run import probe_images
from unic_pipe.pipeline.extraction.sizes import codec_label, measurement_key
from unic_pipe.pipeline.process.stopwatch import Stopwatch
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.views.probes import write_probes
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.features import CodecDefinition, FeatureManifest
from unic_pipe.schemas.plans import CodecMeasurement, Measurement
from unic_pipe.stages.plan.kept import Kept
from unic_pipe.stages.plan.timing import timed_features

MEMORY_BYTES = 256 << 20
"""Float32 features that are held at a time."""
SECONDS = 4.0
"""Forward passes go on for at most so long, or until a block is full."""
FEWEST = 8
"""Images that are measured whatever they take."""
CALIBRATED = 32
"""Images for codecs that are calibrated, half of them to calibrate."""


def measure(
    kept: Kept,
    dataset: Dataset,
    need: FeatureNeed,
    encoder: ResolvedEncoder,
    device: str,
    codecs: Sequence[CodecDefinition],
    limit: int,
    seconds: float = SECONDS,
) -> Measurement:
    """Measure at most `limit` rows of a dataset under a need's recipe; kept for this kind of device.

    `seconds`: how long forward passes may go on, where not for more than a few images.

    A measurement that is there and has these codecs is returned as it is.
    Raises StageError: samples cannot be read, or features not be stored by a codec.
    """
    key, labels = measurement_key(need, device), {codec_label(codec) for codec in codecs}
    tokens = [token for token, views in need.views.items() if views]
    known = kept.find(key, Measurement, lambda m: all(labels <= m.codecs.get(token, {}).keys() for token in tokens))
    if known is not None:
        return known
    limit = min(limit, _row_limit(need, tokens))
    times = 2 if any(codec.calibrated for codec in codecs) else 1
    fewest = CALIBRATED if times > 1 else FEWEST
    features, times_of = timed_features(dataset, need, encoder, device, limit * times, tokens, seconds, fewest)
    # Codecs are calibrated on other rows than those that tell what they take.
    others = (
        {token: values[1::2] if len(values) > 3 else values for token, values in features.items()} if times > 1 else {}
    )
    features = {token: values[::times] for token, values in features.items()}
    images = probe_images(dataset)
    written = [_write(dataset, need, codec, features, others, images) for codec in codecs]
    found = Measurement(
        encoder=encoder.digest,
        dataset=dataset.digest,
        recipe=digest_of(need.definition.recipe),
        device=device,
        rows=len(features[tokens[0]]),
        decode_seconds=times_of.decode,
        render_seconds=times_of.render,
        forward_seconds=times_of.forward,
        forward_spread=times_of.spread,
        calibration_rows=len(next(iter(others.values()), ())),
        folder_bytes=written[0].folder[0],
        folder_files=written[0].folder[1],
        view_bytes=written[0].view[0],
        view_files=written[0].view[1],
        codecs={token: {w.label: w.tokens[token] for w in written} for token in tokens},
    )
    kept.put(key, found)
    return found


def _row_limit(need: FeatureNeed, tokens: Sequence[TokenType]) -> int:
    values = sum(math.prod(need.definition.encoder.shape(token)) for token in tokens)
    return max(1, min(need.definition.block_rows, MEMORY_BYTES // (4 * values)))


class _Written:
    """What a temporary feature folder took: (bytes, files) of the folder and of a view, and by token type."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.folder = self.view = (0.0, 0)
        self.tokens: dict[TokenType, CodecMeasurement] = {}


def _write(
    dataset: Dataset,
    need: FeatureNeed,
    codec: CodecDefinition,
    features: Mapping[TokenType, np.ndarray],
    others: Mapping[TokenType, np.ndarray],
    images: Sequence[tuple[str, np.ndarray]],
) -> _Written:
    """Write the rows as one block, and a block without usable rows beside it, as extraction would."""
    # A block that is not full would be mostly the borders between its rows and those that are missing.
    rows = len(next(iter(features.values())))
    definition = need.definition.model_copy(update={"codec": codec, "block_rows": rows})
    recipe, size = definition.recipe, definition.encoder.image_size
    found = _Written(codec_label(codec))
    with tempfile.TemporaryDirectory(prefix="unic-pipe-") as path:
        store = LocalStore(Path(path))
        folder = FeatureFolder(store)
        folder.create(
            FeatureManifest(
                dataset=need.dataset, encoder=need.encoder, definition=definition, digest=digest_of(definition)
            )
        )
        write_probes(folder.store, recipe, definition.view_seed, 0, size, images)
        for token, values in features.items():
            started, own = time.process_time(), others.get(token) if codec.calibrated else None
            if own is not None:
                chosen = FeatureNeed(need.dataset, need.encoder, definition, need.views)
                places = np.arange(len(own))
                ensure_calibration(
                    folder,
                    token,
                    lambda c=chosen, t=token, r=places, x=own: calibration_of(  # type: ignore[misc]
                        c, t, r, x, len(dataset.rows())
                    ),
                )
            fitted = time.process_time() - started
            found.tokens[token] = _write_token(folder, store, token, values, own, dataset, fitted)
        write_ledger(folder)
        write_losses(folder)
        sizes = {key: folder.store.size(key) or 0 for key in folder.store.keys()}  # noqa: SIM118
        view = [size for key, size in sizes.items() if key in (f"{view_folder(0)}/zarr.json",) or "probes/" in key]
        base = [size for key, size in sizes.items() if "/" not in key]
        found.view, found.folder = (sum(view), len(view)), (sum(base), len(base))
    return found


def _write_token(
    folder: FeatureFolder,
    store: LocalStore,
    token: TokenType,
    values: np.ndarray,
    others: np.ndarray | None,
    dataset: Dataset,
    fitted: float,
) -> CodecMeasurement:
    """Units of one token type; `others`: rows that its codec was calibrated with, in `fitted` seconds of one core."""
    block_rows = folder.required_manifest().definition.block_rows
    prepare_view(folder, 0, token, dataset.manifest.end_row)
    none = np.zeros_like(values[:1])
    digest = dataset.block_digest(0)
    empty = commit_unit(folder, 0, token, 1, none, np.zeros(1, bool), rows_digest=digest, batch=1)
    ones = np.ones(len(values), bool)
    clock = Stopwatch()
    with clock.time("commit"):
        full = commit_unit(folder, 0, token, 0, values, ones, rows_digest=digest, batch=block_rows)
    record = folder.store.size(record_key(0, token, 0)) or 0
    statistics = folder.store.size(statistics_key(0, token, 0)) or 0
    folder.fold(0, token)
    table = folder.store.size(folded_key(0, token)) or 0
    arrays = [key for key in folder.store.keys(view_folder(0)) if key.endswith("/zarr.json") and f"/{token}" in key]
    named = {key.split("/")[1] for key in arrays}
    folders = sum(1 for name in named for f in store.path(f"{view_folder(0)}/{name}").rglob("*") if f.is_dir())
    calibration = [k for k in folder.store.keys("calibration") if k.startswith(f"calibration/{token}")]
    rest = table - 2 * (record + statistics) + sum(folder.store.size(key) or 0 for key in arrays)
    shards, nothing = (sum(f.size for f in r.files[:-1]) for r in (full, empty))
    row_bytes, spread = max(0, shards - nothing) / len(values), None
    if others is not None:
        own = _coded(folder, token, others) / len(others)
        strange = _coded(folder, token, values) / len(values)
        # Rows that a codec was fitted to take less than it will, and others more: on patch tokens of EfficientNet-Lite0 and
        # a ViT-S, fitted to 16 and 32 rows against 256, it was .3 to .7 of the way. Both are samples of few rows besides.
        row_bytes *= (strange + own) / 2 / strange
        spread = abs(strange - own) / (strange + own)
    return CodecMeasurement(
        row_bytes=row_bytes,
        row_spread=spread,
        unit_bytes=nothing + record + statistics,
        plane_bytes=max(0, rest),
        unit_files=len(full.files) - 1,
        unit_folders=(folders - len(named)) // 2,
        plane_files=len(arrays) + 1,
        plane_folders=2 * len(named) + 1,
        row_seconds=clock.seconds["commit"] / len(values),
        token_bytes=sum(folder.store.size(key) or 0 for key in calibration),
        token_files=len(calibration),
        calibration_seconds=fitted,
    )


def _coded(folder: FeatureFolder, token: TokenType, values: np.ndarray) -> int:
    """Bytes of rows as the folder's codec stores them, without what a unit has beside."""
    codec = bound_codec(folder, token)
    parts = codec.encode(values, np.ones(len(values), bool))
    return sum(len(encode_part(spec, part)) for spec, part in zip(codec.arrays, parts, strict=True))
