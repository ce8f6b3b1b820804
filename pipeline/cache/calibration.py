"""The calibration of a token type on disk: a document that is created once, and the Zarr arrays that it names (R10).

The arrays are published first, in a folder named by their content, then the document is created conditionally; whoever
loses that race adopts the winner's. A calibration is only ever read whole: document and arrays by their hashes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from unic_pipe.pipeline.cache.arrays import decode_part, encode_part
from unic_pipe.pipeline.cache.codecs import TokenCodec, plain_codec
from unic_pipe.pipeline.cache.layout import array_metadata, calibration_key
from unic_pipe.pipeline.cache.records import REPAIR, FeatureFolder
from unic_pipe.pipeline.cache.spec import CRC, LITTLE, ArraySpec, row_shape
from unic_pipe.pipeline.storage import Store, Version, fast_hash, get_or_none, sha256
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.codecs import plain_codecs
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.features import CalibrationDocument, FileEntry
from unic_pipe.schemas.losses import TOKENS

if TYPE_CHECKING:
    from unic_pipe.pipeline.cache.coefficients import Transform

_ARRAYS = (
    ("mean", "mean_PD", "token", "dimension"),
    ("scale", "scale_D", "dimension"),
    ("gain", "gain_D", "component"),
    ("order", "order_K", "coefficient"),
    ("basis", "basis_DD", "component", "dimension"),
    ("spatial", "spatial_PP", "token_component", "token"),
)
"""Name, field of `Transform`, and axes."""


@dataclass(frozen=True)
class Proposal:
    """A calibration that is not in force yet: its document, and its files by key."""

    document: CalibrationDocument
    contents: dict[str, bytes]


def propose(document: CalibrationDocument, transform: Transform | None) -> Proposal:
    """A document without files, completed by the arrays of a transform."""
    files = {} if transform is None else _array_files(transform)
    identity = sha256(b"".join(files.values()))[:8]
    contents = {f"calibration/{document.token}-{identity}/{name}": raw for name, raw in files.items()}
    entries = tuple(FileEntry(path=k, size=len(v), xxh3=fast_hash(v)) for k, v in contents.items())
    return Proposal(document.model_copy(update={"files": entries}), contents)


def ensure_calibration(folder: FeatureFolder, token: TokenType, make: Callable[[], Proposal]) -> bool:
    """Create the calibration unless there is one, and repair it where it is damaged; whether `make` was called.

    Units that were stored by a calibration that is no longer there go out of force.
    """
    made = False
    if _state(folder, token) != "sound":
        proposal, made = make(), True
        _publish(folder, proposal)
        if _state(folder, token) != "sound":
            # The document is damaged, or names arrays that these are not: it was made on other hardware.
            with folder.lock():
                if _state(folder, token) != "sound":
                    folder.set_aside(calibration_key(token))
            _publish(folder, proposal)
    digest = bound_codec(folder, token).calibration
    for view, plane_token in folder.planes():
        if made and plane_token == token:
            others = [b for b, record in folder.records(view, token).items() if record.calibration != digest]
            if others:
                folder.void(view, token, others)
    return made


def bound_codec(folder: FeatureFolder, token: TokenType) -> TokenCodec:
    """The codec of a folder's token type. Raises StageError: it needs a calibration, and that is missing or damaged."""
    definition = folder.required_manifest().definition
    shape = row_shape(definition, token)
    if not definition.codec.calibrated:
        return plain_codec(definition.codec.name, token, shape, definition.block_rows)
    key = calibration_key(token)
    version = folder.store.version(key)
    if version is None:
        where = folder.store.describe(key)
        raise StageError(f"{where} is missing: without it {token} features cannot be read.", REPAIR)
    return _loaded(folder.store, token, version)


def read_document(folder: FeatureFolder, token: TokenType) -> CalibrationDocument | None:
    """The calibration document, or None if there is none.
    Raises StageError: it is damaged, or of another definition."""
    key = calibration_key(token)
    raw = get_or_none(folder.store, key)
    if raw is None:
        return None
    try:
        document = CalibrationDocument.from_bytes(raw, folder.store.describe(key))
    except UserError as error:
        raise StageError(error.message, REPAIR) from error
    if document.token != token or document.definition != folder.required_manifest().digest:
        raise StageError(f"{folder.store.describe(key)} is the calibration of something else.", REPAIR)
    return document


def calibration_digest(document: CalibrationDocument) -> str:
    """The digest by which units name their calibration: without `shared_bits`, which earlier versions did not write, so
    that one of theirs that is lost and made again is the same."""
    plain = tuple(trial.model_copy(update={"shared_bits": 0.0}) for trial in document.trials)
    return digest_of(document.model_copy(update={"trials": plain}))


def damaged_files(folder: FeatureFolder, document: CalibrationDocument) -> list[tuple[str, str]]:
    """(key, kind of damage) of the arrays' files that are not as recorded."""
    found = []
    for entry in document.files:
        raw = get_or_none(folder.store, entry.path)
        if raw is None:
            found.append((entry.path, "missing"))
        elif len(raw) != entry.size or fast_hash(raw) != entry.xxh3:
            found.append((entry.path, "size" if len(raw) != entry.size else "content"))
    return found


