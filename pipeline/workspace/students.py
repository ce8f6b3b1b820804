"""What a student is made from, and where it lives. Free of torch, so that planning is quick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from unic_pipe.pipeline.workspace.starts import Origin
from unic_pipe.schemas.base import digest_of, json_digest, short
from unic_pipe.schemas.chains import needed_students
from unic_pipe.schemas.config import Config, DistillConfig, EncoderConfig, StudentConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import EncoderDefinition, FeatureDefinition
from unic_pipe.schemas.samples import DatasetManifest
from unic_pipe.schemas.students import DatasetInput, StudentDefinition, TeacherInput


def student_teachers(config: Config, name: str) -> tuple[str, ...]:
    """The teachers of a student, in the order of the configuration.

    Raises:
        UserError: no such student, or it has no teachers.
    """
    if name not in config.students:
        known = ", ".join(config.students) or "none"
        raise UserError(f"No student is named {name!r} (there are: {known}).", "Add it under students:, or choose one.")
    teachers = config.teachers_of(name)
    if not teachers:
        raise UserError(f"Student {name} has no teachers.", "Name some under teachers: in unic-pipe.yaml.")
    return teachers


def students_before(config: Config, name: str) -> set[str]:
    """The configured students that must be finished before one can begin: that it starts from, or that teach it."""
    teaching = {teacher: encoder.encoder for teacher, encoder in config.teachers.items()}
    needed = needed_students(teaching, {name: (config.teachers_of(name), config.students[name].start)})
    return needed[name].keys() & config.students


def student_order(config: Config) -> tuple[str, ...]:
    """Students in the order in which they are trained: each after those that it needs, otherwise as configured.

    Raises:
        UserError: students need each other in a circle.
    """
    ordered: dict[str, None] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " → ".join([*path[path.index(name) :], name])
            raise UserError(f"Students need each other in a circle: {circle}.", "Take out one init, or one teacher.")
        for other in config.students:
            if other in students_before(config, name):
                visit(other, (*path, name))
        ordered[name] = None

    for name in config.students:
        visit(name, ())
    return tuple(ordered)


def student_definition(
    config: Config,
    name: str,
    dataset: DatasetManifest,
    features: Mapping[str, FeatureDefinition],
    blocks: int,
    views: int,
    *,
    patch_views: int | None = None,
    patch_every: int | None = None,
    start: Origin | None = None,
    mixed: Sequence[tuple[DatasetManifest, Mapping[str, FeatureDefinition], int]] = (),
    live: bool = False,
) -> StudentDefinition:
    """The definition of a student: a pure function of what it is made from.

    Args:
        config: the whole configuration.
        name: the student's name in it.
        dataset: manifest of the training samples; of a mixture, of the first ones.
        features: feature definitions of those of its teachers that teach on them, by name; others are ignored.
        blocks: train on blocks 0 to `blocks` - 1.
        views: train on views 0 to `views` - 1.
        patch_views: number of views that carry patches, all if None.
        patch_every: an epoch in so many takes a view with patches.
        start: the weights that it starts from, whose mean and std are the student's unless those are given.
        mixed: the other datasets of a mixture, likewise with their features and blocks.
        live: teachers run in the training loop.

    Raises:
        UserError: no such student, no teachers, or features that do not belong together.
    """
    teachers = student_teachers(config, name)
    chosen = {teacher: features[teacher] for teacher in teachers if teacher in features}
    known = {t: f for found in (*(theirs for _, theirs, _ in mixed), features) for t, f in found.items()}
    encoders = {teacher: known[teacher].encoder for teacher in teachers}
    student = _normalised(name, config.students[name], teachers, start)
    tokens = student.loss.tokens
    if patch_views == 0 and tokens != "cls":
        raise UserError(
            f"Student {name} is trained on patch tokens, and no view carries them (views.patch: 0).",
            f"Set students.{name}.loss.tokens: cls, or views.patch.",
        )
    if patch_views is not None and tokens == "patch":
        views = patch_views
    if tokens != "both" or patch_views == views:
        patch_views = patch_every = None
    _check_same_views(name, dataset, chosen)
    _check_heads(name, student, encoders)
    if student.loss.needs_classes and not dataset.labelled:
        raise UserError(
            f"Student {name}: its loss is about classes, and not all images of dataset {dataset.name} have a label.",
            f"Set samples.datasets.{dataset.name}.labels or .label_field, or take the term out of students.{name}.loss.terms.",
        )
    return StudentDefinition(
        # Named or by default, the same teachers make the same student.
        config=student.model_copy(update={"teachers": None}),
        dataset=dataset.digest,
        blocks=blocks,
        views=views,
        patch_views=patch_views,
        patch_every=patch_every,
        teachers=tuple(_teacher_input(t, encoders[t], chosen.get(t)) for t in teachers),
        mixed=tuple(_dataset_input(name, *other) for other in mixed),
        parent=None if start is None else start.weights,
        section=None if start is None else start.section,
        labels=_labels_digest(dataset, blocks) if student.loss.needs_classes else None,
        live=live,
    )


def _teacher_input(name: str, encoder: EncoderDefinition, features: FeatureDefinition | None) -> TeacherInput:
    """A teacher as the definition holds it; `features`: of the first dataset, None where it does not teach on that."""
    return TeacherInput(
        name=name,
        features=None if features is None else digest_of(features),
        grid=encoder.grid,
        cls_dim=encoder.cls_dim,
        patch_dim=encoder.patch_dim,
    )


def _normalised(name: str, student: StudentConfig, teachers: tuple[str, ...], start: Origin | None) -> StudentConfig:
    """A student's settings with its loss in its one form, and the mean and std of what it starts from, where they are not
    given."""
    try:
        loss = student.loss.normalised(teachers)
    except UserError as error:
        raise UserError(f"Student {name}: {error.message}", error.hint) from None
    theirs = {"mean": start.mean, "std": start.std} if start is not None else {}
    changes = {k: v for k, v in theirs.items() if k not in student.model_fields_set}
    return student.model_copy(update={**changes, "loss": loss})


def _dataset_input(
    name: str, dataset: DatasetManifest, features: Mapping[str, FeatureDefinition], blocks: int
) -> DatasetInput:
    """A further dataset of student `name`'s mixture."""
    _check_same_views(name, dataset, features)
    digests = {teacher: digest_of(definition) for teacher, definition in features.items()}
    return DatasetInput(name=dataset.name, dataset=dataset.digest, blocks=blocks, features=digests)


