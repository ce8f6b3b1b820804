"""Students of the working folder that the configuration does not name: made by `--student NEW --set …`, pilots, variants."""

import json
import shlex
from collections.abc import Iterator
from typing import Any

from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.documents import checkpoint_step, finished_student, usable_document
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.labels import LIVE, PILOT, setting_of
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.errors import UnicPipeError
from unic_pipe.schemas.status import Artefact
from unic_pipe.schemas.students import StudentManifest


def other_students(inventory: Inventory) -> Iterator[Artefact]:
    """Each of them as an artefact, finished or begun, with the command that goes on with it where one does."""
    configured = {inventory.student_name(name) for name in inventory.config.students}
    folders: dict[str, list[tuple[int, str, StudentManifest]]] = {}
    for folder in sorted((inventory.folder / "students").glob("*-????????")):
        manifest = usable_document(LocalStore(folder), "manifest.json", StudentManifest)
        if manifest is not None and manifest.name not in configured and not folder.is_symlink():
            done = finished_student(manifest.name, folder) is not None
            step = manifest.steps if done else checkpoint_step(folder) or 0
            folders.setdefault(manifest.name, []).append((step, folder.name, manifest))
    for label, found in folders.items():
        pointed = inventory.finished_students.get(label)
        step, folder_name, manifest = next(
            (one for one in found if pointed is not None and one[1] == pointed.folder.name),
            max(found, key=lambda one: one[:2]),
        )
        finished = step == manifest.steps
        command = None if finished else _command(inventory, manifest)
        yield Artefact(
            name=f"students/{label}",
            stage="distill",
            state="fresh" if finished else "partial",
            done=step,
            total=manifest.steps,
            reason="not in the configuration" if finished or command else "made with another configuration",
            digest=manifest.digest,
            next=command,
            path=f"students/{folder_name}",
        )


def _command(inventory: Inventory, manifest: StudentManifest) -> str | None:
    """What was typed to begin a training, as far as it can be told; None where the configuration has moved on."""
    students, label = inventory.config.students, manifest.name
    name, live = setting_of(label), label.removesuffix(PILOT).endswith(LIVE)
    base = name if name in students else next(iter(students)) if len(students) == 1 else None
    if base is None or any(base in made for made in inventory.workspace.seeded.values()):
        return None
    config = manifest.definition.config.model_copy(update={"teachers": students[base].teachers})
    words = ["unic-pipe", "distill", "--student", name]
    for path, value in _changes(students[base].model_dump(mode="json"), config.model_dump(mode="json")):
        words += ["--set", f"students.{base}.{path}={json.dumps(value)}"]
    rows = None
    if label.endswith(PILOT):
        rows = str(manifest.definition.blocks * inventory.config.samples.block_rows)
        words += ["--rows", rows]
    same = Inventory(inventory.with_students({**students, name: config}).workspace, rows, live)
    try:
        definition = same.student_definition(name)
    except UnicPipeError:
        return None
    if definition is None or digest_of(definition) != manifest.digest:
        return None
    return shlex.join([*words, *(["--live-teachers"] if live else [])])


def _changes(old: dict[str, Any], new: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of `new` that differ from `old`, by their places."""
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and value:
            yield from _changes(before, value, f"{place}{key}.")
        elif value != before:
            yield f"{place}{key}", value