def check_calibrations(folder: FeatureFolder) -> tuple[set[str], list[tuple[str, str]]]:
    """Keys of the calibrations' files, and (key, kind) of what is damaged, or missing although units rest on it."""
    keys: set[str] = set()
    damage: list[tuple[str, str]] = []
    for token in calibrated_tokens(folder):
        key = calibration_key(token)
        try:
            document = read_document(folder, token)
        except StageError:
            keys.add(key)
            damage.append((key, "document"))
            continue
        if document is not None:
            keys |= {key, *(entry.path for entry in document.files)}
            damage += damaged_files(folder, document)
        elif any(plane_token == token for _, plane_token in folder.planes()):
            damage.append((key, "missing"))
    return keys, damage


def calibrated_tokens(folder: FeatureFolder) -> tuple[TokenType, ...]:
    """Token types that need a calibration."""
    return TOKENS if folder.required_manifest().definition.codec.calibrated else ()


def _publish(folder: FeatureFolder, proposal: Proposal) -> None:
    """Arrays, then the document; if another one is in force, ours vanish again."""
    for key, raw in proposal.contents.items():
        folder.store.put(key, raw)
        if folder.store.get(key) != raw:
            raise StageError(f"{folder.store.describe(key)} does not read back as written.", "The disk is faulty.")
    token = proposal.document.token
    if folder.store.create(calibration_key(token), proposal.document.to_bytes()):
        return
    try:
        winner = read_document(folder, token)
    except StageError:
        return
    if winner is not None:
        for key in proposal.contents.keys() - {entry.path for entry in winner.files}:
            folder.store.delete(key)


def _state(folder: FeatureFolder, token: TokenType) -> str:
    try:
        document = read_document(folder, token)
    except StageError:
        return "damaged"
    if document is None:
        return "missing"
    return "damaged" if damaged_files(folder, document) else "sound"


@lru_cache(maxsize=64)
def _loaded(store: Store, token: TokenType, version: Version) -> TokenCodec:
    """The codec of a calibration document; read once per process as long as the file is the same."""
    del version
    from unic_pipe.pipeline.cache.coefficients import Calibrated

    folder = FeatureFolder(store)
    document = read_document(folder, token)
    if document is None:
        raise StageError(f"{store.describe(calibration_key(token))} is missing.", REPAIR)
    definition = folder.required_manifest().definition
    shape = row_shape(definition, token)
    digest = calibration_digest(document)
    if document.codec in plain_codecs():
        codec = plain_codec(document.codec, token, shape, definition.block_rows)
        codec.calibration = digest
        return codec
    return Calibrated(token, _read_transform(folder, document, shape), definition.block_rows, digest)


def _read_transform(folder: FeatureFolder, document: CalibrationDocument, shape: tuple[int, ...]) -> Transform:
    from unic_pipe.pipeline.cache.coefficients import Transform

    # The bytes that were checked are the bytes that are decoded.
    raw: dict[str, bytes] = {}
    for entry in document.files:
        content = get_or_none(folder.store, entry.path) or b""
        if len(content) != entry.size or fast_hash(content) != entry.xxh3:
            raise StageError(f"Damaged: {folder.store.describe(entry.path)} (calibration of {document.token}).", REPAIR)
        raw["/".join(entry.path.split("/")[2:])] = content
    arrays: dict[str, Any] = {}
    for name, (field, spec) in _specs(shape).items():
        chunk = raw.get(f"{name}/{spec.chunk_key(0)}")
        arrays[field] = None if chunk is None else decode_part(spec, chunk)
    return Transform(row_shape=shape, step=document.step, rounding=document.rounding, **arrays)


def _array_files(transform: Transform) -> dict[str, bytes]:
    """`zarr.json` and the one chunk of each array, by key below the calibration's folder."""
    files: dict[str, bytes] = {}
    for name, (field, spec) in _specs(transform.row_shape).items():
        array = getattr(transform, field)
        if array is not None:
            files[f"{name}/zarr.json"] = array_metadata(spec, array.shape[0], array.shape[0])
            files[f"{name}/{spec.chunk_key(0)}"] = encode_part(spec, np.ascontiguousarray(array, spec.dtype))
    return files


def _specs(row_shape: tuple[int, ...]) -> dict[str, tuple[str, ArraySpec]]:
    """Of each array that a calibration may have, by name: the field of `Transform`, and how it is stored."""
    tokens, dims = (1, *row_shape)[-2:]
    sizes = {"token": tokens, "token_component": tokens, "coefficient": tokens * dims}
    found = {}
    for name, field, *axes in _ARRAYS:
        shape = tuple(sizes.get(axis, dims) for axis in axes)
        spec = ArraySpec(
            name=name,
            shard=shape,
            inner=shape,
            axis=0,
            counts="rows",
            dtype="int32" if name == "order" else "float32",
            fill_value=-1 if name == "order" else "NaN",
            codecs=(LITTLE, CRC),
            dimensions=tuple(axes),
        )
        found[name] = field, spec
    return found
