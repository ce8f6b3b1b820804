"""Calibrating a feature folder before its first unit: random rows through the encoder, then the codec that fits them.

Legend: N rows, P patch tokens, D dimensions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.calibration import Proposal, calibrated_tokens, ensure_calibration, propose
from pipeline.cache.records import FeatureFolder
from pipeline.cache.spec import row_shape
from pipeline.encoders import ResolvedEncoder
from pipeline.engine import encode_images, pick_device
from pipeline.executors import usable_cores
from pipeline.features import FeatureNeed
from pipeline.progress import Reporter
from pipeline.samples.dataset import Dataset
from pipeline.samples.images import UndecodableImage, decode_image
from schemas.codecs import AUTO, CODECS
from schemas.config import TokenType
from schemas.errors import StageError
from schemas.features import CalibrationDocument, CodecTrial

ROWS: dict[TokenType, int] = {"cls": 2048, "patch": 256}
"""Most rows: a few for every dimension of `cls`; patch tokens are many per row."""
FEWEST_ROWS = 256
FRACTION = 4
"""A small dataset gives a quarter of its rows (but `FEWEST_ROWS`), so that calibrating stays cheap beside extracting."""


def calibrate(
    folder: FeatureFolder,
    dataset: Dataset,
    need: FeatureNeed,
    encoder: ResolvedEncoder,
    device: str,
    batch: int,
    reporter: Reporter,
    call: Callable[..., Any],
) -> None:
    """Create or repair what the folder's codec needs for the wanted token types; nothing for plain codecs.

    A pure function of dataset, definition and hardware: view 0 of rows that the definition's digest chooses, in the
    definition's batches and threads. `call` calls a function where blocks run (`Executor.call`).

    Raises:
        StageError: no usable row, or samples that are not what was indexed.
    """
    features: dict[TokenType, NDArray[np.float32]] = {}

    def make(token: TokenType) -> Proposal:
        if not features:
            rows_N = calibration_rows(dataset, need.digest, max(ROWS[t] for t in need.views))
            with reporter.task(f"calibrate {need.name}", total=len(rows_N)) as task:
                features.update(call(_sampled, dataset, rows_N, need, encoder, device, batch))
                task.advance(len(rows_N))
        rows_N = calibration_rows(dataset, need.digest, max(ROWS[t] for t in need.views))[: ROWS[token]]
        return calibration_of(need, token, rows_N, features[token][: ROWS[token]])

    for token in calibrated_tokens(folder):
        if need.views.get(token, 0) and ensure_calibration(folder, token, lambda token=token: make(token)):  # type: ignore[misc]
            reporter.say(f"{need.name}: {summary(folder, token)}")


def _sampled(
    dataset: Dataset, rows_N: NDArray[np.int64], need: FeatureNeed, encoder: ResolvedEncoder, device: str, batch: int
) -> dict[TokenType, NDArray[np.float32]]:
    """`sample_features` on the device that `device` (perhaps `auto`) means here."""
    return sample_features(dataset, rows_N, need, encoder, pick_device(device), batch)


def calibration_rows(dataset: Dataset, digest: str, most: int) -> NDArray[np.int64]:
    """Random rows of a dataset, the same for the same digest."""
    rows_N = dataset.rows()
    wanted = min(most, max(FEWEST_ROWS, len(rows_N) // FRACTION), len(rows_N))
    generator = np.random.Generator(np.random.Philox(key=int(digest[:32], 16)))
    return rows_N[generator.permutation(len(rows_N))[:wanted]]


def sample_features(
    dataset: Dataset,
    rows_N: Sequence[int] | NDArray[np.int64],
    need: FeatureNeed,
    encoder: ResolvedEncoder,
    device: str,
    batch: int,
    view: int = 0,
) -> dict[TokenType, NDArray[np.float32]]:
    """Features of a view of these rows, (N, D) and (N, P, D); rows that cannot be used are left out.

    Raises:
        StageError: samples that are not what was indexed, or none of them is usable.
    """
    import torch

    from pipeline.views.render import render_view

    definition = need.definition

    def encode(part: NDArray[np.int64]) -> dict[TokenType, NDArray[np.float32]]:
        torch.set_num_threads(definition.compute.threads)
        rendered = []
        for row, read in zip(part.tolist(), dataset.read_many(part.tolist()), strict=True):
            try:
                image_HWC = decode_image(read())
            except UndecodableImage:
                continue
            size, seed = definition.encoder.image_size, definition.view_seed
            rendered.append(render_view(image_HWC, definition.recipe, seed, dataset.key(row), view, size))
        size = definition.encoder.image_size
        x_N3HW = torch.stack(rendered) if rendered else torch.zeros((0, 3, size, size), dtype=torch.uint8)
        return encode_images(encoder, need, device, batch, x_N3HW)

    rows = np.asarray(rows_N, np.int64)
    parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    with _threads_kept(), ThreadPoolExecutor(usable_cores()) as pool:
        found = list(pool.map(encode, parts))
    tokens: tuple[TokenType, ...] = ("cls", "patch")
    whole = {token: np.concatenate([part[token] for part in found]) for token in tokens}
    usable = np.logical_and.reduce([np.isfinite(x).reshape(len(x), -1).all(axis=1) for x in whole.values()])
    if not usable.any():
        raise StageError(
            f"{need.name}: none of {len(rows)} sample rows can be used.", "Check the images, and the encoder's weights."
        )
    return {token: x[usable] for token, x in whole.items()}


def summary(folder: FeatureFolder, token: TokenType) -> str:
    """What was chosen and why, in a line."""
    from pipeline.cache.calibration import read_document

    document = read_document(folder, token)
    assert document is not None
    snr_db = folder.required_manifest().definition.codec.snr_db
    trials = ", ".join(f"{t.codec} {t.bits_per_value:.2f} bits at {t.snr_db:.1f} dB" for t in document.trials)
    return f"{token} is stored by {document.codec} for {snr_db:g} dB ({trials})"


def calibration_of(
    need: FeatureNeed, token: TokenType, rows_N: NDArray[np.int64], values: NDArray[np.float32]
) -> Proposal:
    """The calibration of a token type from sample features, (N, D) or (N, P, D), of these rows."""
    from pipeline.cache.coefficients import Calibrated
    from pipeline.cache.fitting import Sample, candidate, choose, measure

    definition = need.definition
    assert definition.codec.snr_db is not None
    snr_db, shape, sample = definition.codec.snr_db, row_shape(definition, token), Sample.of(values)
    names = list(CODECS) if definition.codec.name == AUTO else [definition.codec.name]
    with _threads_kept(definition.compute.threads):
        codecs = {name: candidate(name, token, sample, shape, definition.block_rows, snr_db) for name in names}
        trials = []
        for name, codec in codecs.items():
            bits, reached, _, _ = measure(codec, sample)
            trials.append(CodecTrial(codec=name, bits_per_value=round(bits, 6), snr_db=round(reached, 6)))
    chosen = choose(trials, snr_db).codec
    codec = codecs[chosen]
    transform = codec.transform if isinstance(codec, Calibrated) else None
    document = CalibrationDocument(
        definition=need.digest,
        token=token,
        codec=chosen,
        step=transform.step if transform else 0.0,
        rounding=transform.rounding if transform else 0.5,
        rows=len(values),
        rows_digest=hashlib.sha256(rows_N.astype("<i8").tobytes()).hexdigest(),
        trials=tuple(trials),
        variances=tuple(float(f"{v:.6g}") for v in sample.principal_variances().tolist()),
    )
    return propose(document, transform)


@contextmanager
def _threads_kept(threads: int | None = None) -> Iterator[None]:
    """Leave the number of torch's CPU threads as it was; sums depend on it, so it may be set meanwhile."""
    import torch

    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)
