"""Whether a configured student can be trained, as far as that is known before any teacher runs. Free of torch.

Networks are built by `stages.distill.blueprint`, which keeps its verdicts in `runs/students.json`: `status` only reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.samples.mixtures import epoch_steps, without_place
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.documents import FinishedStudent, finished_student, usable_document
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.starts import refuse_other_architecture
from unic_pipe.pipeline.workspace.students import student_folder
from unic_pipe.schemas.base import PROGRAM_VERSION, digest_of, json_digest
from unic_pipe.schemas.config import EncoderConfig, OptimizerConfig, StudentConfig
from unic_pipe.schemas.errors import NotFinishedError, UnicPipeError, UserError
from unic_pipe.schemas.features import EncoderDefinition
from unic_pipe.schemas.students import StudentVerdict, StudentVerdicts

FILE = "runs/students.json"


def unjudged(inventory: Inventory) -> list[str]:
    """Configured students that are not finished, and whose networks nobody has built yet."""
    known = read_verdicts(inventory.folder)
    keys = {
        name: shape_digest(student, weights_before(inventory, name))
        for name, student in inventory.config.students.items()
    }
    return [name for name, key in keys.items() if key not in known and not _finished(inventory, name)]


def weights_before(inventory: Inventory, name: str) -> EncoderDefinition | None:
    """The weights that a student starts from, where they are here and no training of it goes on."""
    try:
        start = inventory.start(name)
    except UnicPipeError:  # told where the student is refused, or waits
        return None
    return start.definition if isinstance(start, ResolvedEncoder) else None


def refuse_untrainable(inventory: Inventory, name: str, found: Mapping[str, StudentVerdict] = {}) -> None:
    """Say what is known to be wrong with a student's settings, whatever has been extracted. Finished ones are fine.

    `found`: verdicts beside those that are kept.

    Raises:
        UserError: its network cannot be built, or the rows that it would train on are fewer than one batch.
    """
    refuse_unbuildable(inventory, name, found)
    if (error := too_few_rows(inventory, name)) is not None:
        raise error


def refuse_unbuildable(inventory: Inventory, name: str, found: Mapping[str, StudentVerdict] = {}) -> None:
    """The part of `refuse_untrainable` that does not depend on samples.

    Raises:
        UserError: its network cannot be built, what it should start from is not here or does not fit, or
            `distill.micro_batch` would change what it computes.
    """
    if _finished(inventory, name):
        return
    student = inventory.config.students[name]
    _refuse_start(inventory, name)
    key = shape_digest(student, weights_before(inventory, name))
    verdict = {**read_verdicts(inventory.folder), **found}.get(key, StudentVerdict())
    if verdict.problem is not None:
        hint = verdict.hint.replace("students.NAME", f"students.{name}") if verdict.hint is not None else None
        raise UserError(f"Student {name}: {verdict.problem.removeprefix('Student ')}", hint)
    micro, batch = inventory.config.distill.micro_batch, student.optimizer.batch
    if student.loss.needs_whole_batches and micro is not None and micro < batch:
        raise UserError(
            f"Student {name} normalises its targets by whole batches (loss.standardize: batch), and distill.micro_batch: "
            f"{micro} takes them in parts.",
            f"Leave out distill.micro_batch, or set students.{name}.loss.standardize: exact, which makes another student.",
        )
    if verdict.batch_norm and micro is not None and micro < batch:
        raise UserError(
            f"Student {name} normalises by the statistics of whole batches ({batch:,} images), and distill.micro_batch: "
            f"{micro} takes them in parts.",
            f"Leave out distill.micro_batch, and use more processes where memory is short; or set "
            f"students.{name}.batch_norm: frozen, which makes another student.",
        )


def start_of(inventory: Inventory, name: str) -> FinishedStudent | ResolvedEncoder | None:
    """What a student starts from; weights of another image size are tried at its own, which not every network allows.

    Raises:
        UserError, NotFinishedError: as `Inventory.start`; the message begins with the student.
        StageError: another student's export is not what its training exported.
    """
    student, who = inventory.config.students[name], f"Student {name}"
    try:
        start = inventory.start(name)
        if isinstance(start, FinishedStudent) and start.manifest.definition.config.image_size != student.image_size:
            inventory.student_encoder(start, name, EncoderConfig(image_size=student.image_size))
    except NotFinishedError:
        raise
    except UserError as error:
        raise UserError(
            error.message if error.message.startswith(who) else f"{who}: {error.message}", error.hint
        ) from None
    return start


def _refuse_start(inventory: Inventory, name: str) -> None:
    students = inventory.config.students
    student = students[name]
    with suppress(NotFinishedError):  # it waits for that
        start_of(inventory, name)
    if student.start is not None and student.start.encoder in students:
        refuse_other_architecture(name, student, student.start.encoder, students[student.start.encoder])


def too_few_rows(inventory: Inventory, name: str) -> UserError | None:
    """The error of an unfinished student whose samples are indexed and fewer than one batch; None for any other."""
    student = inventory.config.students[name]
    datasets = None if _finished(inventory, name) else inventory.datasets_of(name)
    if datasets is None:
        return None
    batch, streams, shares = student.optimizer.batch, student.streams, student.datasets
    given = {d.manifest.name: shares[d.manifest.name] * inventory.rows_of(d) for d in datasets}
    rows = int(sum(given.values()))
    if rows >= batch and (error := without_place(name, given, batch, streams)) is not None:
        return error
    if epoch_steps(list(given.values()), batch, streams):
        return None
    smaller_batches = range(min(rows, batch) // streams * streams, 0, -streams)
    fitting = next((n for n in smaller_batches if epoch_steps(list(given.values()), n, streams)), 0)
    smaller = f"to {fitting} or lower, a multiple of its streams ({streams})"
    return UserError(
        f"Student {name}: the {rows:,} rows of {' and '.join(given)} are fewer than one batch ({batch:,}).",
        f"Set students.{name}.optimizer.batch {smaller}."
        if fitting
        else f"Set students.{name}.streams: 1, and optimizer.batch to {rows} or lower.",
    )


def shape_digest(student: StudentConfig, start: EncoderDefinition | None = None) -> str:
    """Digest of the settings that decide whether a network can be built and has something to learn, and of the weights
    that have to fit it."""
    others = ("teachers", "dataset", "init", "ema", "mean", "std", "dtype", "window_blocks", "threads")
    defaults = {name: StudentConfig.model_fields[name].default for name in (*others, "seed", "order_seed")}
    # Its streams divide its batch: both go together.
    same = {"optimizer": OptimizerConfig(), "streams": StudentConfig.model_fields["streams"].default}
    digest = digest_of(student.model_copy(update=defaults | same))
    return digest if start is None else json_digest([digest, digest_of(start)])


def read_verdicts(workdir: Path) -> Mapping[str, StudentVerdict]:
    """The verdicts that the installed programs gave in this working folder, by `shape_digest`."""
    found = usable_document(LocalStore(workdir), FILE, StudentVerdicts)
    return found.verdicts if found is not None and found.versions == program_versions() else {}


def keep_verdicts(workdir: Path, verdicts: Mapping[str, StudentVerdict]) -> None:
    """Add verdicts to those of the working folder, if it may be written to."""
    document = StudentVerdicts(versions=program_versions(), verdicts={**read_verdicts(workdir), **verdicts})
    try:
        LocalStore(workdir).put(FILE, document.to_bytes())
    except (OSError, UnicPipeError):
        return


def _finished(inventory: Inventory, name: str) -> bool:
    try:
        definition = inventory.student_definition(name)
    except UnicPipeError:  # what is missing of its teachers is told elsewhere
        return False
    label = inventory.student_name(name)
    return definition is not None and (
        finished_student(label, student_folder(inventory.folder, label, definition)) is not None
    )


def program_versions() -> str:
    """The programs whose versions decide what a network is, and how fast."""
    return f"unic-pipe {PROGRAM_VERSION} timm {version('timm')} torch {version('torch')}"
