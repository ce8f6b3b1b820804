"""`unic-pipe report cache`: what compression cost, per teacher and token type, and what other codecs would cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from unic_pipe.pipeline.cache.layout import MANIFEST
from unic_pipe.pipeline.cache.needs import TOKENS
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.extraction.blocks import pick_device
from unic_pipe.pipeline.process.progress import Reporter, human_bytes
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.status import extraction_needs
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.status import CacheLoss, CacheReport, RateCurve
from unic_pipe.stages.report.losses import compare, curves, loss_of
from unic_pipe.stages.report.rate_chart import write_cache_report

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
        table.add_column(column, overflow="fold")
    for column in ("bits", "size", "SNR dB", "cosine", "worst", "R(D)", "enc M/s", "dec M/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.teacher, row.token, row.codec, f"{row.bits_per_value:.3f}", human_bytes(row.bytes),
            f"{row.snr_db:.1f}", f"{row.cosine_mean:.4f}", f"{row.cosine_min:.4f}", f"{row.gaussian_rd_bits:.3f}",
            f"{row.encode_values_s / 1e6:,.0f}", f"{row.decode_values_s / 1e6:,.0f}",
        )  # fmt: skip
    table.caption = "bits: per value. R(D): what Gaussian features would need. enc, dec: million values a CPU second."
    table.caption_justify = "left"
    return table
