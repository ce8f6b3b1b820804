"""Preparing the arrays of a view, and committing one finished unit (R8).

A unit becomes visible in this order, and only the last step makes it count:

1. its shards are encoded in memory, decoded there, and compared bit for bit with what went in;
2. shards and statistics are published, each by one atomic and durable put, and read back;
3. its record is created, if no other process created one first;
4. the shards on disk are compared with the record in force; if they differ, the record is void and the unit is
   committed again.

Killed before 3, the unit is simply not finished, and running it again puts the same bytes.

Legend: N rows of the unit, P tokens per row, D dimensions.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.arrays import decode_part, encode_part
from unic_pipe.pipeline.cache.calibration import bound_codec
from unic_pipe.pipeline.cache.codecs import TokenCodec, how_to_read
from unic_pipe.pipeline.cache.layout import (
    ROOT_METADATA,
    array_key,
    array_metadata,
    escape_key,
    group_key,
    group_metadata,
    record_key,
    root_metadata,
    shard_key,
    stated_end_row,
    statistics_key,
)
from unic_pipe.pipeline.cache.losses import measured
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.cache.spec import ArraySpec, Floats
from unic_pipe.pipeline.storage import fast_hash
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.features import BadRow, FileEntry, UnitLoss, UnitRecord

_ATTEMPTS = 3


def prepare_view(folder: FeatureFolder, view: int, token: TokenType, end_row: int) -> None:
    """Create the group and arrays of a (view, token type), or grow them along the rows; only ever called by a coordinator.

    Metadata that is not what it should be, byte for byte, is written anew, so this also repairs it. Arrays never
    shrink: `end_row` may be smaller than what another run prepared.
    """
    manifest = folder.required_manifest()
    codec = bound_codec(folder, token)
    block_rows = manifest.definition.block_rows
    _ensure(folder, ROOT_METADATA, root_metadata(manifest, how_to_read(manifest.definition)))
    _ensure(folder, group_key(view), group_metadata(view))
    for spec in codec.arrays:
        while not _grown(folder, array_key(view, spec), spec, end_row, block_rows):
            pass


def commit_unit(
    folder: FeatureFolder,
    view: int,
    token: TokenType,
    block: int,
    values: Floats,
    valid_N: NDArray[np.bool_],
    bad: tuple[BadRow, ...] = (),
    *,
    rows_digest: str,
    batch: int,
) -> UnitRecord:
    """Write a unit, values (N, D) for `cls` or (N, P, D) for `patch`, and return the record that is then in force.

    Idempotent. Statistics are those of the stored values (decoded again), so that standardization is exact for what
    a student sees; invalid rows are outside them.

    Raises:
        StageError: values that the codec cannot hold, bytes that do not survive encoding or the disk, disk full.
        ValueError: wrong shape or dtype, or a valid row that is not finite.
    """
    manifest = folder.required_manifest()
    codec = bound_codec(folder, token)
    _check_values(codec, values, valid_N)
    try:
        shards, escape, statistics, loss = encode_unit(codec, values, valid_N)
    except StageError as error:
        where = f"{manifest.encoder}, view {view}, {token}, block {block}"
        raise StageError(f"{where}: {error.message}", error.hint) from error
    contents = {shard_key(view, s, block): shard for s, shard in zip(codec.arrays, shards, strict=True)}
    if escape:
        contents[escape_key(view, token, block)] = escape
    contents[statistics_key(view, token, block)] = statistics
    record = UnitRecord(
        definition=manifest.digest,
        calibration=codec.calibration,
        view=view,
        token=token,
        block=block,
        rows=rows_digest,
        valid=np.packbits(valid_N).tobytes().hex(),
        count=len(values),
        bad=bad,
        files=tuple(FileEntry(path=k, size=len(v), xxh3=fast_hash(v)) for k, v in contents.items()),
        batch=batch,
        loss=loss,
    )
    for _ in range(_ATTEMPTS):
        if not _publish(folder, contents):
            continue
        folder.store.create(record_key(view, token, block), record.to_bytes())
        current = folder.record(view, token, block)
        if current is not None and _same_unit(current, record) and _on_disk(folder, current):
            return current
        # Another process committed other bytes at the same time, or an old or damaged record stood there.
        folder.void(view, token, [block])
    raise StageError(
        f"Could not commit view {view}, {token}, block {block} of {folder.location}: what is there is not what was written.",
        "Either the disk is faulty, or another extract writes different bytes to this folder. Finished work is kept: "
        "stop the other one and run `unic-pipe extract` again.",
    )


def encode_unit(
    codec: TokenCodec, values: Floats, valid_N: NDArray[np.bool_]
) -> tuple[list[bytes], bytes, bytes, UnitLoss | None]:
    """The shards of a unit, its escape table, the statistics of what they decode to, and how that differs from what went
    in; nothing is written.
    Raises StageError: values that the codec cannot hold, or bytes that do not decode to what went in."""
    values = np.ascontiguousarray(values, np.float32)
    parts = codec.encode(values, valid_N)
    escape = codec.escape(parts, values)
    shards = [encode_part(spec, part) for spec, part in zip(codec.arrays, parts, strict=True)]
    decoded = tuple(decode_part(spec, shard) for spec, shard in zip(codec.arrays, shards, strict=True))
    for spec, part, back in zip(codec.arrays, parts, decoded, strict=True):
        if back.dtype != part.dtype or not np.array_equal(_bits(back), _bits(part)):
            raise StageError(
                f"{spec.name} did not survive encoding: what decodes is not what went in.",
                "This machine's memory or its zarr and numcodecs are faulty; try `pip install --upgrade zarr numcodecs`.",
            )
    unit = codec.decode(decoded, len(values), escape)
    if not np.array_equal(unit.present, valid_N):
        raise StageError("A valid row looks like a missing one after encoding.", "Please report this.")
    stored = unit.values()
    rows = stored if valid_N.all() else stored[valid_N]
    moments, loss = measured(codec, values if valid_N.all() else values[valid_N], rows)
    return shards, escape, moments.to_bytes(), loss


def _bits(part: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of an array: NaN is not equal to itself, but its bits are."""
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8)


