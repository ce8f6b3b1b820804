"""The plan: for every artefact that the configuration asks for, whether it is fresh, partial, stale or missing, and why.

`make_plan` only compares (R4): the facts come from an `Inventory`, nothing is written, and no weights are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from unic_pipe.pipeline.cache.layout import DAMAGED
from unic_pipe.pipeline.cache.needs import FeatureNeed, merge_needs
from unic_pipe.pipeline.encoders.resolve import find_file
from unic_pipe.pipeline.encoders.summary import assumption
from unic_pipe.pipeline.samples.freshness import NOT_INDEXED
from unic_pipe.pipeline.storage import Store
from unic_pipe.pipeline.workspace.classifiers import require_probes
from unic_pipe.pipeline.workspace.differences import describe
from unic_pipe.pipeline.workspace.documents import checkpoint_step, finished_student, read_document, step_threads
from unic_pipe.pipeline.workspace.evaluation_plans import Plan, benchmark_pairs, evaluation_plans, other_datasets
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.results import (
    EVALUATION,
    RESULTS,
    benchmark_digest,
    current_record,
    evaluation_digest,
    evaluation_folder,
    why_stale,
)
from unic_pipe.pipeline.workspace.seals import unsealed
from unic_pipe.pipeline.workspace.seeds import as_written
from unic_pipe.pipeline.workspace.students import student_folder, student_order, student_teachers
from unic_pipe.pipeline.workspace.trainable import refuse_untrainable
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.chains import named_student
from unic_pipe.schemas.config import Config
from unic_pipe.schemas.errors import NotFinishedError, UnicPipeError, UserError
from unic_pipe.schemas.features import FeatureManifest
from unic_pipe.schemas.status import Artefact, Stage, State, StatusReport
from unic_pipe.schemas.students import StudentDefinition, StudentManifest

_NOT_INDEXED = "its samples are not indexed yet"


def make_plan(inventory: Inventory) -> StatusReport:
    """Every artefact in the order in which it is made, and the command that brings the first unfinished one on."""
    artefacts = [
        *_datasets(inventory),
        *_features(inventory),
        *(_student(inventory, name) for name in student_order(inventory.config)),
        *_evaluation(inventory),
    ]
    # Before a student's settings are corrected, every command that leads to its training refuses to begin.
    wrong = any(a.stage == "distill" and a.state != "fresh" and a.next is None for a in artefacts)
    following = None if wrong else next((a.next for a in artefacts if a.state != "fresh" and a.next), None)
    return StatusReport(artefacts=tuple(artefacts), next=following, unsealed=unsealed(inventory.workspace))


def training_datasets(inventory: Inventory) -> list[str]:
    """Datasets that `extract` and `distill` read: every student's, and the one for the validation loss."""
    config = inventory.config
    used = {name for student in config.students.values() for name in student.datasets} or {"train"}
    return [name for name in config.samples.datasets if name in used | {*config.distill.validations}]


def benchmark_datasets(inventory: Inventory) -> list[str]:
    """Datasets that `evaluate` reads."""
    used = {n for b in inventory.config.evaluate.benchmarks.values() for n in (b.train, b.test)}
    used |= other_datasets(inventory)
    return [name for name in inventory.config.samples.datasets if name in used]


def only_evaluated(inventory: Inventory) -> set[str]:
    """Datasets that nothing but `evaluate` reads: without one of them, the other stages go on."""
    return {*benchmark_datasets(inventory)} - {*training_datasets(inventory)}


def used_datasets(inventory: Inventory) -> list[str]:
    """Datasets that some stage reads, in the order of the configuration."""
    used = {*training_datasets(inventory), *benchmark_datasets(inventory)}
    return [name for name in inventory.config.samples.datasets if name in used]


def extraction_needs(inventory: Inventory, teachers: tuple[str, ...] | None = None) -> list[FeatureNeed]:
    """Features that `extract` makes: teachers (the given ones, or all) over training sets and the validation set.

    Datasets that are not indexed yet, and students that are to teach but are not finished, contribute nothing.

    Raises:
        UserError: a teacher that does not exist, or whose weights are missing.
    """
    config = inventory.config
    needs: list[FeatureNeed] = []
    wanted = teachers if teachers is not None else ready_teachers(inventory)[0]
    for dataset in config.samples.datasets:
        for teacher in wanted:
            if dataset in _training_sets(config, teacher):
                needs += inventory.training_needs((teacher,), dataset)
    for teacher in wanted:
        needs += inventory.validation_needs((teacher,))
    return merge_needs(needs)


