"""One student from start to finish: freeze its inputs, train or resume, export, and point its name to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from pipeline.cache.reader import FeatureCache
from pipeline.encoders.export import export_student
from pipeline.engine import pick_device
from pipeline.executors import usable_cores
from pipeline.inventory import finished_student
from pipeline.pointers import point
from pipeline.progress import Reporter, human_bytes
from pipeline.samples.dataset import Dataset
from pipeline.samples.images import decode_image
from pipeline.stopping import Stop
from pipeline.storage import LocalStore
from pipeline.students import student_folder
from pipeline.views.probes import check_probes, read_probes
from schemas.base import digest_of
from schemas.config import DistillConfig
from schemas.errors import StageError
from schemas.features import StatisticsDocument
from schemas.students import ExportManifest, StudentDefinition
from stages.distill.checkpoints import Checkpoints
from stages.distill.frozen import freeze
from stages.distill.images import StudentImages
from stages.distill.loader import Loader
from stages.distill.loop import Data, Training
from stages.distill.model import Distiller
from stages.distill.rows import trained_tokens, usable_rows
from stages.distill.targets import BlockWindow, TargetReader

EXPORT = "export/"
MAX_READERS = 8
"""Threads that decode images and blocks."""


@dataclass(frozen=True)
class Source:
    """Samples, and every teacher's features of them."""

    dataset: Dataset
    caches: Mapping[str, FeatureCache]


@dataclass(frozen=True)
class DistillOutcome:
    """How a call ended: `finished` now, `already` finished before, or `stopped` on request."""

    folder: Path
    digest: str
    state: Literal["finished", "already", "stopped"]
    step: int
    steps: int


def distill(
    name: str,
    definition: StudentDefinition,
    training: Source,
    validation: Source | None,
    *,
    workdir: Path,
    settings: DistillConfig,
    device: str,
    reporter: Reporter,
    stop: Stop,
) -> DistillOutcome:
    """Train and export a student, from its last checkpoint if there is one. A finished student is never touched.

    Args:
        name: the student's name; its folder is `students/<name>-<8 digits>`, and `students/<name>` will point to it.
        definition: from `pipeline.students.student_definition`.
        training: the training samples, and a cache for every teacher of the definition.
        validation: samples and centre-crop features for the validation loss.
        workdir: the working folder.
        settings: what does not change the weights.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        reporter: shows progress.
        stop: polled between steps; a stop writes a checkpoint first.

    Raises:
        UserError: a configuration that cannot be trained.
        StageError: incomplete or damaged features, short memory, a diverged loss.
    """
    folder = student_folder(workdir, name, definition)
    done = finished_student(name, folder)
    if done is not None:
        point(folder.parent, name, folder.name)
        reporter.say(f"Student {name} is finished ({folder.relative_to(workdir)}); nothing to do.")
        return DistillOutcome(folder, done.manifest.digest, "already", done.export.step, done.manifest.steps)
    store = LocalStore(folder)
    store.sweep()
    _check_views(training, definition, reporter)
    rows_N = usable_rows(
        training.dataset, training.caches, definition.views, trained_tokens(definition.config), definition.blocks
    )
    frozen = freeze(store, name, definition, training.caches, rows_N)
    checkpoints = Checkpoints(
        store, frozen.manifest.digest, frozen.manifest.rows_digest, settings.keep_checkpoints, reporter.say
    )
    work = _Work(name, definition, torch.device(pick_device(device)), settings, checkpoints)
    with _memory_words(name), _torch_threads(work), ThreadPoolExecutor(min(usable_cores(), MAX_READERS)) as pool:
        run = work.build(training, validation, rows_N, frozen.statistics, pool)
        step = run.run(reporter, stop)
    if step < run.steps:
        return DistillOutcome(folder, frozen.manifest.digest, "stopped", step, run.steps)
    _export(store, definition, run)
    point(folder.parent, name, folder.name)
    return DistillOutcome(folder, frozen.manifest.digest, "finished", step, run.steps)


