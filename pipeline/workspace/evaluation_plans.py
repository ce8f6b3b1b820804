"""Which results an evaluation consists of: every benchmark x encoder x probe, with the features each one needs. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

from unic_pipe.pipeline.benchmarks.imagenet import counted_as
from unic_pipe.pipeline.benchmarks.label_maps import maps_digest, require_maps
from unic_pipe.pipeline.cache.needs import FeatureNeed, center_need, compute_definition
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.encoders.official_names import LADDER_FILE, TEACHERS
from unic_pipe.pipeline.encoders.texts import text_names, texts_digest
from unic_pipe.pipeline.samples.class_checks import Side, comparable, require_several
from unic_pipe.pipeline.samples.classes import match_texts
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.freshness import NOT_INDEXED
from unic_pipe.pipeline.storage import LocalStore, sha256_of_file
from unic_pipe.pipeline.workspace.documents import FinishedStudent, last_entry
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.results import benchmark_digest, probes_of, result_definition, unlabelled
from unic_pipe.schemas.base import json_digest
from unic_pipe.schemas.benchmarks import SOURCE, cards
from unic_pipe.schemas.chains import named_student
from unic_pipe.schemas.config import Config
from unic_pipe.schemas.errors import UnicPipeError, UserError
from unic_pipe.schemas.evaluations import ResultDefinition, Role
from unic_pipe.schemas.probes import BY_NAME, PROBES
from unic_pipe.schemas.protocols import DenseConfig, ZeroShotConfig
from unic_pipe.schemas.recipes import CENTER

KEPT = "logistic"
"""The probe that is kept where a student learns its logits."""


@dataclass(frozen=True)
class Plan:
    """One result to compute: what it is made from, and where that comes from."""

    benchmark: str
    note: str
    encoder: ResolvedEncoder
    role: Role
    definition: ResultDefinition
    needs: tuple[tuple[FeatureNeed, Dataset], ...]
    """Features that come through the cache: of the training and the test set, or of the test set alone."""
    test: Dataset
    asked: tuple[int, ...] | None = None
    """For each class number of the training set the test class that it counts as (-1: it is not asked), where a
    benchmark is tested with another's probe."""
    ladder: FinishedStudent | Path | None = None
    """Whose ladder predicts the teacher's features: a student of ours, or the folder of an imported one."""
    kept: bool = False
    """Whether the fitted probe is kept, because a student learns its logits."""


@dataclass
class Plans:
    """What can be computed now, what is waited for, and what was left out."""

    plans: list[Plan] = field(default_factory=list)
    waiting: dict[str, int] = field(default_factory=dict)
    """Students that are not finished (`students/NAME`), and how many results each would have."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Benchmarks that cannot be run, and why."""
    missing: int = 0
    """How many results these would have, as far as that is known."""

    @property
    def total(self) -> int:
        """How many results the configuration asks for."""
        return len(self.plans) + sum(self.waiting.values()) + self.missing

    def wait(self, students: list[str], results: int) -> None:
        """Count what unfinished students would have."""
        for name in students:
            self.waiting[name] = self.waiting.get(name, 0) + results


@dataclass(frozen=True)
class Pair:
    """A benchmark's datasets, indexed and fit to be used."""

    train: Dataset
    test: Dataset
    asked: tuple[int, ...] | None


def evaluation_plans(inventory: Inventory) -> Plans:
    """All results that the configuration asks for: labelled images first, then zero-shot, then dense.
    Raises UserError: a teacher's weights are missing, or a student's export is not what training left."""
    found = _labelled(inventory)
    for name, zero_shot in inventory.config.evaluate.zero_shot.items():
        try:
            found.plans += _zero_shot(inventory, name, zero_shot)
            found.wait(_unfinished(inventory, zero_shot.teacher), 1)
        except UnicPipeError as error:
            found.skipped[name], found.missing = error.message, found.missing + 1
    for name, dense in inventory.config.evaluate.dense.items():
        try:
            found.plans += _dense(inventory, name, dense)
            found.wait(evaluated_encoders(inventory)[1], len(dense.protocols))
        except UnicPipeError as error:
            found.skipped[name], found.missing = error.message, found.missing + 1
    return found


def lacking(inventory: Inventory) -> dict[str, str]:
    """Benchmarks that cannot be run as they are, and why: to be said before hours go into what they would score. Datasets
    that nobody has indexed yet are no reason.
    Raises UserError: as `evaluation_plans`."""
    return {name: why for name, why in evaluation_plans(inventory).skipped.items() if why != NOT_INDEXED}


