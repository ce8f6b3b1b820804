"""Bringing feature caches up to date: what is missing, whether it fits, and running it block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.cache.commit import prepare_view
from pipeline.cache.layout import LEDGER
from pipeline.cache.ledger import write_ledger
from pipeline.cache.losses import read_losses, write_losses
from pipeline.cache.records import FeatureFolder
from pipeline.calibrating import calibrate
from pipeline.encoders import ResolvedEncoder
from pipeline.engine import BlockTask, EncoderJob, ExtractJob, Plane, pick_device
from pipeline.executors import run_blocks
from pipeline.features import FeatureNeed
from pipeline.locks import try_lock
from pipeline.pointers import point
from pipeline.preflight import check_disk, check_time
from pipeline.progress import Reporter
from pipeline.samples.dataset import Dataset
from pipeline.samples.images import UndecodableImage, decode_image
from pipeline.stopping import Stop
from pipeline.storage import LocalStore, Store
from pipeline.views.probes import check_probes, write_probes
from pipeline.writers import check_writers
from schemas.errors import StageError
from schemas.features import FeatureManifest
from schemas.recipes import Recipe

PROBE_SAMPLES = 2
"""Samples of each view whose rendering is kept, and compared before work goes on (R7)."""

FOLD_EVERY = 500
"""Blocks after which loose records are folded, so that a long run, or the one after a kill, reads few files."""


@dataclass(frozen=True)
class ExtractOptions:
    """How to run; none of it changes the bytes, except a forced batch, which is recorded."""

    device: str = "auto"
    workers: int = 0
    force: bool = False
    """Start although the disk looks too small or the CPU too slow."""
    batch: int | None = None
    """A smaller batch than the definition's."""


@dataclass(frozen=True)
class Extraction:
    """Outcome: units done now, units done before, units wanted, and distinct rows that cannot be used."""

    done: int
    before: int
    total: int
    bad_rows: int

    @property
    def complete(self) -> bool:
        """Whether nothing is missing any more."""
        return self.done + self.before == self.total


@dataclass(frozen=True)
class ExtractPass:
    """One pass over blocks 0 to `blocks` - 1 of a dataset, for several encoders."""

    workdir: Path
    features: Store
    """Where the feature folders are."""
    dataset: Dataset
    jobs: Sequence[tuple[FeatureNeed, ResolvedEncoder]]
    blocks: int
    max_bad_fraction: float
    title: str

    @property
    def rows(self) -> int:
        """Rows of the blocks."""
        return sum(self.dataset.block_range(block)[1] for block in range(self.blocks))


def extract_features(work: ExtractPass, options: ExtractOptions, reporter: Reporter, stop: Stop) -> Extraction:
    """Extract what is missing. Everything that was finished before stays as it is.

    Raises:
        StageError: too little disk, too slow a CPU, too many unusable rows, views that render differently.
    """
    check_writers(work.features, several=bool(options.workers), reporter=reporter)
    folders = [_open_folder(work, need) for need, _ in work.jobs]
    batch = options.batch or work.jobs[0][0].definition.compute.batch
    for folder, (need, encoder) in zip(folders, work.jobs, strict=True):
        calibrate(folder, work.dataset, need, encoder, options.device, batch, reporter)
    _prepare(work, folders)
    tasks, before, total = _missing(work, folders)
    if not tasks:
        _fold(work, folders)
        _write_losses([folder for folder in folders if read_losses(folder) is None])
        return Extraction(0, before, total, len(_bad_keys(work, folders)))
    _check_views(work, folders, reporter)
    device = pick_device(options.device)
    if not options.force:
        stores = [folder.store for folder in folders]
        check_disk(work.workdir, [(need, s) for s, (need, _) in zip(stores, work.jobs, strict=True)], work.rows)
        if device == "cpu" and options.device == "auto":
            check_time(work.jobs, [(t.planes, work.dataset.block_range(t.block)[1]) for t in tasks])
    job = ExtractJob(
        dataset=work.dataset.store,
        roots=tuple(work.dataset.roots),
        encoders=tuple(
            EncoderJob(encoder, need, f.store) for (need, encoder), f in zip(work.jobs, folders, strict=True)
        ),
        device=device,
        batch=batch,
    )
    try:
        with _ends(work.workdir, folders) as from_the_end:
            order = tasks[::-1] if from_the_end else tasks
            done = _run(work, job, order, folders, options.workers, reporter, stop)
    finally:
        _fold(work, folders)
    _write_losses(folders)
    return Extraction(done, before, total, len(_bad_keys(work, folders)))


@contextmanager
def _ends(workdir: Path, folders: Sequence[FeatureFolder]) -> Iterator[bool]:
    """Whether another process of this host is extracting to one of the folders: then this one begins at the other end,
    and they meet with no more in common than what is in flight."""
    with ExitStack() as stack:
        locks = [
            f.store.path(".tmp/extract.lock")
            if isinstance(f.store, LocalStore)
            else workdir / "runs" / f"{f.name}.extract.lock"
            for f in folders
        ]
        taken = [stack.enter_context(try_lock(lock)) for lock in locks]
        yield not all(taken)


