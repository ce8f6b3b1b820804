"""Files and folders that a user names for a command to write: refused early where they would fail at the end."""

import os
from pathlib import Path

from unic_pipe.schemas.errors import UserError


def require_target(path: Path, overwrite: bool, ours: frozenset[str] | None = None) -> None:
    """See whether a path can be written. `ours`: a folder is, which an empty one or one with no other files than these may
    be already.
    Raises UserError: no such folder to write in, or something is there that may not be replaced."""
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{path.parent} is no folder that you may write to.", f"mkdir -p {path.parent}")
    if path.is_dir() and ours is not None:
        there = {entry.name for entry in path.iterdir()}
        if path.is_symlink() or not there <= ours:
            raise UserError(f"{path} holds other things.", "Choose another name.")
        exists = bool(there)
    else:
        if path.is_dir() or (path.exists() and ours is not None):
            raise UserError(f"{path} exists, and is no {'file' if ours is None else 'folder'}.", "Choose another name.")
        exists = path.exists()
    if exists and not overwrite:
        raise UserError(f"{path} exists.", "Choose another name, or add --overwrite.")