def benchmark_pairs(inventory: Inventory) -> tuple[dict[str, Pair], dict[str, str]]:
    """The benchmarks of labelled images that can be run now, and why the others cannot and what would mend it: not indexed,
    data missing, other data than the name promises, no labels, classes that cannot be compared."""
    pairs: dict[str, Pair] = {}
    skipped: dict[str, str] = {}
    for name, benchmark in inventory.config.evaluate.benchmarks.items():
        try:
            train, test = _indexed(inventory, benchmark.train, benchmark.test)
            _check_counts(name, train, test)
            sides, asked = (_labelled_side(train), _labelled_side(test)), None
            if name in cards() and cards()[name].kind == "transfer":
                require_several(sides[0])
                asked = counted_as(train.manifest, test.manifest)
            else:
                comparable(*sides)
            pairs[name] = Pair(train, test, asked)
        except UserError as error:
            skipped[name] = f"{error.message} {error.hint}" if error.hint else error.message
    return pairs, skipped


def _labelled_side(dataset: Dataset) -> Side:
    """A dataset as its labels show it. Raises UserError: some sample has none."""
    if not dataset.manifest.labelled:
        raise unlabelled(dataset)
    return Side(dataset.manifest.name, dataset.manifest.classes, dataset.class_numbers)


def other_datasets(inventory: Inventory) -> set[str]:
    """Datasets that zero-shot and dense evaluations read."""
    config = inventory.config.evaluate
    return {z.test for z in config.zero_shot.values()} | {n for d in config.dense.values() for n in (d.train, d.test)}


def evaluated_encoders(inventory: Inventory) -> tuple[list[tuple[ResolvedEncoder, Role]], list[str]]:
    """Finished students, teachers, and each configured student's architecture at random initialisation,
    and the encoders of `evaluate`; and the students that are still waited for (`students/main`).
    Raises UserError: a teacher's weights are missing, or two encoders have one name."""
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


def _labelled(inventory: Inventory) -> Plans:
    """Every benchmark of labelled images with every encoder and probe."""
    config = inventory.config.evaluate
    encoders, waiting = evaluated_encoders(inventory)
    pairs, skipped = benchmark_pairs(inventory)
    found, learned = Plans(skipped=dict(skipped)), _learned_probes(inventory.config)
    for name, pair in pairs.items():
        for encoder, role in encoders:
            needs = [(inventory.probe_need(dataset, encoder), dataset) for dataset in (pair.train, pair.test)]
            for probe in probes_of(config, name):
                definition = result_definition(
                    config,
                    probe,
                    train=pair.train.manifest,
                    test=pair.test.manifest,
                    features_train=needs[0][0].digest,
                    features_test=needs[1][0].digest,
                    encoder=encoder.digest,
                    asked=pair.asked,
                )
                note = config.benchmarks[name].note
                kept = probe == KEPT and role == "teacher" and (name, encoder.name) in learned
                found.plans.append(
                    Plan(name, note, encoder, role, definition, tuple(needs), pair.test, pair.asked, kept=kept)
                )
    found.wait(waiting, sum(len(probes_of(config, name)) for name in config.benchmarks))
    planned = len({plan.encoder.name for plan in found.plans})
    found.missing = planned * sum(len(probes_of(config, name)) for name in skipped)
    return found


def _learned_probes(config: Config) -> set[tuple[str, str]]:
    """Benchmark and teacher of every probe whose logits some student learns."""
    return {
        (student.loss.probed, teacher)
        for name, student in config.students.items()
        if student.loss.probed is not None
        for teacher in config.teachers_of(name)
    }


def _zero_shot(inventory: Inventory, name: str, config: ZeroShotConfig) -> list[Plan]:
    """The students of the teacher, imported ones that have a ladder to it, and the teacher itself.
    Raises UnicPipeError: not indexed, no weights, no labels, no file of classes, classes that are not those of the texts."""
    (test,) = _indexed(inventory, config.test)
    texts, teacher = texts_digest(config, inventory.folder), inventory.teacher(config.teacher)
    side, names = _labelled_side(test), text_names(config, inventory.folder)
    table, protocol = match_texts(config.test, side.classes, names), PROBES["zero-shot"].protocol
    if table is None and side.numbers_C[-1] >= len(names):
        raise UserError(
            f"Dataset {config.test} has the class {side.numbers_C[-1]}, but there are {len(names)} text embeddings."
        )
    need = inventory.probe_need(test, teacher)

    def definition(features: str, encoder: ResolvedEncoder) -> ResultDefinition:
        # The texts stand in the training set's place, and the teacher, whose projection is used, in that of its features.
        return ResultDefinition(
            protocol=protocol if table is None else BY_NAME[protocol],
            benchmark_train=texts,
            benchmark_test=benchmark_digest(test.manifest),
            features_train=teacher.digest,
            features_test=features,
            encoder=encoder.digest,
            probe="zero-shot",
            settings={},
            seed=0,
            classes=None if table is None else json_digest(list(table)),
        )

    plans = []
    for encoder, role, ladder, digest in _predicting(inventory, config.teacher):
        made = {"ladder": digest, "teacher": config.teacher, "recipe": CENTER.model_dump(mode="json")}
        made["compute"] = compute_definition(inventory.config.compute, CENTER).model_dump(mode="json")
        made |= {"encoder": encoder.digest, "dataset": test.digest}
        result = definition(json_digest(made), encoder)
        plans.append(Plan(name, config.note, encoder, role, result, (), test, ladder=ladder))
    # A student that teaches is there as a student.
    role = "student" if named_student(inventory.config.teachers[config.teacher].encoder) else "teacher"
    return [*plans, Plan(name, config.note, teacher, role, definition(need.digest, teacher), ((need, test),), test)]


