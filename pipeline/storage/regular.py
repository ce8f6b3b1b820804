"""Files that others hand over: only regular ones are opened, because a named pipe or a device may never end, or never begin."""

import stat
from pathlib import Path

from unic_pipe.schemas.errors import UserError

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def require_regular(path: Path) -> Path:
    """The path, if it leads to a regular file.

    Raises:
        OSError: it leads to nothing, or may not be looked at.
        UserError: it leads to something else than a file.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind != stat.S_IFREG:
        raise UserError(
            f"{path} is {_KINDS.get(kind, 'no file')}, not a file.", "Name a file, or move this one out of the way."
        )
    return path
