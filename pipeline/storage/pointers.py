"""Pointers: what `<folder>/<name>` means now, one of the artefact folders `<folder>/<name>-<8 digits>` beside it.

Artefact folders end in digits of their identity and are never overwritten (R5); the pointer says which one a name means.
In a local folder it is a relative symbolic link; object stores have none, there it is the small object `<name>.pointer`.
"""

import itertools
import os
import re
import socket
from pathlib import Path

from unic_pipe.pipeline.storage.local import LocalStore, abandoned, sync_folder
from unic_pipe.pipeline.storage.store import Store
from unic_pipe.schemas.errors import DamagedError, UserError

SUFFIX = ".pointer"
"""Ends the name of the object that is a pointer, where there are no links."""

_counter = itertools.count()


def point(folder: Path | Store, name: str, target: str) -> None:
    """Make `<folder>/<name>` point to `<folder>/<target>`, atomically and durably.
    Raises UserError: something that is not a pointer already has that name, or links cannot be made here."""
    if isinstance(folder, Path):
        _link(folder, name, target)
    elif isinstance(folder, LocalStore):
        _link(folder.root, name, target)
    elif _target(folder, name) != target:
        folder.put(name + SUFFIX, f"{target}\n".encode())


def pointed(folder: Store, name: str) -> Store | None:
    """The store that `<folder>/<name>` points to, or None when there is no such pointer or its target is gone.
    Raises DamagedError: it points to something else than a folder of that name."""
    if isinstance(folder, LocalStore):
        found = resolve_pointer(folder.root, name)
        return None if found is None else LocalStore(found)
    target = _target(folder, name)
    return folder.child(target) if target is not None and folder.names(target) else None


def pointers(folder: Store) -> list[str]:
    """Names of the pointers in a folder, sorted."""
    if isinstance(folder, LocalStore):
        return [name for name in folder.names() if folder.path(name).is_symlink()]
    return [name.removesuffix(SUFFIX) for name in folder.names() if name.endswith(SUFFIX)]


def resolve_pointer(folder: Path, name: str) -> Path | None:
    """The folder beside it that the link `<folder>/<name>` points to, or None when there is no such link or folder.
    Raises DamagedError: it leads to something else."""
    try:
        target = os.readlink(folder / name)
    except OSError:
        return None
    found = folder / _checked(str(folder / name), name, target)
    return found if found.is_dir() else None


def followed(path: Path) -> Path:
    """A folder, or what a pointer to it leads to; other links, such as to another disk, are followed as they are.
    Raises DamagedError: it is a pointer, and leads to another name's folder."""
    pointer = path.is_symlink() and "/" not in os.readlink(path)
    return (resolve_pointer(path.parent, path.name) if pointer else None) or path.resolve()


def _target(folder: Store, name: str) -> str | None:
    try:
        target = folder.get(name + SUFFIX).decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    return _checked(folder.describe(name + SUFFIX), name, target)


def _checked(pointer: str, name: str, target: str) -> str:
    """Only a folder of that name beside the pointer: a damaged or edited one must not lead to other data."""
    if not _is_beside(name, target):
        raise DamagedError(
            f"{pointer} points to {target!r}, which is no folder {name}-<8 digits>.",
            f"Remove {pointer}, and run the stage that made {name} again (unic-pipe run): what is there stays.",
        )
    return target


def _is_beside(name: str, target: str) -> bool:
    """Whether a target is a folder of the pointer's name beside it."""
    return re.fullmatch(re.escape(name) + "-[0-9a-f]{8}", target) is not None


def _link(folder: Path, name: str, target: str) -> None:
    link = folder / name
    if link.is_symlink() and os.readlink(link) == target:
        return
    if os.path.lexists(link) and not (link.is_symlink() and _is_beside(name, os.readlink(link))):
        raise UserError(f"{link} is in the way of the pointer to {target}.", f"Move it: mv {link} {link}.old")
    temporary = folder / f".{name}.{socket.gethostname()}@{os.getpid()}-{next(_counter)}"
    try:
        os.symlink(target, temporary)
        os.replace(temporary, link)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"Cannot make the link {link}: {error.strerror}.",
            "Choose a working folder that you may write to, on a file system with symbolic links.",
        ) from error
    sync_folder(folder)
    for leftover in folder.glob(f".{name}.*@*"):
        if abandoned(leftover, leftover.name.removeprefix(f".{name}.")):
            leftover.unlink(missing_ok=True)
