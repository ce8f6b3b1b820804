"""A short measurement of an encoder on the user's own images: what its features take on disk, and how long they take.

Some rows are read, rendered, encoded and written by the very functions that extract, into a temporary folder, so that
the prediction cannot drift away from the code.

Shapes: N measured rows, P patch tokens, D dimensions.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.cache.calibration import ensure_calibration
from pipeline.cache.commit import commit_unit, prepare_view
from pipeline.cache.layout import folded_key, record_key, statistics_key, view_folder
from pipeline.cache.ledger import write_ledger
from pipeline.cache.losses import write_losses
from pipeline.cache.records import FeatureFolder
from pipeline.calibrating import calibration_of
from pipeline.encoders import ResolvedEncoder
from pipeline.features import FeatureNeed
from pipeline.samples.dataset import Dataset
from pipeline.samples.images import UndecodableImage, decode_image
from pipeline.sizes import codec_label, measurement_key, read_measurement
from pipeline.storage import LocalStore
from pipeline.views.probes import write_probes
from schemas.base import digest_of
from schemas.config import TokenType
from schemas.features import CodecDefinition, FeatureManifest
from schemas.plans import CodecMeasurement, Measurement

MEMORY_BYTES = 256 << 20
"""Float32 features that are held at a time."""
SECONDS = 4.0
"""Forward passes go on for so long, or until a block is full."""
PROBES = 2

T = TypeVar("T")


def measure(
    workdir: Path,
    dataset: Dataset,
    need: FeatureNeed,
    encoder: ResolvedEncoder,
    device: str,
    codecs: Sequence[CodecDefinition],
    limit: int,
) -> Measurement:
    """Measure at most `limit` rows of a dataset under a need's recipe; kept in `runs/measurements/` for this device.

    A measurement that is there and has these codecs is returned as it is.

    Raises:
        StageError: samples cannot be read, or features not be stored by a codec.
    """
    store, key = LocalStore(workdir / "runs"), measurement_key(need, device)
    tokens = [token for token, views in need.views.items() if views]
    known = read_measurement(workdir, need, device)
    labels = {codec_label(codec) for codec in codecs}
    if known is not None and all(labels <= known.codecs.get(token, {}).keys() for token in tokens):
        return known
    limit = min(limit, _row_limit(need, tokens))
    calibrated = any(codec.calibrated for codec in codecs)
    images, decode_s = _images(dataset, 2 * limit if calibrated else limit)
    features, render_s, forward_s = _encode(need, encoder, device, images, tokens, 2 if calibrated else 1)
    # Codecs are calibrated on other rows than those that tell what they take.
    others = {token: values[1::2] for token, values in features.items()} if calibrated else {}
    features = {token: values[::2] for token, values in features.items()} if calibrated else features
    written = [_write(dataset, need, codec, features, others, images) for codec in codecs]
    found = Measurement(
        encoder=encoder.digest,
        dataset=dataset.digest,
        recipe=digest_of(need.definition.recipe),
        device=device,
        rows=len(next(iter(features.values()))),
        decode_seconds=decode_s,
        render_seconds=render_s,
        forward_seconds=forward_s,
        folder_bytes=written[0].folder[0],
        folder_files=written[0].folder[1],
        view_bytes=written[0].view[0],
        view_files=written[0].view[1],
        codecs={token: {w.label: w.tokens[token] for w in written} for token in tokens},
    )
    store.put(key, found.to_bytes())
    return found


def _row_limit(need: FeatureNeed, tokens: Sequence[TokenType]) -> int:
    encoder = need.definition.encoder
    values = encoder.cls_dim + (encoder.grid[0] * encoder.grid[1] * encoder.patch_dim if "patch" in tokens else 0)
    return max(1, min(need.definition.block_rows, MEMORY_BYTES // (4 * values)))


def _images(dataset: Dataset, limit: int) -> tuple[list[tuple[str, np.ndarray]], float]:
    """Random decodable rows in row order, (key, uint8 (H, W, 3)), and seconds per row."""
    rows = dataset.rows()
    chosen = np.sort(np.random.default_rng(0).choice(rows, min(limit, len(rows)), replace=False))
    found: list[tuple[str, np.ndarray]] = []
    started = time.process_time()
    for row, read in zip(chosen.tolist(), dataset.read_many(chosen.tolist()), strict=True):
        try:
            found.append((dataset.key(row), decode_image(read())))
        except UndecodableImage:
            continue
    return found, (time.process_time() - started) / max(1, len(found))


def _encode(
    need: FeatureNeed,
    encoder: ResolvedEncoder,
    device: str,
    images: Sequence[tuple[str, np.ndarray]],
    tokens: Sequence[TokenType],
    times: int,
) -> tuple[dict[TokenType, np.ndarray], float, float]:
    """Features of view 0, (N, D) and (N, P, D) float32, of as many images as fit the time; seconds per image to render
    one view and for a forward pass. Times of a CPU are those of one core."""
    import torch

    from pipeline.encoders import load_encoder
    from pipeline.views.render import render_view

    definition, compute = need.definition, need.definition.compute
    size, threads = definition.encoder.image_size, torch.get_num_threads()
    torch.set_num_threads(compute.threads)
    try:
        model = load_encoder(encoder, device=device)
        if compute.channels_last:
            model = model.to(memory_format=torch.channels_last)
        parts: dict[TokenType, list[np.ndarray]] = {token: [] for token in tokens}
        render_s = forward_s = 0.0
        done = 0
        for start in range(0, len(images), compute.batch):
            batch = images[start : start + compute.batch]
            x_B3HW, seconds = _timed(
                lambda batch=batch: torch.stack(  # type: ignore[misc]
                    [render_view(image, definition.recipe, definition.view_seed, key, 0, size) for key, image in batch]
                )
            )
            render_s += seconds
            if not start:
                model.encode(x_B3HW[:2], compute)  # the first call prepares kernels
            out, seconds = _timed(lambda x=x_B3HW: model.encode(x, compute))  # type: ignore[misc]
            forward_s += seconds * (compute.threads if device == "cpu" else 1)
            done += len(batch)
            for token in tokens:
                parts[token].append((out.cls if token == "cls" else out.patch).numpy())
            if render_s + forward_s > SECONDS * times:
                break
    finally:
        torch.set_num_threads(threads)
    features = {token: np.concatenate(parts[token]) for token in tokens}
    return features, render_s / done, forward_s / done


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
    definition = need.definition.model_copy(update={"codec": codec})
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
        write_probes(folder.store, recipe, definition.view_seed, 0, size, images[:PROBES])
        for token, values in features.items():
            if codec.calibrated:
                chosen = FeatureNeed(need.dataset, need.encoder, definition, need.views)
                rows = np.arange(len(others[token]))
                ensure_calibration(
                    folder,
                    token,
                    lambda c=chosen, t=token, r=rows: calibration_of(c, t, r, others[t]),  # type: ignore[misc]
                )
            found.tokens[token] = _write_token(folder, store, token, values, dataset)
        write_ledger(folder)
        write_losses(folder)
        sizes = {key: folder.store.size(key) or 0 for key in folder.store.keys()}  # noqa: SIM118
        view = [size for key, size in sizes.items() if key in (f"{view_folder(0)}/zarr.json",) or "probes/" in key]
        base = [size for key, size in sizes.items() if "/" not in key]
        found.view, found.folder = (sum(view), len(view)), (sum(base), len(base))
    return found


def _write_token(
    folder: FeatureFolder, store: LocalStore, token: TokenType, values: np.ndarray, dataset: Dataset
) -> CodecMeasurement:
    block_rows = folder.required_manifest().definition.block_rows
    prepare_view(folder, 0, token, dataset.manifest.end_row)
    none = np.zeros_like(values[:1])
    digest = dataset.block_digest(0)
    empty = commit_unit(folder, 0, token, 1, none, np.zeros(1, bool), rows_digest=digest, batch=1)
    ones = np.ones(len(values), bool)
    full, seconds = _timed(lambda: commit_unit(folder, 0, token, 0, values, ones, rows_digest=digest, batch=block_rows))
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
    return CodecMeasurement(
        row_bytes=max(0, shards - nothing) / len(values),
        unit_bytes=nothing + record + statistics,
        plane_bytes=max(0, rest),
        unit_files=len(full.files) - 1,
        unit_folders=(folders - len(named)) // 2,
        plane_files=len(arrays) + 1,
        plane_folders=2 * len(named) + 1,
        row_seconds=seconds / len(values),
        token_bytes=sum(folder.store.size(key) or 0 for key in calibration),
        token_files=len(calibration),
    )


def _timed(action: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = action()
    return result, time.perf_counter() - started
