"""Which results beside the probes an evaluation consists of: zero-shot classification, and dense protocols. No torch here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.dense import maps_digest
from pipeline.encoders import ResolvedEncoder
from pipeline.encoders.official_names import LADDER_FILE, TEACHERS
from pipeline.evaluations import benchmark_digest
from pipeline.features import FeatureNeed, center_need, compute_definition
from pipeline.finished import FinishedStudent, last_entry
from pipeline.inventory import Inventory
from pipeline.probing import Role, evaluated_encoders
from pipeline.samples.dataset import Dataset
from pipeline.storage import LocalStore, sha256_of_file
from pipeline.texts import texts_digest
from schemas.base import canonical_json
from schemas.benchmarks import cards
from schemas.chains import named_student
from schemas.errors import UnicPipeError, UserError
from schemas.evaluations import ResultDefinition
from schemas.protocols import DenseConfig, DenseProbe, ZeroShotConfig
from schemas.recipes import CENTER

ZERO_SHOT = "zero-shot/1"
"""Version of the protocol; results of different versions are never compared."""
DENSE: dict[DenseProbe, str] = {
    "segmentation": "segmentation-linear/1",
    "in-context": "segmentation-in-context/1",
    "depth": "depth-linear/1",
}
"""Versions of the dense protocols."""


@dataclass(frozen=True)
class OtherPlan:
    """One result to compute that is no probe of labelled images."""

    benchmark: str
    note: str
    encoder: ResolvedEncoder
    role: Role
    definition: ResultDefinition
    needs: tuple[tuple[FeatureNeed, Dataset], ...]
    """Features that come through the cache."""
    datasets: tuple[Dataset, ...]
    """The test set, or training set and test set."""
    ladder: FinishedStudent | Path | None = None
    """Whose ladder predicts the teacher's features: a student of ours, or the folder of an imported one."""


@dataclass
class OtherPlans:
    """What can be computed now, what is waited for, and what was left out."""

    plans: list[OtherPlan] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """`students/NAME`, once for every result that it would have."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Benchmarks that cannot be run, and why."""


def other_plans(inventory: Inventory) -> OtherPlans:
    """All results that are configured beside the benchmarks.

    Raises:
        UserError: a student's export is not what training left.
    """
    found = OtherPlans()
    for name, config in inventory.config.evaluate.zero_shot.items():
        view = inventory.dataset(config.test)
        if view.dataset is None:
            found.skipped[name] = view.reason
            continue
        try:
            found.plans += _zero_shot(inventory, name, config, view.dataset)
        except UnicPipeError as error:
            found.skipped[name] = error.message
            continue
        found.waiting += _unfinished(inventory, config.teacher)
    for name, dense in inventory.config.evaluate.dense.items():
        views = inventory.dataset(dense.train), inventory.dataset(dense.test)
        train, test = (view.dataset for view in views)
        if train is None or test is None:
            found.skipped[name] = next(view.reason for view in views if view.dataset is None)
            continue
        try:
            plans, waiting = _dense(inventory, name, dense, train, test)
        except UnicPipeError as error:
            found.skipped[name] = error.message
            continue
        found.plans += plans
        found.waiting += waiting * len(dense.protocols)
    return found


def other_datasets(inventory: Inventory) -> set[str]:
    """Datasets that these evaluations read."""
    config = inventory.config.evaluate
    return {z.test for z in config.zero_shot.values()} | {n for d in config.dense.values() for n in (d.train, d.test)}


def _unfinished(inventory: Inventory, teacher: str) -> list[str]:
    """Students that are to learn from a teacher, and are not finished."""
    students = inventory.config.students.items()
    labels = [inventory.student_name(n) for n, s in students if s.teachers is None or teacher in s.teachers]
    return [f"students/{label}" for label in labels if label not in inventory.finished_students]


def _zero_shot(inventory: Inventory, name: str, config: ZeroShotConfig, test: Dataset) -> list[OtherPlan]:
    """The students of the teacher, imported ones that have a ladder to it, and the teacher itself.

    Raises:
        UnicPipeError: no weights, no file of classes.
    """
    texts, teacher = texts_digest(config, inventory.folder), inventory.teacher(config.teacher)
    need = inventory.probe_need(test, teacher)
    plans = []
    for encoder, role, ladder, digest in _predicting(inventory, config.teacher):
        made = {"ladder": digest, "teacher": config.teacher, "recipe": CENTER.model_dump(mode="json")}
        made["compute"] = compute_definition(inventory.config.compute, CENTER).model_dump(mode="json")
        made |= {"encoder": encoder.digest, "dataset": test.digest}
        definition = _zero_shot_definition(texts, test, teacher.digest, _sha256(made), encoder)
        plans.append(OtherPlan(name, config.note, encoder, role, definition, (), (test,), ladder))
    # A student that teaches is there as a student.
    role = "student" if named_student(inventory.config.teachers[config.teacher].encoder) else "teacher"
    definition = _zero_shot_definition(texts, test, teacher.digest, need.digest, teacher)
    return [*plans, OtherPlan(name, config.note, teacher, role, definition, ((need, test),), (test,))]


