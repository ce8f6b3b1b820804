"""Which probes an evaluation consists of: every benchmark × encoder × probe, with the features each one needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.benchmarks.imagenet import counted_as
from pipeline.encoders import ResolvedEncoder
from pipeline.evaluations import Probe, probes_of, result_definition
from pipeline.features import FeatureNeed
from pipeline.inventory import Inventory
from pipeline.samples.dataset import Dataset
from schemas.benchmarks import SOURCE, cards
from schemas.chains import named_student
from schemas.errors import UserError
from schemas.evaluations import ResultDefinition

Role = Literal["teacher", "student", "baseline", "encoder"]


@dataclass(frozen=True)
class ProbePlan:
    """One probe to compute: what it is made from and where its features come from."""

    benchmark: str
    note: str
    encoder: ResolvedEncoder
    role: Role
    probe: Probe
    definition: ResultDefinition
    train: tuple[FeatureNeed, Dataset]
    test: tuple[FeatureNeed, Dataset]
    asked: tuple[int, ...] | None = None
    """For each class number of the training set the test class that it counts as (-1: it is not asked), where a
    benchmark is tested with another's probe."""


@dataclass(frozen=True)
class Pair:
    """A benchmark's datasets, indexed and fit to be used."""

    train: Dataset
    test: Dataset
    asked: tuple[int, ...] | None


def benchmark_pairs(inventory: Inventory) -> tuple[dict[str, Pair], dict[str, str]]:
    """The benchmarks that can be run now, and why the others cannot: not indexed, data missing, other data than the name
    promises."""
    pairs: dict[str, Pair] = {}
    skipped: dict[str, str] = {}
    for name, benchmark in inventory.config.evaluate.benchmarks.items():
        views = inventory.dataset(benchmark.train), inventory.dataset(benchmark.test)
        train, test = (view.dataset for view in views)
        if train is None or test is None:
            skipped[name] = next(view.reason for view in views if view.dataset is None)
            continue
        try:
            pairs[name] = Pair(train, test, _check(name, train, test))
        except UserError as error:
            skipped[name] = error.message
    return pairs, skipped


def _check(name: str, train: Dataset, test: Dataset) -> tuple[int, ...] | None:
    """Compare the user's datasets with what the benchmark's name promises; which classes count as which, in a transfer.

    Raises:
        UserError: another number of images, classes that cannot be matched.
    """
    card = cards().get(name)
    if card is None:
        return None
    expected = cards()[SOURCE].train if card.kind == "transfer" else card.train
    for dataset, count in ((train, expected), (test, card.test)):
        if count is not None and dataset.manifest.rows != count:
            raise UserError(
                f"benchmark {name} has {count:,} images where dataset {dataset.manifest.name} has "
                f"{dataset.manifest.rows:,}: a part of it, or another split.",
                "Give the benchmark another name: evaluate.benchmarks.NAME: {train: DATASET, test: DATASET}",
            )
    return counted_as(train.manifest, test.manifest) if card.kind == "transfer" else None


def probe_plans(inventory: Inventory) -> tuple[list[ProbePlan], list[str]]:
    """All probes that can be planned now, and the encoders that are still waited for (`students/main`).

    Raises:
        UserError: a teacher's weights are missing.
    """
    encoders, waiting = evaluated_encoders(inventory)
    plans = []
    for name, pair in benchmark_pairs(inventory)[0].items():
        for encoder, role in encoders:
            needs = inventory.probe_need(pair.train, encoder), inventory.probe_need(pair.test, encoder)
            for probe in probes_of(inventory.config.evaluate, name):
                definition = result_definition(
                    inventory.config.evaluate,
                    probe,
                    train=pair.train.manifest,
                    test=pair.test.manifest,
                    features_train=needs[0].digest,
                    features_test=needs[1].digest,
                    encoder=encoder.digest,
                    asked=pair.asked,
                )
                sources = (needs[0], pair.train), (needs[1], pair.test)
                note = inventory.config.evaluate.benchmarks[name].note
                plans.append(ProbePlan(name, note, encoder, role, probe, definition, *sources, pair.asked))
    return plans, waiting


def evaluated_encoders(inventory: Inventory) -> tuple[list[tuple[ResolvedEncoder, Role]], list[str]]:
    """Finished students, teachers, and each configured student's architecture at random initialisation,
    and the encoders of `evaluate`."""
    config = inventory.config
    finished = inventory.finished_students
    found: list[tuple[ResolvedEncoder, Role]] = [(inventory.student_encoder(s), "student") for s in finished.values()]
    # A student that teaches is there as a student.
    found += [(inventory.teacher(n), "teacher") for n, e in config.teachers.items() if named_student(e.encoder) is None]
    if config.evaluate.baseline:
        found += [(inventory.baseline(name, student), "baseline") for name, student in config.students.items()]
    taken: dict[str, Role] = {encoder.name: role for encoder, role in found}
    for name, encoder in config.evaluate.encoders.items():
        if name in {*taken, *config.students}:
            raise UserError(
                f"Encoder {name} cannot be evaluated under this name: a {taken.get(name, 'student')} has it.",
                f"Give it another one: --encoder OTHER=FILE, or under evaluate.encoders in {inventory.workspace.file.name}.",
            )
        found.append((inventory.encoder(name, encoder), "encoder"))
    wanted = [inventory.student_name(name) for name in config.students]
    return found, [f"students/{name}" for name in wanted if name not in finished]