def _check_values(codec: TokenCodec, values: Floats, valid_N: NDArray[np.bool_]) -> None:
    block_rows = codec.arrays[0].shard[codec.arrays[0].axis]
    if values.shape[1:] != codec.row_shape or values.dtype != np.float32:
        raise ValueError(f"values are {values.dtype} {values.shape}, expected float32 (N, {codec.row_shape})")
    if not 0 < len(values) <= block_rows or valid_N.shape != (len(values),) or valid_N.dtype != np.bool_:
        raise ValueError(f"{len(values)} rows and valid {valid_N.dtype} {valid_N.shape} for blocks of {block_rows}")
    # A sum is finite only if every value is (or it overflows: then look closely), and needs no temporary.
    with np.errstate(over="ignore", invalid="ignore"):
        finite_N = np.isfinite(values.reshape(len(values), -1).sum(axis=1))
    doubtful = valid_N & ~finite_N
    if doubtful.any() and not np.isfinite(values[doubtful]).all():
        raise ValueError("a row that is marked valid holds NaN or infinity")


def _publish(folder: FeatureFolder, contents: dict[str, bytes]) -> bool:
    """Put every file, and say whether all read back as they were written."""
    for key, raw in contents.items():
        folder.store.put(key, raw)
    try:
        found = folder.store.get_many(contents)
        return all(found[key] == raw for key, raw in contents.items())
    except KeyError:
        # Another process committed the same unit meanwhile, and folded its record with this sidecar.
        return False


def _same_unit(current: UnitRecord, mine: UnitRecord) -> bool:
    return (current.definition, current.calibration, current.rows, current.valid, current.files) == (
        mine.definition, mine.calibration, mine.rows, mine.valid, mine.files,
    )  # fmt: skip


def _on_disk(folder: FeatureFolder, record: UnitRecord) -> bool:
    """Whether the shards are those of the record (its sidecar may have been folded already)."""
    return all(fast_hash(folder.store.get(f.path)) == f.xxh3 for f in record.files[:-1])


def _grown(folder: FeatureFolder, key: str, spec: ArraySpec, end_row: int, block_rows: int) -> bool:
    """Make an array reach `end_row`; False if another coordinator replaced its metadata meanwhile."""
    version = folder.store.version(key)
    raw = folder.store.get_many([key]).get(key, b"")
    stated = stated_end_row(raw)
    if stated is not None and stated >= end_row and raw == array_metadata(spec, stated, block_rows):
        return True
    return folder.store.replace(key, array_metadata(spec, end_row, block_rows), version)


def _ensure(folder: FeatureFolder, key: str, raw: bytes) -> None:
    """Write derivable metadata unless it is there, byte for byte."""
    if not folder.store.create(key, raw) and folder.store.get(key) != raw:
        folder.store.put(key, raw)