def ready_teachers(inventory: Inventory) -> tuple[tuple[str, ...], list[NotFinishedError]]:
    """The configured teachers, but for students that are not finished yet; and what those say."""
    ready, waiting = [], []
    for name in inventory.config.teachers:
        try:
            _require_students(inventory, (name,))
            ready.append(name)
        except NotFinishedError as error:
            waiting.append(error)
    return tuple(ready), waiting


def _training_sets(config: Config, teacher: str) -> set[str]:
    """Training sets of the students that learn from a teacher; of all students, if none does; `train` without any."""
    students = config.students
    own = {name for s in students if teacher in config.teachers_of(s) for name in students[s].datasets}
    return own or {name for s in students.values() for name in s.datasets} or {"train"}


def _datasets(inventory: Inventory) -> Iterator[Artefact]:
    for name in used_datasets(inventory):
        view = inventory.dataset(name)
        manifest = view.dataset.manifest if view.dataset is not None else None
        rows = manifest.rows if manifest is not None else 0
        labelled = "" if manifest is None or manifest.labelled else "no labels"
        yield Artefact(
            name=f"samples/{name}",
            stage="index",
            state=view.state,
            done=rows if view.state == "fresh" else 0,
            total=rows,
            reason=view.reason or labelled,
            digest=manifest.digest if manifest is not None else None,
            next=None if view.state == "fresh" or _not_here(inventory, name) else f"unic-pipe index {name}",
            path=_relative(inventory, view.dataset.store) if view.dataset is not None else None,
        )


def _not_here(inventory: Inventory, name: str) -> bool:
    """Whether a benchmark's data have to be got before anything can be typed."""
    view = inventory.dataset(name)
    listed = inventory.config.samples.datasets[name].reader is not None
    return listed and view.dataset is None and view.reason != NOT_INDEXED


def _features(inventory: Inventory) -> Iterator[Artefact]:
    """Teachers' features by dataset; a teacher without weights, or samples without index, are named as missing."""
    config = inventory.config
    for dataset in training_datasets(inventory):
        for teacher in config.teachers:
            command = f"unic-pipe extract --teacher {teacher}"
            used = {*_training_sets(config, teacher), *config.distill.validations}
            if dataset not in used or not config.teaches(teacher, dataset):
                continue
            try:
                _require_students(inventory, (teacher,))
                needs = [n for n in extraction_needs(inventory, (teacher,)) if n.dataset == dataset]
                if inventory.dataset(dataset).dataset is None:  # its weights can be missed before
                    find_file(config.teachers[teacher], teacher, inventory.workspace.weights_dir, inventory.folder)
            except UnicPipeError as error:
                yield _blocked(f"features/{dataset}/{teacher}", "extract", error, command)
                continue
            if inventory.dataset(dataset).dataset is None:
                yield _blocked(f"features/{dataset}/{teacher}", "extract", _NOT_INDEXED, command)
            for need in needs:
                yield _feature(inventory, need)


def _require_students(inventory: Inventory, teachers: tuple[str, ...]) -> None:
    """Students among the teachers have to be finished: the chain shows even before anything is indexed.

    Raises:
        NotFinishedError: one is not.
    """
    for name in teachers:
        if named_student(inventory.config.teachers[name].encoder) is not None:
            inventory.teacher(name)