def _labels_digest(dataset: DatasetManifest, blocks: int) -> str:
    """Digest of the labels of the segments that have some of these blocks."""
    return json_digest([s.labels_digest for s in dataset.segments if s.first_row < blocks * dataset.block_rows])


def baseline_config(student: StudentConfig) -> EncoderConfig:
    """The encoder configuration of a student's architecture with random weights from the student's seed."""
    return EncoderConfig(
        encoder=f"timm:{student.architecture}",
        weights=f"random:{student.seed}",
        model_args=student.model_args,
        image_size=student.image_size,
        mean=student.mean,
        std=student.std,
    )


def begun_now(config: StudentConfig, settings: DistillConfig) -> StudentConfig:
    """A student's settings with the CPU threads of a training that begins now: what measurements stand for."""
    return config.model_copy(update={"threads": settings.threads or config.threads})


def student_folder(workdir: Path, name: str, definition: StudentDefinition) -> Path:
    """`students/<name>-<8 digits of the definition>`."""
    return workdir / "students" / f"{name}-{short(digest_of(definition))}"


def _check_heads(name: str, student: StudentConfig, encoders: Mapping[str, EncoderDefinition]) -> None:
    """One block predicts a teacher's cls and patch tokens by one last layer."""
    for teacher, encoder in encoders.items() if student.ladder.kind == "block" else ():
        cls_dim, patch_dim = encoder.cls_dim, encoder.patch_dim
        if cls_dim != patch_dim and len(student.loss.terms_of(teacher)) > 1:
            raise UserError(
                f"Student {name}: ladder.kind: block predicts cls and patch tokens by one layer, and those of teacher {teacher} "
                f"have {cls_dim} and {patch_dim} dimensions.",
                f"Set another students.{name}.ladder.kind, or terms of one token type for this teacher.",
            )


def _check_same_views(name: str, dataset: DatasetManifest, features: Mapping[str, FeatureDefinition]) -> None:
    first = next(iter(features))
    for teacher, definition in features.items():
        if definition.dataset != dataset.digest or definition.block_rows != dataset.block_rows:
            raise UserError(
                f"Features of teacher {teacher} were extracted from other samples than dataset {dataset.name} holds.",
                f"Run: unic-pipe extract --teacher {teacher}",
            )
        if (definition.recipe, definition.view_seed) != (features[first].recipe, features[first].view_seed):
            raise UserError(
                f"Student {name}: teachers {first} and {teacher} saw different views (recipe or view seed).",
                f"Run: unic-pipe extract --teacher {first} --teacher {teacher}",
            )