def _open_folder(work: ExtractPass, need: FeatureNeed) -> FeatureFolder:
    """The feature folder, created if this is its first time; the pointer is moved to it."""
    store = work.features.child(need.folder_name)
    folder = FeatureFolder(store)
    manifest = FeatureManifest(
        dataset=need.dataset, encoder=need.encoder, definition=need.definition, digest=need.digest
    )
    folder.create(manifest)
    if isinstance(store, LocalStore):
        store.sweep()
    point(work.features, need.pointer, store.name)
    return folder


def _prepare(work: ExtractPass, folders: Sequence[FeatureFolder]) -> None:
    """Create what the units need, and what `verify` may have set aside: arrays, and probe images of each view."""
    images = _probe_images(work.dataset)
    for folder, (need, _) in zip(folders, work.jobs, strict=True):
        for view in range(max(need.views.values())):
            write_probes(folder.store, *_probed(need, view), images)
        for view, token in need.planes():
            prepare_view(folder, view, token, work.dataset.manifest.end_row)


def _check_views(work: ExtractPass, folders: Sequence[FeatureFolder], reporter: Reporter) -> None:
    """Views must still render as they did when the first units were extracted (R7)."""
    images = _probe_images(work.dataset)
    for folder, (need, _) in zip(folders, work.jobs, strict=True):
        for view in range(max(need.views.values())):
            remark = check_probes(folder.store, *_probed(need, view), images)
            if remark:
                reporter.say(f"{need.name}: {remark}")


def _probed(need: FeatureNeed, view: int) -> tuple[Recipe, int, int, int]:
    definition = need.definition
    return definition.recipe, definition.view_seed, view, definition.encoder.image_size


def _fold(work: ExtractPass, folders: Sequence[FeatureFolder]) -> None:
    """Fold the loose records, and derive the ledger from them."""
    for folder, (need, _) in zip(folders, work.jobs, strict=True):
        for view, token in need.planes():
            folder.fold(view, token)
        write_ledger(folder)


def _write_losses(folders: Sequence[FeatureFolder]) -> None:
    """What storing the features lost, as the records in force say."""
    for folder in folders:
        write_losses(folder)


def _probe_images(dataset: Dataset) -> list[tuple[str, np.ndarray]]:
    """The first decodable samples of the dataset, (key, uint8 (H, W, 3))."""
    found: list[tuple[str, np.ndarray]] = []
    first, count = dataset.block_range(0)
    for row in range(first, first + count):
        try:
            found.append((dataset.key(row), decode_image(dataset.read(row))))
        except UndecodableImage:
            continue
        if len(found) == PROBE_SAMPLES:
            break
    return found


def _missing(work: ExtractPass, folders: Sequence[FeatureFolder]) -> tuple[list[BlockTask], int, int]:
    """Tasks for the blocks that miss something, the number of units that are there, and of all."""
    wanted = [work.dataset.block_digest(block) for block in range(work.blocks)]
    planes: list[list[tuple[Plane, np.ndarray]]] = []
    for folder, (need, _) in zip(folders, work.jobs, strict=True):
        planes.append([(plane, folder.covered(*plane, wanted)) for plane in need.planes()])
    total = work.blocks * sum(len(p) for p in planes)
    before = sum(int(covered.sum()) for p in planes for _, covered in p)
    tasks = []
    for block in range(work.blocks):
        lacking = tuple(tuple(plane for plane, covered in p if not covered[block]) for p in planes)
        if any(lacking):
            tasks.append(BlockTask(block, lacking))
    return tasks, before, total


def _run(
    work: ExtractPass,
    job: ExtractJob,
    tasks: Sequence[BlockTask],
    folders: Sequence[FeatureFolder],
    workers: int,
    reporter: Reporter,
    stop: Stop,
) -> int:
    """Run the tasks; units committed. Stops with an error when too many rows cannot be used."""
    units = {task.block: sum(len(planes) for planes in task.planes) for task in tasks}
    forwards = sum(
        len({view for view, _ in planes}) * work.dataset.block_range(task.block)[1]
        for task in tasks
        for planes in task.planes
    )
    limit = work.max_bad_fraction * work.rows
    bad = _bad_keys(work, folders)
    done = blocks = 0
    with reporter.task(work.title, total=forwards, unit="img") as progress:
        for result in run_blocks(job, tasks, workers, stop):
            done += units[result.block]
            blocks += 1
            if blocks % FOLD_EVERY == 0:
                _fold(work, folders)
            progress.advance(result.forwards)
            bad |= {row.key for row in result.bad}
            if bad:
                progress.note(f"{len(bad)} unusable rows")
            if len(bad) > limit:
                break
    if len(bad) > limit:
        ledgers = ", ".join(f.store.describe(LEDGER) for f in folders)
        raise StageError(
            f"{len(bad):,} of {work.rows:,} rows of {work.dataset.manifest.name} cannot be used "
            f"(limit {work.max_bad_fraction:.2%}, samples.max_bad_fraction).",
            f"Which and why: {ledgers}. Mend the data, or raise the limit and run the same command again.",
        )
    return done


def _bad_keys(work: ExtractPass, folders: Sequence[FeatureFolder]) -> set[str]:
    return {
        row.key
        for folder, (need, _) in zip(folders, work.jobs, strict=True)
        for view, token in need.planes()
        for record in folder.records(view, token).values()
        if record.block < work.blocks
        for row in record.bad
    }
