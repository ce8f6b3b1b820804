"""`bench`: measure extraction, distillation, live teachers, ladder and probe on the user's machine and samples.

Everything is measured in one run, in turns, in a folder that is removed afterwards.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.extraction.blocks import pick_device
from unic_pipe.pipeline.extraction.run import ExtractPass
from unic_pipe.pipeline.process.machine import Elsewhere, load_average, machine_name
from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.process.stopwatch import Stopwatch
from unic_pipe.pipeline.process.threads import usable_cores
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.storage.locks import exclusive
from unic_pipe.pipeline.workspace.classifiers import classifier_of
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.status import ready_teachers
from unic_pipe.pipeline.workspace.students import begun_now, student_teachers
from unic_pipe.schemas.bench import Against, BenchReport, BenchRow, Part, Resource
from unic_pipe.schemas.config import DistillConfig, EvaluateConfig, StudentConfig
from unic_pipe.schemas.errors import StageError, UserError, did_you_mean
from unic_pipe.schemas.students import StudentDefinition
from unic_pipe.stages.bench.against import against_extraction, against_probes, compared
from unic_pipe.stages.bench.bounds import bound_of, rows_of, with_shares
from unic_pipe.stages.bench.extraction import PIECES, ExtractBench, watch_for

FOLDER = "bench.tmp"
"""Beside `runs/`; one bench at a time uses it, and removes what a killed one left."""
SECONDS, QUICK_SECONDS = 6.0, 1.5
"""What one repetition of a stage should take: enough blocks and steps are chosen."""
QUICK_REPEATS = 2
BUSY = 0.1
"""Share of the cores that other programs take while this measures, from which on the report warns."""


class StudentTrial(Protocol):
    """A student to be timed; see `stages.distill.measure.bench`."""

    steps: int
    batch: int

    @property
    def images(self) -> int:
        """Images of a repetition."""

    def prepare(self, seconds: float) -> None:
        """Run everything once, and choose the number of steps."""

    def lap(self, watch: Stopwatch) -> None:
        """One repetition."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True)
class Parts:
    """What other stages lend: they do not import each other."""

    student: Callable[..., StudentTrial]
    """Makes a trial; arguments as of `stages.distill.measure.bench.StudentBench`."""
    student_pieces: Mapping[str, Resource]
    fit_probe: Callable[[NDArray[np.float32], NDArray[np.int64]], None]
    search_probe: Callable[[NDArray[np.float32], NDArray[np.int64], EvaluateConfig, str], None]
    """Chooses among all C, and fits with the best."""


@dataclass(frozen=True)
class BenchOptions:
    """How to measure."""

    device: str = "auto"
    student: str | None = None
    repeats: int = 5
    quick: bool = False
    against: bool = False
    """Also run what one would write instead, in turns."""


def chosen_student(inventory: Inventory, name: str | None) -> str | None:
    """The named student, else the first configured; None where none is configured.
    Raises UserError: no such student."""
    students = inventory.config.students
    if name is not None and name not in students:
        raise UserError(
            f"No student is named {name!r}{did_you_mean(name, list(students))}", "Choose one that is under students:."
        )
    return name or next(iter(students), None)


def measured_dataset(inventory: Inventory, student: str | None) -> str:
    """The student's training set, of a mixture the first; without a student, the first dataset."""
    config = inventory.config
    return next(iter(config.students[student].datasets if student is not None else config.samples.datasets))