def _feature(inventory: Inventory, need: FeatureNeed) -> Artefact:
    dataset = inventory.dataset(need.dataset).dataset
    assert dataset is not None
    planes, batches = inventory.recorded(need, inventory.block_limit(dataset))
    counts = {plane: int(covered.sum()) for plane, covered in planes.items()}
    done, total = sum(counts.values()), sum(len(covered) for covered in planes.values())
    state, reason = _progress_state(done, total), _mixed_batches(need, batches)
    folder = inventory.borrowed(need)
    if folder is not None:
        reason = "; ".join(filter(None, (f"read from {folder}", reason)))
    if done == 0:
        old = inventory.pointed("features", need.pointer, FeatureManifest, need.folder_name)
        if old is not None:
            state, reason = "stale", f"differs: {describe(old.definition, need.definition)}"
    if need.encoder in inventory.config.teachers:
        reason = "; ".join(filter(None, (reason, assumption(inventory.teacher(need.encoder)))))
    return Artefact(
        name=need.name,
        stage="extract",
        state=state,
        done=done,
        total=total,
        reason=reason,
        digest=need.digest,
        next=None if state == "fresh" else f"unic-pipe extract --teacher {need.encoder}",
        path=_relative(inventory, inventory.feature_folder(need)),
        coverage={
            token: tuple(counts[view, token] for view in range(views)) for token, views in need.views.items() if views
        },
    )


def _mixed_batches(need: FeatureNeed, batches: Set[int]) -> str:
    """A remark when units were made with another batch size than the definition's (`extract --batch`)."""
    found = sorted({need.definition.compute.batch, *batches})
    return f"mixed: batches of {', '.join(map(str, found))}" if len(found) > 1 else ""


def _student(inventory: Inventory, name: str) -> Artefact:
    label = inventory.student_name(name)
    command = f"unic-pipe distill --student {name}"
    try:
        refuse_untrainable(inventory, name)
    except UserError as error:
        as_written(error, inventory.workspace.seeded)
        blocked = _blocked(f"students/{label}", "distill", error, command)
        following = None if blocked.next == command else blocked.next
        return blocked.model_copy(update={"reason": f"{error.message} {error.hint or ''}".strip(), "next": following})
    try:
        _require_students(inventory, student_teachers(inventory.config, name))
        definition = inventory.student_definition(name)
        if definition is None:
            return _blocked(f"students/{label}", "distill", _NOT_INDEXED, command)
        found = _defined_student(inventory, name, definition, command)
        if found.state != "fresh":
            require_probes(inventory, name)
        return found
    except UnicPipeError as error:
        return _blocked(f"students/{label}", "distill", error, command)


def _defined_student(inventory: Inventory, name: str, definition: StudentDefinition, command: str) -> Artefact:
    label, config = inventory.student_name(name), inventory.config
    folder = student_folder(inventory.folder, label, definition)
    manifest = read_document(folder / "manifest.json", StudentManifest)
    step = checkpoint_step(folder) or 0
    total = manifest.steps if manifest is not None else 0
    state: State = "missing"
    reason = ""
    if finished_student(label, folder) is not None:
        state, step = "fresh", total
    elif manifest is not None:
        state = "partial"
    else:
        old = inventory.pointed("students", label, StudentManifest, folder.name)
        begun = inventory.unfinished_student(label)
        if begun is not None:
            reason = f"a training with other settings is unfinished; differs: {describe(begun.definition, definition)}"
        elif old is not None:
            state, reason = "stale", f"differs: {describe(old.definition, definition)}"
    threads = step_threads(folder, definition.config, config.distill)
    if manifest is not None and threads != (config.distill.threads or config.students[name].threads):
        reason = f"{'trained' if state == 'fresh' else 'goes on'} with {threads} threads"
    return Artefact(
        name=f"students/{label}",
        stage="distill",
        state=state,
        done=step,
        total=total,
        reason=reason,
        digest=digest_of(definition),
        next=None if state == "fresh" else command,
        path=_relative(inventory, folder),
    )


