"""Bringing feature caches up to date: what is missing, whether it fits, and running it block by block."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unic_pipe.pipeline.cache.commit import prepare_view
from unic_pipe.pipeline.cache.ledger import write_ledger
from unic_pipe.pipeline.cache.losses import read_losses, write_losses
from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.extraction.blocks import BlockResult, BlockTask, EncoderJob, ExtractJob, Plane
from unic_pipe.pipeline.extraction.bottleneck import Waits
from unic_pipe.pipeline.extraction.calibrate import calibrate
from unic_pipe.pipeline.extraction.dtypes import native_dtypes, slow_dtypes
from unic_pipe.pipeline.extraction.executors import Executor, Threads
from unic_pipe.pipeline.extraction.parts import Part, parts_missing
from unic_pipe.pipeline.extraction.preflight import check_disk, check_time
from unic_pipe.pipeline.extraction.unusable import too_many, unusable_rows
from unic_pipe.pipeline.process.progress import Reporter, Task
from unic_pipe.pipeline.process.stopping import Stop, Stopped
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.images import decode_image
from unic_pipe.pipeline.samples.undecodable import DELETED, UndecodableImage
from unic_pipe.pipeline.storage import LocalStore, Store
from unic_pipe.pipeline.storage.locks import try_lock
from unic_pipe.pipeline.storage.pointers import point
from unic_pipe.pipeline.storage.writers import check_writers
from unic_pipe.pipeline.views.probes import check_probes, write_probes
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.features import FeatureManifest
from unic_pipe.schemas.recipes import Recipe

PROBE_SAMPLES = 2
"""Samples of each view whose rendering is kept, and compared before work goes on (R7)."""

SEEN_WITHIN_S = 90.0
"""Network file systems show what another machine has written after at most about a minute."""

FOLD_EVERY = 500
"""Blocks after which loose records are folded, so that a long run, or the one after a kill, reads few files."""


@dataclass(frozen=True)
class ExtractOptions:
    """How to run; none of it changes the bytes, except a forced batch, which is recorded."""

    device: str = "auto"
    executor: Executor = field(default_factory=Threads)
    """Who runs the blocks; whoever made it closes it."""
    part: Part | None = None
    """Only every n-th block: one of several runs that share the work."""
    force: bool = False
    """Start although the disk looks too small or the CPU too slow."""
    batch: int | None = None
    """A smaller batch than the definition's."""