def _dense(inventory: Inventory, name: str, config: DenseConfig) -> list[Plan]:
    """Every encoder with every protocol of a dense benchmark.
    Raises UnicPipeError: not indexed, no label maps, another number of images than the benchmark of this name has, no
    weights."""
    folders = [inventory.folder / labels for labels in (config.train_labels, config.test_labels)]
    for folder in folders:
        require_maps(folder)  # they can be looked at before anything is indexed
    train, test = _indexed(inventory, config.train, config.test)
    _check_counts(name, train, test)
    memory = LocalStore(inventory.folder / "runs")
    sides = [
        json_digest([benchmark_digest(dataset.manifest), maps_digest(folder, _kept_keys(dataset), memory)])
        for dataset, folder in zip((train, test), folders, strict=True)
    ]
    plans = []
    for encoder, role in evaluated_encoders(inventory)[0]:
        needs = [
            (center_need(inventory.config, d.manifest, encoder.name, encoder.definition, ("cls", "patch")), d)
            for d in (train, test)
        ]
        for probe in config.protocols:
            definition = ResultDefinition(
                protocol=PROBES[probe].protocol,
                benchmark_train=sides[0],
                benchmark_test=sides[1],
                features_train=needs[0][0].digest,
                features_test=needs[1][0].digest,
                encoder=encoder.digest,
                probe=probe,
                settings=PROBES[probe].settings(config),
                seed=config.seed,
            )
            plans.append(Plan(name, config.note, encoder, role, definition, tuple(needs), test))
    return plans


def _kept_keys(dataset: Dataset) -> Iterator[str]:
    """Keys of the rows whose image was not deleted."""
    for block in range(dataset.blocks):
        yield from compress(dataset.block_keys(block), dataset.kept(block))


def _indexed(inventory: Inventory, *names: str) -> list[Dataset]:
    """Datasets of these names. Raises UserError: one cannot be used now; the message is the reason alone."""
    found = []
    for name in names:
        view = inventory.dataset(name)
        if view.dataset is None:
            raise UserError(view.reason)
        found.append(view.dataset)
    return found


def _check_counts(name: str, train: Dataset, test: Dataset) -> None:
    """Compare the user's datasets with what the benchmark of this name promises.
    Raises UserError: another number of images."""
    card = cards().get(name)
    if card is None:
        return
    expected = cards()[SOURCE].train if card.kind == "transfer" else card.train
    for dataset, count in ((train, expected), (test, card.test)):
        if count is not None and dataset.manifest.rows != count:
            raise UserError(
                f"benchmark {name} has {count:,} images where dataset {dataset.manifest.name} has "
                f"{dataset.manifest.rows:,}: a part of it, or another split."
            )


def _unfinished(inventory: Inventory, teacher: str) -> list[str]:
    """Students that are to learn from a teacher, and are not finished."""
    config = inventory.config
    labels = [inventory.student_name(name) for name in config.students if teacher in config.teachers_of(name)]
    return [f"students/{label}" for label in labels if label not in inventory.finished_students]


def _predicting(
    inventory: Inventory, teacher: str
) -> Iterator[tuple[ResolvedEncoder, Role, FinishedStudent | Path, str]]:
    """Encoders with a ladder to a teacher's cls feature, where it is, and its digest."""
    for student in inventory.finished_students.values():
        definition = student.manifest.definition
        if "cls" in definition.config.loss.terms_of(teacher) and teacher in {t.name for t in definition.teachers}:
            digest = student.export.adaptors or last_entry(student).digest
            yield inventory.student_encoder(student), "student", student, digest
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