def _zero_shot_definition(
    texts: str, test: Dataset, teacher: str, features: str, encoder: ResolvedEncoder
) -> ResultDefinition:
    return _definition("zero-shot", ZERO_SHOT, (texts, benchmark_digest(test.manifest)), (teacher, features), encoder)


def _dense(
    inventory: Inventory, name: str, config: DenseConfig, train: Dataset, test: Dataset
) -> tuple[list[OtherPlan], list[str]]:
    """Every encoder with every protocol of a dense benchmark, and the students that are waited for.

    Raises:
        UnicPipeError: no label maps, another number of images than the benchmark of this name has, no weights.
    """
    _check_counts(name, train, test)
    memory = LocalStore(inventory.folder / "runs")
    maps = [maps_digest(inventory.folder / place, memory) for place in (config.train_labels, config.test_labels)]
    sides = _sha256([benchmark_digest(train.manifest), maps[0]]), _sha256([benchmark_digest(test.manifest), maps[1]])
    encoders, waiting = evaluated_encoders(inventory)
    plans = []
    for encoder, role in encoders:
        needs = [
            center_need(inventory.config, d.manifest, encoder.name, encoder.definition, ("cls", "patch"))
            for d in (train, test)
        ]
        digests = needs[0].digest, needs[1].digest
        for probe in config.protocols:
            definition = _definition(
                probe, DENSE[probe], sides, digests, encoder, dense_settings(config, probe), config.seed
            )
            pairs = (needs[0], train), (needs[1], test)
            plans.append(OtherPlan(name, config.note, encoder, role, definition, pairs, (train, test)))
    return plans, waiting


def dense_settings(config: DenseConfig, probe: DenseProbe) -> dict[str, tuple[float, ...] | float | int | str]:
    """The part of the configuration that a dense result depends on."""
    common: dict[str, tuple[float, ...] | float | int | str] = {"pixels": config.pixels}
    if probe == "depth":
        common |= {"metres": config.metres, "max_depth": config.max_depth}
    else:
        common |= {"classes": config.classes or 0, "first_class": config.first_class}
    if probe == "in-context":
        return common | {"memory": config.memory, "k": config.k, "temperature": config.temperature}
    return common | {"steps": config.steps, "batch": config.batch, "lr": config.lr}


def _check_counts(name: str, train: Dataset, test: Dataset) -> None:
    """Compare with what the benchmark of this name promises.

    Raises:
        UserError: another number of images.
    """
    card = cards().get(name)
    for dataset, count in ((train, card.train), (test, card.test)) if card is not None else ():
        if count is not None and dataset.manifest.rows != count:
            raise UserError(
                f"benchmark {name} has {count:,} images where dataset {dataset.manifest.name} has "
                f"{dataset.manifest.rows:,}: a part of it, or another split.",
                "Give it another name under evaluate.dense.",
            )


def _definition(
    probe: Literal["zero-shot", "segmentation", "in-context", "depth"],
    protocol: str,
    benchmark: tuple[str, str],
    features: tuple[str, str],
    encoder: ResolvedEncoder,
    settings: dict[str, tuple[float, ...] | float | int | str] | None = None,
    seed: int = 0,
) -> ResultDefinition:
    """What a result is made from. Of zero-shot, the text embeddings stand in the training set's place, and the teacher,
    whose projection is used, in that of its features."""
    return ResultDefinition(
        protocol=protocol,
        benchmark_train=benchmark[0],
        benchmark_test=benchmark[1],
        features_train=features[0],
        features_test=features[1],
        encoder=encoder.digest,
        probe=probe,
        settings=settings or {},
        seed=seed,
    )


def _predicting(
    inventory: Inventory, teacher: str
) -> Iterator[tuple[ResolvedEncoder, Role, FinishedStudent | Path, str]]:
    """Encoders with a ladder to a teacher's cls feature, where it is, and its digest."""
    for student in inventory.finished_students.values():
        definition = student.manifest.definition
        if definition.config.loss.tokens != "patch" and teacher in {t.name for t in definition.teachers}:
            yield inventory.student_encoder(student), "student", student, last_entry(student).digest
    for name, config in inventory.config.evaluate.encoders.items():
        encoder = inventory.encoder(name, config)
        file = encoder.weights_path.parent / LADDER_FILE if encoder.weights_path is not None else None
        if file is not None and file.is_file() and teacher in _imported_teachers(file):
            yield encoder, "encoder", file.parent, sha256_of_file(file)


def _imported_teachers(file: Path) -> set[str]:
    """Teachers that an imported ladder knows, by the official code's names and by ours."""
    from safetensors import safe_open

    with safe_open(file, framework="np") as tensors:
        keys = [key.removeprefix("ladder.") for key in tensors.keys() if key.startswith("ladder.")]  # noqa: SIM118
    official = {key.rsplit(".", 5)[0] for key in keys if ".cls." in key}
    return official | {ours for ours, theirs in TEACHERS.items() if theirs in official}


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()
