"""Pointers: a relative symbolic link `<folder>/<name>` to the artefact folder that is in force.

Artefact folders end in digits of their identity and are never overwritten (R5); the pointer says which one a name means.
"""

from __future__ import annotations

import itertools
import os
import socket
from pathlib import Path

from pipeline.storage import abandoned, sync_folder
from schemas.errors import UserError

_counter = itertools.count()


def point(folder: Path, name: str, target: str) -> None:
    """Make `<folder>/<name>` point to `<folder>/<target>`, atomically and durably.

    Raises:
        UserError: something that is not a pointer already has that name, or links cannot be made here.
    """
    link = folder / name
    if link.is_symlink() and os.readlink(link) == target:
        return
    if link.exists() and not link.is_symlink():
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


def resolve_pointer(folder: Path, name: str) -> Path | None:
    """The folder that `<folder>/<name>` points to, or None when there is no such pointer or its target is gone."""
    try:
        target = folder / os.readlink(folder / name)
    except OSError:
        return None
    return target if target.is_dir() else None
