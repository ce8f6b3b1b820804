"""`gc`: remove what nothing names any more, after showing it, and never under a live run."""

import shutil
from pathlib import Path

from unic_pipe.pipeline.process.progress import Reporter, duration
from unic_pipe.pipeline.storage import Store, is_remote, open_store, sync_folder
from unic_pipe.pipeline.storage.locks import exclusive
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.leftovers import MANIFEST, REMOVING, TRASH
from unic_pipe.pipeline.workspace.run_log import running, silent_for
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.garbage import GarbageItem, GarbageReport
from unic_pipe.stages.gc.find import KINDS, Garbage

LOST_S = 7 * 86_400.0
"""A run of another host that was not heard of for so long is over."""


def find(inventory: Inventory) -> GarbageReport:
    """What could be removed; nothing is."""
    garbage = Garbage(inventory)
    items = garbage.find()
    return GarbageReport(
        removed=False, bytes=sum(i.bytes for i in items), items=tuple(items), unknown=tuple(garbage.unknown)
    )


def collect(inventory: Inventory, shown: GarbageReport, reporter: Reporter) -> GarbageReport:
    """Remove what was shown, if it is still garbage.
    Raises StageError: a stage is running in this working folder, or begins to."""
    require_quiet(inventory.folder)
    with exclusive(inventory.folder / "runs" / "gc.lock", "gc"):
        still = {item.path for item in Garbage(inventory).find()}
        items = [item for item in shown.items if item.path in still]
        with reporter.task("gc", total=len(items), unit="items") as task:
            for item in items:
                require_quiet(inventory.folder)
                if is_remote(item.path):
                    _remove_objects(open_store(item.path, inventory.config.storage.options))
                else:
                    _remove(inventory.folder, item)
                task.advance()
    return shown.model_copy(update={"removed": True, "items": tuple(items), "bytes": sum(i.bytes for i in items)})


def require_quiet(workdir: Path) -> None:
    """Nothing may run while things are removed. Raises StageError: something does."""
    for run in running(workdir):
        silent = silent_for(run)
        if silent < LOST_S:
            where = f"{run.stage} is running on {run.host} (process {run.pid}, last heard of {duration(silent)} ago)"
            raise StageError(
                f"{where}: nothing is removed under a live run.",
                "Wait for it (unic-pipe status --watch); if that machine is gone, remove its file in runs/.",
            )


def _remove(workdir: Path, item: GarbageItem) -> None:
    path = workdir / item.path
    if item.kind == "students":
        with exclusive(workdir / "runs" / f"{path.name}.lock", f"Distillation of {path.name}"):
            _remove_folder(path)
        (workdir / "runs" / f"{path.name}.lock").unlink(missing_ok=True)
    elif path.is_dir() and not path.is_symlink():
        if item.kind in KINDS:
            _remove_folder(path)
        else:
            shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_objects(folder: Store) -> None:
    """Manifest first, then records, so that a stage which begins now never takes half of it for finished work."""
    keys = [key for key in folder.keys() if key != REMOVING]  # noqa: SIM118
    folder.put(REMOVING, b"")
    folder.delete(MANIFEST)
    folder.delete_many(key for key in keys if key.startswith("records/"))
    folder.delete_many(key for key in keys if key != MANIFEST and not key.startswith("records/"))
    folder.delete(REMOVING)


def _remove_folder(folder: Path) -> None:
    """An artefact vanishes in one step, so that a stage which begins now never meets half of it."""
    trash = folder.with_name(TRASH + folder.name)
    if trash.exists():
        shutil.rmtree(trash)
    folder.rename(trash)
    sync_folder(folder.parent)
    shutil.rmtree(trash)