def bench(
    inventory: Inventory, options: BenchOptions, parts: Parts, reporter: Reporter, stop: Stop
) -> BenchReport | None:
    """Measure, with the dataset indexed; None when a stop was requested.

    Raises:
        UserError: no teachers or no such student, or a teacher's weights are missing.
        StageError: samples cannot be read, another bench runs here.
    """
    device, cores, load = pick_device(options.device), usable_cores(), load_average()
    student = chosen_student(inventory, options.student)
    dataset = inventory.dataset(measured_dataset(inventory, student)).dataset
    if dataset is None:
        raise StageError("The samples are not indexed.", "Run: unic-pipe index")
    repeats = min(options.repeats, QUICK_REPEATS) if options.quick else options.repeats
    seconds = QUICK_SECONDS if options.quick else SECONDS
    with exclusive(inventory.folder / "runs" / "bench.lock", "A bench"), _workplace(inventory.folder) as folder:
        run = _Run(
            inventory, dataset, student, device, cores, repeats, seconds, folder, reporter, stop, options.against
        )
        elsewhere = Elsewhere()
        features = run.extraction()
        if student is not None and not stop.requested:
            run.student(student, features, parts)
        elif student is None:
            run.notes.append("No student is configured: distillation was not measured.")
        if not stop.requested:
            run.probe(features, parts)
        busy = elsewhere.cores()
    if stop.requested:
        return None
    if busy > BUSY * cores:
        run.notes.append(
            f"Other programs kept {busy:.1f} of {cores} cores busy meanwhile, so walls are too long and ratios too low; "
            "CPU times, and what they say of each other, suffer less."
        )
    return _report(run, load, busy)


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    path = folder / FOLDER
    shutil.rmtree(path, ignore_errors=True)
    try:
        path.mkdir()
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@dataclass
class _Run:
    """One run: what every part needs, and what was found."""

    inventory: Inventory
    dataset: Dataset
    student_name: str | None
    device: str
    cores: int
    repeats: int
    seconds: float
    folder: Path
    reporter: Reporter
    stop: Stop
    beside: bool
    rows: list[BenchRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    against: list[Against] = field(default_factory=list)
    threads: dict[str, int] = field(default_factory=dict)

    def extraction(self) -> dict[str, Path]:
        """Measure extraction; every teacher's features of the measured blocks."""
        inventory = self.inventory
        teachers = (
            student_teachers(inventory.config, self.student_name)
            if self.student_name is not None
            else ready_teachers(inventory)[0]
        )
        needs = inventory.training_needs(teachers, self.dataset.manifest.name)
        if not needs:
            raise UserError("There is nothing to measure: no teacher is configured.", "Name some under teachers:.")
        work = ExtractPass(
            workdir=self.folder,
            features=LocalStore(self.folder / "features"),
            dataset=self.dataset,
            jobs=[(need, inventory.teacher(need.encoder)) for need in needs],
            blocks=inventory.block_limit(self.dataset),
            max_bad_fraction=1.0,
            title="bench",
        )
        self.reporter.say(f"extract: {', '.join(teachers)} over {self.dataset.manifest.name}, first everything once")
        trial = ExtractBench(work, self.folder, self.device, self.stop)
        trial.prepare(self.cores, self.seconds, self.reporter)
        watch = watch_for(self.device)
        self._repeat("extract", watch, trial.lap, trial.forwards)
        self.threads["extract"] = needs[0].definition.compute.threads
        note = f"{trial.images:,} images, {trial.forwards:,} forward passes"
        if not self.stop.requested:
            self.rows += rows_of("extract", watch, trial.forwards, PIECES, {"wall": note})
        self.blocks = trial.dataset_pass.blocks
        if self.beside and not self.stop.requested:
            self.reporter.say("extract: in turns with a plain loop")
            self.against += against_extraction(trial, self.repeats, self.stop)
        return {need.encoder: need.folder(trial.last) for need in needs}

    def student(self, name: str, features: Mapping[str, Path], parts: Parts) -> None:
        """Measure a student's steps from the features that were just extracted, and with live teachers."""
        definition = self.inventory.student_definition(name)
        assert definition is not None, "the dataset is indexed"
        config, settings = self._as_measured(name, definition)
        one_view = {
            "config": config,
            "mixed": (),
            "teachers": tuple(teacher for teacher in definition.teachers if teacher.name in features),
            "blocks": self.blocks,
            "views": 1,
            "patch_views": None,
            "patch_every": None,
        }
        self.reporter.say(f"distill: student {name}, first everything once")
        trial = parts.student(
            label=name,
            definition=definition.model_copy(update=one_view),
            dataset=self.dataset,
            features=features,
            teachers={teacher: self.inventory.teacher(teacher) for teacher in features},
            device=self.device,
            folder=self.folder / "students",
            stop=self.stop,
            classifier=classifier_of(self.inventory, definition.config.loss),
            settings=settings,
        )
        with closing(trial):
            trial.prepare(self.seconds)
            watch = Stopwatch(device=self.device)
            self._repeat("distill", watch, trial.lap, trial.images)
            if self.stop.requested:
                return
            self.threads["distill"] = config.threads
            rows = rows_of("distill", watch, trial.images, parts.student_pieces)
            self.rows += _sorted_out(rows, f"{trial.steps} steps of {trial.batch} images")
            if self.beside:
                self.against += compared("distill", watch, "wall", ["live"], trial.images)
            if trial.batch != config.optimizer.batch:
                self.notes.append(
                    f"Steps of {trial.batch} images were measured; the student is trained with {config.optimizer.batch}."
                )

    def _as_measured(self, name: str, definition: StudentDefinition) -> tuple[StudentConfig, DistillConfig]:
        """A student and how it trains, as far as its steps are measured; what is left out is noted."""
        config = begun_now(definition.config, self.inventory.config.distill)
        settings = self.inventory.config.distill
        if settings.compile == "auto":
            settings = settings.model_copy(update={"compile": False})
            self.notes.append("distill.compile: auto is decided when a training begins; plain steps were measured.")
        if settings.micro_batch is not None and settings.micro_batch < config.optimizer.batch:
            self.notes.append(f"Steps of whole batches were measured, not in parts of {settings.micro_batch} images.")
        if config.image_sizes is not None:
            config = config.model_copy(update={"image_sizes": None})
            self.notes.append(f"Student {name} is trained at several image sizes; {config.image_size} was measured.")
        if definition.mixed:
            first = self.dataset.manifest.name
            config = config.model_copy(update={"dataset": first})
            self.notes.append(f"Student {name} is trained on a mixture; steps of {first} alone were measured.")
        return config, settings

    def probe(self, features: Mapping[str, Path], parts: Parts) -> None:
        """Measure one fit of a linear probe on the first teacher's features."""
        if not self.dataset.manifest.labelled:
            self.notes.append("The samples have no labels: no probe was fitted.")
            return
        cache, labels_N = FeatureCache.open(next(iter(features.values()))), self.dataset.labels()
        x_ND, chosen_N = _labelled(cache, self.dataset, labels_N, self.blocks)
        if len(np.unique(chosen_N)) < 2:
            self.notes.append("The measured samples are of one class: no probe was fitted.")
            return
        watch = Stopwatch(device=self.device)

        def fit(watch: Stopwatch) -> None:
            with watch.time("fit"):
                parts.fit_probe(x_ND, chosen_N)

        self._repeat("probe", watch, fit, len(x_ND))
        if not self.stop.requested:
            classes = len(np.unique(chosen_N))
            note = f"logistic regression, {x_ND.shape[1]} dimensions, {classes} classes, C = 1"
            self.rows += rows_of("probe", watch, len(x_ND), {}, {"fit": note})
        if self.beside and not self.stop.requested:
            self.reporter.say("probe: in turns with others")
            settings = self.inventory.config.evaluate

            def search() -> None:
                parts.search_probe(x_ND, chosen_N, settings, self.device)

            self.against += against_probes(x_ND, chosen_N, search, self.device, self.repeats, self.stop)

    def _repeat(self, title: str, watch: Stopwatch, lap: Callable[[Stopwatch], object], images: int) -> None:
        with self.reporter.task(f"bench {title}", self.repeats * images) as task:
            for _ in range(self.repeats):
                if self.stop.requested:
                    return
                watch.begin()
                lap(watch)
                task.advance(images)


def _labelled(
    cache: FeatureCache, dataset: Dataset, labels_N: NDArray[np.int64], blocks: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`cls` features (N, D) and labels of the usable rows of the measured blocks."""
    by_row = np.full(dataset.manifest.end_row, -1, np.int64)
    by_row[dataset.rows()] = labels_N
    values, labels = [], []
    for number in range(blocks):
        first, count = dataset.block_range(number)
        block = cache.read_block(0, "cls", number)
        usable_N = block.valid & (by_row[first : first + count] >= 0)
        values.append(block.values[usable_N])
        labels.append(by_row[first : first + count][usable_N])
    return np.concatenate(values), np.concatenate(labels)


def _sorted_out(rows: Sequence[BenchRow], note: str) -> list[BenchRow]:
    """The student's rows, each under the part that it belongs to."""
    places = {
        "live": ("live", "wall", note),
        "teachers": ("live", "teachers", "forward passes alone, as a step with live teachers makes them"),
        "ladder": ("ladder", "wall", "forward and backward; a part of the student step"),
        "ladder products": ("ladder", "products", "its matrix products alone"),
    }
    found = []
    for row in rows:
        part, name, text = places.get(row.name, ("distill", row.name, note if row.name == "wall" else ""))
        found.append(row.model_copy(update={"part": part, "name": name, "note": text}))
    return found


def _report(run: _Run, load: float, busy: float) -> BenchReport:
    on_gpu = run.device != "cpu"
    # Extraction works on several blocks at once; a training's steps come one behind the other.
    threads: dict[Part, int | None] = {"extract": None, "distill": run.threads.get("distill")}
    found = (bound_of(part, run.rows, run.cores, on_gpu, few) for part, few in threads.items())
    bounds = [bound for bound in found if bound is not None]
    ratio: dict[str, float] = {bound.part: bound.ratio for bound in bounds}
    seconds = {(row.part, row.name): row.seconds for row in run.rows}
    live, step = seconds.get(("live", "wall")), seconds.get(("distill", "student step"))
    return BenchReport(
        device=run.device,
        machine=machine_name(run.device),
        cores=run.cores,
        repeats=run.repeats,
        threads=run.threads,
        load=load,
        others_cores=busy,
        extract_ratio=ratio.get("extract"),
        distill_ratio=ratio.get("distill"),
        live_speedup=live / seconds["distill", "wall"] if live is not None else None,
        live_bound=1 + seconds["live", "teachers"] / step if step is not None else None,
        bounds=tuple(bounds),
        rows=tuple(with_shares(run.rows, on_gpu)),
        against=tuple(run.against),
        notes=tuple(run.notes),
    )