def _evaluation(inventory: Inventory) -> Iterator[Artefact]:
    if not evaluates(inventory):
        return
    name, command = EVALUATION, "unic-pipe evaluate"
    try:
        found = evaluation_plans(inventory)
        folder = evaluation_path(inventory)
        todo = found.plans if folder is None else unfinished(folder, found.plans)
    except UnicPipeError as error:
        yield _blocked(name, "evaluate", error, command)
        return
    if folder is None:
        why = next(iter(found.skipped.values()))
        yield _blocked(name, "evaluate", _NOT_INDEXED if why == NOT_INDEXED else why, command)
        return
    done = len(found.plans) - len(todo)
    lacking = _set_aside(inventory, found.plans) if done == found.total else []
    keys = [(p.benchmark, p.encoder.name, p.definition) for p in todo]
    stale: dict[str, dict[str, None]] = {}
    for benchmark, encoder, definition in keys:
        stale.setdefault(why_stale(folder, benchmark, encoder, definition), {})[benchmark] = None
    reason = "; ".join(
        [
            *([f"waits for {', '.join(found.waiting)}"] if found.waiting else []),
            *(f"{b} is skipped: {why}" for b, why in found.skipped.items()),
            *(f"verify set aside damaged {name}" for name in lacking[:1]),
            *(f"{', '.join(benchmarks)}: {why}" for why, benchmarks in stale.items() if why),
        ]
    )
    state, total = "partial" if lacking else _progress_state(done, found.total), found.total
    if not total and not found.waiting:
        # Nothing is configured; what `--encoder` was given stays, and is counted as it is.
        done = total = len(list((folder / RESULTS).glob("*.json")))
        reason = reason or "no encoder is configured; these were given by --encoder"
    yield Artefact(
        name=name,
        stage="evaluate",
        state=state,
        done=done,
        total=total,
        reason=reason,
        digest=_evaluation_digest(inventory),
        next=None if state == "fresh" else command,
        path=_relative(inventory, folder),
    )


def _set_aside(inventory: Inventory, plans: Iterable[Plan]) -> list[str]:
    """Features of finished results of which `verify` has set something aside, and which are not made again yet."""
    found = {need.folder_name: (need, dataset) for plan in plans for need, dataset in plan.needs}
    damaged = {name: each for name, each in found.items() if DAMAGED in inventory.own_features(each[0]).folders()}
    return [
        need.name
        for need, dataset in damaged.values()
        if inventory.borrowed(need) is None and len(set(inventory.coverage(need, dataset.blocks))) == 2
    ]


def evaluation_path(inventory: Inventory) -> Path | None:
    """Folder of the evaluation of those benchmarks that can be run; None while there is none."""
    digest = _evaluation_digest(inventory)
    return evaluation_folder(inventory.folder, EVALUATION.rpartition("/")[2], digest) if digest is not None else None


def _evaluation_digest(inventory: Inventory) -> str | None:
    pairs = benchmark_pairs(inventory)[0]
    digests = {n: (benchmark_digest(p.train.manifest), benchmark_digest(p.test.manifest)) for n, p in pairs.items()}
    # Other evaluations add to those of the benchmarks, as encoders do, and have a folder where there are no benchmarks.
    return evaluation_digest(inventory.config.evaluate, digests) if digests or other_datasets(inventory) else None


def evaluates(inventory: Inventory) -> bool:
    """Whether the configuration asks for any evaluation."""
    return bool(inventory.config.evaluate.benchmarks or other_datasets(inventory))


def unfinished(folder: Path, plans: Iterable[Plan]) -> list[Plan]:
    """Those without a finished result in an evaluation's folder. Raises DamagedError."""
    found = [(p, current_record(folder, p.benchmark, p.encoder.name, p.definition, p.kept)) for p in plans]
    return [plan for plan, record in found if record is None or record.status != "done"]


def _progress_state(done: int, total: int) -> State:
    return "fresh" if done == total else "partial" if done else "missing"


def _blocked(name: str, stage: Stage, why: str | UnicPipeError, command: str) -> Artefact:
    """An artefact that cannot be planned yet. The next step is the command that an error's hint begins with, if any;
    otherwise the stage's own, which says all of the hint."""
    reason, hint = (why.message, why.hint or "") if isinstance(why, UnicPipeError) else (why, "")
    waits_for = (why.waits_for,) if isinstance(why, NotFinishedError) else ()
    if waits_for:
        reason = f"waits for {waits_for[0]}" + (f": {reason}" if waits_for[0] == EVALUATION else "")
    hinted = re.match(r"unic-pipe [a-z]+(?: --[a-z]+)*|pip install \S+", hint)
    following = hint if waits_for else hinted[0] if hinted else command
    return Artefact(
        name=name, stage=stage, state="missing", done=0, total=0, reason=reason, digest=None, next=following,
        waits_for=waits_for,
    )  # fmt: skip


def _relative(inventory: Inventory, place: Path | Store) -> str:
    if not isinstance(place, Path) and place.remote:
        return place.location
    path = place if isinstance(place, Path) else Path(place.location)
    return path.relative_to(inventory.folder).as_posix() if path.is_relative_to(inventory.folder) else str(path)