@dataclass(frozen=True)
class Extraction:
    """Outcome: units done now, units done before, units wanted, and distinct rows that cannot be used.

    With `part`, `done` counts this part's, and `before` all that was there at the start.
    """

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
    Raises StageError: too little disk, too slow a CPU, too many unusable rows, views that render differently."""
    executor = options.executor
    check_writers(
        work.features, several=not isinstance(executor, Threads) or options.part is not None, reporter=reporter
    )
    folders = [_open_folder(work, need) for need, _ in work.jobs]
    batch = options.batch or work.jobs[0][0].definition.compute.batch
    try:
        for folder, (need, encoder) in zip(folders, work.jobs, strict=True):
            stop.check()
            calibrate(folder, work.dataset, need, encoder, options.device, batch, reporter, executor.call, stop)
    except Stopped:
        _, before, total = _missing(work, folders)
        return Extraction(0, before, total, 0)
    _prepare(work, folders)
    tasks, before, total = _missing(work, folders)
    mine = [task for task in tasks if options.part is None or options.part.has(task.block)]
    if not mine:
        if _finish(work, folders, options.part, reporter):
            for folder in folders:
                if read_losses(folder) is None:
                    write_losses(folder)
        return Extraction(0, before, total, len(_bad_rows(work, folders)))
    device = executor.device(options.device)
    _check_views(work, folders, reporter, executor, device)
    types = [(need.encoder, need.definition.compute.dtype) for need, _ in work.jobs]
    if remark := slow_dtypes(types, executor.call(native_dtypes, device), device):
        reporter.say(remark)
    if not options.force:
        _check_room(work, folders, mine, estimate_time=device == "cpu" and options.device == "auto")
    job = ExtractJob(
        dataset=work.dataset.store,
        roots=tuple(work.dataset.roots),
        encoders=tuple(
            EncoderJob(encoder, need, f.store) for (need, encoder), f in zip(work.jobs, folders, strict=True)
        ),
        device=device,
        batch=batch,
    )
    tally = _Tally(work, folders, mine, device, options)
    try:
        with _ends(work.workdir, folders) as from_the_end, reporter.task(work.title, tally.forwards, "img") as progress:
            # The parts of an array have no block in common.
            order = mine[::-1] if from_the_end and options.part is None else mine
            for result in executor.run(job, order, stop):
                tally.add(result, progress)
                if tally.too_many_bad:
                    break
        tally.finish(reporter)
    finally:
        last = _finish(work, folders, options.part, reporter)
    if last:
        for folder in folders:
            write_losses(folder)
    return Extraction(tally.done, before, total, len(_bad_rows(work, folders)))


def _check_room(
    work: ExtractPass, folders: Sequence[FeatureFolder], tasks: Sequence[BlockTask], estimate_time: bool
) -> None:
    check_disk(
        work.workdir, [(need, folder.store) for folder, (need, _) in zip(folders, work.jobs, strict=True)], work.rows
    )
    if estimate_time:
        check_time(work.jobs, [(t.planes, work.dataset.block_range(t.block)[1]) for t in tasks])


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
    images = probe_images(work.dataset)
    for folder, (need, _) in zip(folders, work.jobs, strict=True):
        for view in range(max(need.views.values())):
            write_probes(folder.store, *_probed(need, view), images)
        for view, token in need.planes():
            prepare_view(folder, view, token, work.dataset.manifest.end_row)


def _check_views(
    work: ExtractPass, folders: Sequence[FeatureFolder], reporter: Reporter, executor: Executor, device: str
) -> None:
    """Views must still render as they did when the first units were extracted (R7), here and on the device.

    The kept pictures are the CPU's. Those of a device may differ from them by rounding as a rule, so that goes unsaid.
    """
    images, deleted = probe_images(work.dataset), work.dataset.deleted_keys(0)
    for folder, (need, _) in zip(folders, work.jobs, strict=True):
        for view in range(max(need.views.values())):
            remark = check_probes(folder.store, *_probed(need, view), images, deleted=deleted)
            if remark:
                reporter.say(f"{need.name}: {remark}")
            if need.definition.compute.views == "device":
                executor.call(check_probes, folder.store, *_probed(need, view), images, device, deleted)


def _probed(need: FeatureNeed, view: int) -> tuple[Recipe, int, int, int]:
    definition = need.definition
    return definition.recipe, definition.view_seed, view, definition.encoder.image_size


def _finish(work: ExtractPass, folders: Sequence[FeatureFolder], part: Part | None, reporter: Reporter) -> bool:
    """Fold, and derive the ledger; a part says what the others have left to do. Whether this run is the last to end.

    A part folds only when nothing is missing any more: file locks may not reach other machines, and two that fold at
    once lose nothing only if no record is being added meanwhile.
    """
    if part is None:
        _fold(work, folders)
        return True
    tasks, there, total = _missing(work, folders)
    name = work.dataset.manifest.name
    if not tasks:
        _fold(work, folders)
        reporter.say(f"part {part} of {name}: all {total:,} units of all parts are there")
        return True
    for folder in folders:
        write_ledger(folder)
    others = parts_missing([task.block for task in tasks], part.of)
    reporter.say(
        f"part {part} of {name}: {total - there:,} of {total:,} units are still missing overall, in parts {others}"
    )
    return False


def _fold(work: ExtractPass, folders: Sequence[FeatureFolder]) -> None:
    """Fold the loose records, and derive the ledger from them."""
    for folder, (need, _) in zip(folders, work.jobs, strict=True):
        for view, token in need.planes():
            folder.fold(view, token)
        write_ledger(folder)


def probe_images(dataset: Dataset) -> list[tuple[str, np.ndarray]]:
    """The first decodable samples of the dataset, (key, uint8 (H, W, 3))."""
    found: list[tuple[str, np.ndarray]] = []
    first, count = dataset.block_range(0)
    for row in range(first, first + count):
        try:
            found.append((dataset.key(row), decode_image(dataset.read(row), dataset.manifest.decoding)))
        except UndecodableImage:
            continue
        if len(found) == PROBE_SAMPLES:
            break
    return found


def _missing(work: ExtractPass, folders: Sequence[FeatureFolder]) -> tuple[list[BlockTask], int, int]:
    """Tasks for the blocks that miss something, the number of units that are there, and of all."""
    wanted = work.dataset.block_digests(work.blocks)
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


class _Tally:
    """What the blocks of a run come to: units committed, rows that cannot be used, where the time went."""

    def __init__(
        self,
        work: ExtractPass,
        folders: Sequence[FeatureFolder],
        tasks: Sequence[BlockTask],
        device: str,
        options: ExtractOptions,
    ) -> None:
        self._work, self._folders, self._tasks, self._options = work, folders, tasks, options
        self._units = {task.block: sum(map(len, task.planes)) for task in tasks}
        self._bad = _bad_rows(work, folders)
        self._waits = Waits(device, options.executor)
        self.done = self._blocks = 0

    @property
    def forwards(self) -> int:
        """Forward passes of single images that are to be made."""
        return sum(
            len({view for view, _ in planes}) * self._work.dataset.block_range(task.block)[1]
            for task in self._tasks
            for planes in task.planes
        )

    @property
    def too_many_bad(self) -> bool:
        """Whether more rows cannot be used than the configuration allows."""
        faulty = sum(not reason.endswith(DELETED) for reason in self._bad.values())
        return faulty > self._work.max_bad_fraction * self._work.rows

    def add(self, result: BlockResult, progress: Task) -> None:
        """Count a finished block, and now and then fold the records."""
        if not self._blocks and self._options.executor.waits_in_line:
            _check_same_place(self._folders, self._tasks, result.block)
        self.done += self._units[result.block]
        self._blocks += 1
        if self._blocks % FOLD_EVERY == 0 and self._options.part is None:
            _fold(self._work, self._folders)
        progress.advance(result.forwards)
        self._bad |= {row.key: row.reason for row in result.bad}
        self._waits.add(result.seconds)
        unusable = f"{len(self._bad)} unusable rows" if self._bad else ""
        progress.note(" · ".join(filter(None, (self._waits.note(), unusable))))

    def finish(self, reporter: Reporter) -> None:
        """Say what limited. Raises StageError: too many rows cannot be used."""
        if remark := self._waits.remark():
            reporter.say(remark)
        if self.too_many_bad:
            work = self._work
            caches = [(folder, need) for folder, (need, _) in zip(self._folders, work.jobs, strict=True)]
            raise too_many(self._bad, work.rows, work.dataset.manifest.name, work.max_bad_fraction, caches, work.blocks)


def _check_same_place(folders: Sequence[FeatureFolder], tasks: Sequence[BlockTask], block: int) -> None:
    """What a worker on another machine has committed must appear in our folder (network disks may take a while)."""
    task = next(task for task in tasks if task.block == block)
    folder, planes = next((f, p) for f, p in zip(folders, task.planes, strict=True) if p)
    deadline = time.monotonic() + SEEN_WITHIN_S
    while folder.record(*planes[0], block) is None:
        if time.monotonic() > deadline:
            raise StageError(
                f"A worker committed block {block}, but not in {folder.store.location} as this machine sees it.",
                "The workers have another folder under the same path: put it on a file system that all machines share.",
            )
        time.sleep(0.2)


def _bad_rows(work: ExtractPass, folders: Sequence[FeatureFolder]) -> dict[str, str]:
    found: dict[str, str] = {}
    for folder, (need, _) in zip(folders, work.jobs, strict=True):
        found |= unusable_rows(folder, need, work.blocks)
    return found
