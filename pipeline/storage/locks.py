"""One process at a time: an advisory lock on a file, released by the system when its holder dies."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unic_pipe.schemas.errors import StageError

try:
    import fcntl
except ImportError:  # Windows has no flock; there a second process is not noticed.
    fcntl = None  # type: ignore[assignment]


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs.
    Raises StageError: another process holds it; `what` says in the message what that process is doing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as handle:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                holder = handle.read().strip() or "another process"
                raise StageError(
                    f"{what} is running already ({holder}).", "Wait for it, or watch it: unic-pipe status --watch"
                ) from None
        # Who holds it is for people only: on a full disk the lock is as good without (and `gc` has to run there).
        with suppress(OSError):
            os.truncate(handle.fileno(), 0)
            os.write(handle.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold a lock file while the block runs, if nobody else does; whether it is held."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as handle:
        held = True
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                held = False
        yield held
