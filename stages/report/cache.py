"""`unic-pipe report cache`: what compression cost, per teacher and token type, and what other codecs would cost.

Features as they were written are compared with the teacher run again on a sample of rows (originals are not stored).
Everything is measured on features standardized per dimension, which is what a student sees; sizes are those of all files
that units own.

Legend: N rows, P tokens, D dimensions, M tokens of all rows.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from unic_pipe.pipeline.cache.arrays import encode_part
from unic_pipe.pipeline.cache.calibration import bound_codec, calibrated_tokens, read_document
from unic_pipe.pipeline.cache.codecs import TokenCodec, plain_codec
from unic_pipe.pipeline.cache.coefficients import Calibrated
from unic_pipe.pipeline.cache.fitting import Sample, axes_of, fit_step, measure
from unic_pipe.pipeline.cache.layout import MANIFEST
from unic_pipe.pipeline.cache.losses import cosines, gaussian_bits
from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.pipeline.cache.reader import Block, FeatureCache, valid_rows
from unic_pipe.pipeline.cache.spec import row_shape
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.extraction.blocks import pick_device
from unic_pipe.pipeline.extraction.calibrate import sample_features
from unic_pipe.pipeline.process.progress import Reporter, human_bytes
from unic_pipe.pipeline.process.threads import torch_threads
from unic_pipe.pipeline.process.wrapping import Wrapped
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.status import extraction_needs
from unic_pipe.schemas.codecs import plain_codecs
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.losses import TOKENS
from unic_pipe.schemas.status import CacheLoss, CacheReport, RateCurve, RatePoint
from unic_pipe.stages.report.rate_chart import write_cache_report

BLOCKS, ROWS_OF_BLOCK = 8, 64
"""Rows that are compared: so many of so many blocks, chosen at random."""
TARGETS_DB = (6.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0)
"""Signal-to-noise ratios at which the curves are measured."""
CURVE_ROWS = 256

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Compared:
    """Sample rows of one teacher: where they are, and what the teacher says about them now."""

    cache: FeatureCache
    blocks: tuple[int, ...]
    rows_N: NDArray[np.int64]
    live: dict[TokenType, Floats]


def compare(
    dataset: Dataset, cache: FeatureCache, need: FeatureNeed, encoder: ResolvedEncoder, device: str
) -> Compared | None:
    """Run the teacher again on random rows of view 0; None if there are no finished blocks.
    Raises StageError: samples that are not what was indexed."""
    tokens = [token for token in TOKENS if need.views.get(token, 0)]
    records = [cache.records(0, token) for token in tokens]
    finished = sorted(set.intersection(*(set(r) for r in records))) if records else []
    generator = np.random.Generator(
        np.random.Philox(key=int(hashlib.sha256(cache.digest.encode()).hexdigest()[:32], 16))
    )
    blocks = sorted(generator.permutation(finished)[:BLOCKS].tolist())
    chosen = []
    for block in blocks:
        valid_N = np.logical_and.reduce([valid_rows(r[block]) for r in records])
        offsets = generator.permutation(np.flatnonzero(valid_N))[:ROWS_OF_BLOCK]
        chosen.append(block * cache.block_rows + np.sort(offsets))
    rows_N = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
    if not len(rows_N):
        return None
    live = sample_features(dataset, rows_N, need, encoder, device, need.definition.compute.batch)
    return Compared(cache, tuple(blocks), rows_N, live)


def loss_of(found: Compared, token: TokenType) -> CacheLoss:
    """The row of one token type."""
    cache, live = found.cache, found.live[token]
    sample = Sample.of(live)
    stored = {block: cache.read_block(0, token, block) for block in found.blocks}
    back = np.stack([stored[int(row // cache.block_rows)].values[row % cache.block_rows] for row in found.rows_N])
    back_NPD = back.reshape(sample.values_NPD.shape)
    snr_db = sample.snr_db(sample.values_NPD, back_NPD)
    cosine = _cosines(sample, back_NPD)
    records = [r for view, t in cache.folder.planes() if t == token for r in cache.records(view, token).values()]
    size = sum(entry.size for record in records for entry in record.files[:-1])
    values = sum(record.count for record in records) * back[0].size
    codec = bound_codec(cache.folder, token)
    encoded, decoded = _speeds(cache, codec, token, found.blocks[0], stored[found.blocks[0]])
    return CacheLoss(
        teacher=cache.manifest.encoder,
        dataset=cache.manifest.dataset,
        token=token,
        codec=codec.name,
        bits_per_value=8 * size / values,
        bytes=size,
        snr_db=snr_db,
        cosine_mean=float(cosine.mean()),
        cosine_min=float(cosine.min()),
        gaussian_rd_bits=gaussian_bits(_principal_variances(cache, token, sample), snr_db),
        encode_values_s=encoded,
        decode_values_s=decoded,
    )


def curves(found: Compared, token: TokenType) -> Iterator[RatePoint]:
    """Every codec on the same rows: fitted to three quarters of them, measured on the others."""
    live = found.live[token][:CURVE_ROWS]
    sample, shape = Sample.of(live), row_shape(found.cache.definition, token)
    block_rows = min(found.cache.block_rows, int(sample.held_N.sum()))
    for name in plain_codecs():
        bits, snr_db, _, _ = measure(plain_codec(name, token, shape, block_rows), sample)
        yield RatePoint(codec=name, bits_per_value=bits, snr_db=snr_db)
    for name in ("scalar", "klt"):
        places = axes_of(sample, shape, name == "klt")
        for target in TARGETS_DB:
            codec = Calibrated(token, fit_step(places, sample, target), block_rows, None)
            bits, snr_db, _, _ = measure(codec, sample)
            yield RatePoint(codec=name, bits_per_value=bits, snr_db=snr_db)
    variance_D = _principal_variances(found.cache, token, sample)
    for target in TARGETS_DB:
        yield RatePoint(codec="Gaussian R(D)", bits_per_value=gaussian_bits(variance_D, target), snr_db=target)


def _principal_variances(cache: FeatureCache, token: TokenType, sample: Sample) -> NDArray[np.float64]:
    """Those of the calibration's rows where they are more than the sample's: of few rows the axes of many dimensions are
    known badly, which makes R(D) too high."""
    calibration = read_document(cache.folder, token) if token in calibrated_tokens(cache.folder) else None
    if calibration is not None and calibration.variances and calibration.rows > len(sample.values_NPD):
        return np.array(calibration.variances)
    return sample.principal_variances()


def _speeds(cache: FeatureCache, codec: TokenCodec, token: TokenType, block: int, stored: Block) -> tuple[float, float]:
    """Values per CPU second of encoding, and of decoding to stored numbers; the best of three."""
    rows = np.ascontiguousarray(stored.values[stored.valid])

    def encode() -> None:
        parts = codec.encode(rows, np.ones(len(rows), bool))
        for spec, part in zip(codec.arrays, parts, strict=True):
            encode_part(spec, part)

    works = (encode, lambda: cache.read_block_raw(0, token, block))
    with torch_threads(1):
        encoded, decoded = (rows.size / min(_seconds(work) for _ in range(3)) for work in works)
    return encoded, decoded


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _cosines(sample: Sample, back_NPD: Floats) -> NDArray[np.float64]:
    """Of each standardized token with what came back."""
    a_MD, b_MD = (
        ((x - sample.mean_D) / sample.scale_D).reshape(-1, x.shape[-1]) for x in (sample.values_NPD, back_NPD)
    )
    return cosines(a_MD, b_MD)


FILE = "runs/cache-report.html"


def cache_report(inventory: Inventory, device: str, plot: bool, reporter: Reporter) -> tuple[CacheReport, Path | None]:
    """Losses of all training features that exist; with `plot`, also the page with the curves of all codecs.

    Raises:
        UserError: nothing is extracted yet.
        StageError: damaged features, or samples that are not what was indexed.
    """
    students = inventory.config.students.values()
    training = {name for student in students for name in student.datasets} or {*inventory.config.samples.datasets}
    needs = [need for need in extraction_needs(inventory) if need.dataset in training]
    rows: list[CacheLoss] = []
    found_curves: list[RateCurve] = []
    with reporter.task("compare", total=len(needs), unit="caches") as task:
        for need in needs:
            store, dataset = inventory.own_features(need), inventory.dataset(need.dataset).dataset
            if dataset is None or store.size(MANIFEST) is None:
                continue
            found = compare(dataset, FeatureCache(store), need, inventory.teacher(need.encoder), pick_device(device))
            for token in TOKENS if found is not None else ():
                if need.views.get(token, 0):
                    assert found is not None
                    rows.append(loss_of(found, token))
                    if plot:
                        points = tuple(curves(found, token))
                        found_curves.append(
                            RateCurve(teacher=need.encoder, dataset=need.dataset, token=token, points=points)
                        )
            task.advance(1)
    if not rows:
        raise UserError("There are no training features to report on.", "Run `unic-pipe extract`.")
    report = CacheReport(rows=tuple(rows), curves=tuple(found_curves))
    if not plot:
        return report, None
    path = inventory.folder / FILE
    LocalStore(inventory.folder).put(FILE, write_cache_report(path, report))
    return report, path


def loss_table(rows: Sequence[CacheLoss]) -> Table:
    """The rows for a terminal."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in ("teacher", "token", "codec"):
        table.add_column(column)
    for column in ("bits", "size", "SNR dB", "cosine", "worst", "R(D)", "enc M/s", "dec M/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Wrapped(row.teacher), row.token, Wrapped(row.codec), f"{row.bits_per_value:.3f}", human_bytes(row.bytes),
            f"{row.snr_db:.1f}", f"{row.cosine_mean:.4f}", f"{row.cosine_min:.4f}", f"{row.gaussian_rd_bits:.3f}",
            f"{row.encode_values_s / 1e6:,.0f}", f"{row.decode_values_s / 1e6:,.0f}",
        )  # fmt: skip
    table.caption = "bits: per value. R(D): what Gaussian features would need. enc, dec: million values a CPU second."
    table.caption_justify = "left"
    return table