@dataclass(frozen=True)
class _Work:
    """Puts the parts of a training together."""

    name: str
    definition: StudentDefinition
    device: torch.device
    settings: DistillConfig
    checkpoints: Checkpoints

    def build(
        self,
        training: Source,
        validation: Source | None,
        rows_N: NDArray[np.int64],
        statistics: Mapping[str, StatisticsDocument] | None,
        pool: Executor,
    ) -> Training:
        config = self.definition.config
        model = Distiller(config, self.definition.teachers, self.device)
        # Every stream reads from up to `window_blocks` at a time, and one more arrives while one more is leaving.
        window = min(config.streams * (config.window_blocks + 2), self.definition.blocks * self.definition.views)
        self._check_memory(training, window)
        data = self._data(training, rows_N, self.definition.views, window, statistics, pool, model)
        validation_data = None
        if validation is not None:
            dataset = validation.dataset
            usable = usable_rows(dataset, validation.caches, 1, trained_tokens(config), dataset.blocks)
            if len(usable):
                validation_data = self._data(validation, usable, 1, 4, statistics, pool, model)
        return Training(
            self.name,
            model,
            data,
            validation_data,
            block_rows=training.dataset.block_rows,
            views=self.definition.views,
            checkpoints=self.checkpoints,
            distill=self.settings,
        )

    def _data(
        self,
        source: Source,
        rows_N: NDArray[np.int64],
        views: int,
        window: int,
        statistics: Mapping[str, StatisticsDocument] | None,
        pool: Executor,
        model: Distiller,
    ) -> Data:
        config = self.definition.config
        first = next(iter(source.caches.values())).definition
        images = StudentImages(source.dataset, first.recipe, first.view_seed, config.image_size, views, rows_N)
        tokens = trained_tokens(config)
        blocks = BlockWindow(source.caches, pool, window * len(tokens) * len(source.caches))
        loader = Loader(
            images=images,
            targets=TargetReader(blocks, tokens, statistics, source.dataset.block_rows),
            pool=pool,
            seed=config.seed,
            teachers=len(source.caches),
            branches=len(model.student.drop_paths),
            pin=self.device.type == "cuda",
        )
        return Data(loader, rows_N)

    def _check_memory(self, training: Source, window: int) -> None:
        tokens = trained_tokens(self.definition.config)
        row_bytes = 0
        for cache in training.caches.values():
            encoder, codec = cache.definition.encoder, cache.definition.codec.name
            values = {"cls": encoder.cls_dim, "patch": encoder.grid[0] * encoder.grid[1] * encoder.patch_dim}
            row_bytes += sum(values[token] for token in tokens) * (2 if codec == "float16" else 1)
        needed, free = window * training.dataset.block_rows * row_bytes, psutil.virtual_memory().available
        if needed > free:
            raise StageError(
                f"The shuffle window of student {self.name} needs {human_bytes(needed)} of memory; "
                f"{human_bytes(free)} are free.",
                f"Set students.{self.name}.window_blocks or streams lower, or cache.codec: int8.",
            )


def _check_views(training: Source, definition: StudentDefinition, reporter: Reporter) -> None:
    """Views must still render as they did when the features were extracted (R7)."""
    for teacher, cache in training.caches.items():
        feature, store = cache.definition, cache.folder.store
        for view in range(definition.views):
            probes = read_probes(store, view)
            keys = {probe.key for probe in probes.probes} if probes is not None else set()
            images = _images_named(training.dataset, keys)
            size = feature.encoder.image_size
            remark = check_probes(store, feature.recipe, feature.view_seed, view, size, images)
            if remark is not None:
                reporter.say(f"{teacher}: {remark}")


def _images_named(dataset: Dataset, keys: set[str]) -> list[tuple[str, NDArray[np.uint8]]]:
    """Probe samples are the first readable ones of the dataset."""
    first, _ = dataset.block_range(0)
    rows = [first + offset for offset, key in enumerate(dataset.block_keys(0)) if key in keys]
    return [(dataset.key(row), decode_image(dataset.read(row))) for row in rows]


def _export(store: LocalStore, definition: StudentDefinition, run: Training) -> None:
    config = definition.config
    digests = export_student(
        store,
        run.model.student.vit,
        architecture=config.architecture,
        model_args=config.model_args,
        image_size=config.image_size,
        mean=config.mean,
        std=config.std,
        prefix=EXPORT,
    )
    manifest = ExportManifest(
        student=digest_of(definition), step=run.steps, weights=digests.weights, config=digests.config
    )
    store.put(f"{EXPORT}manifest.json", manifest.to_bytes())


@contextmanager
def _torch_threads(work: _Work) -> Iterator[None]:
    """A fixed number of threads on a CPU: sums, and so the weights' last bits, depend on it."""
    before = torch.get_num_threads()
    try:
        if work.device.type == "cpu":
            torch.set_num_threads(work.definition.config.threads)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _memory_words(name: str) -> Iterator[None]:
    """Say what to set when memory runs out."""
    try:
        yield
    except Exception as error:
        # The CPU's allocator raises a plain RuntimeError.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        raise StageError(
            f"Out of memory while training student {name}. Finished checkpoints are kept.",
            f"Set students.{name}.optimizer.batch lower, or a smaller ladder (ladder.hidden, ladder.last_hidden).",
        ) from error
