"""Durable, atomic files. Everything that must survive a kill is written through a `Store`.

A store is a folder addressed by slash-separated keys. `put` replaces atomically; `create` succeeds for exactly one of
several writers. Both return only when the bytes and the folder entries that lead to them are on disk.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import xxhash

from schemas.errors import StageError, UserError

_counter = itertools.count()
_TEMP = ".tmp"
_DAY_S = 86_400


def sha256(data: bytes) -> str:
    """SHA-256 of bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def fast_hash(data: bytes) -> str:
    """XXH3-128 of bytes, 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Store(Protocol):
    """What the cache and the documents need of a place to live in."""

    def get(self, key: str) -> bytes:
        """The bytes under a key. Raises FileNotFoundError."""

    def put(self, key: str, data: bytes) -> None:
        """Write or replace, atomically and durably."""

    def create(self, key: str, data: bytes) -> bool:
        """Write only if nothing is there; False when somebody else was first."""

    def delete(self, key: str) -> None:
        """Remove a key; no error if it is not there."""

    def keys(self, prefix: str = "") -> Iterator[str]:
        """All keys below a folder `prefix`, in sorted order."""

    def size(self, key: str) -> int | None:
        """Bytes under a key, or None if there is nothing."""


class LocalStore:
    """A `Store` in a local (or network) folder with POSIX rename and link.

    Temporary files live in `.tmp/` of the root and carry host and process id, so that `sweep` can tell what a killed
    process left behind from what a live one is writing.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.root / key

    def get(self, key: str) -> bytes:
        """The bytes under a key. Raises FileNotFoundError."""
        return self.path(key).read_bytes()

    def put(self, key: str, data: bytes) -> None:
        """Write or replace: temporary file, fsync, rename, fsync of the folder."""
        target = self.path(key)
        with _plain_words(target, len(data)):
            temporary = self._write_temporary(data)
            try:
                self._make_folder(target.parent)
                os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync_folder(target.parent)

    def create(self, key: str, data: bytes) -> bool:
        """Write only if nothing is there. A hard link either appears whole or not at all."""
        target = self.path(key)
        with _plain_words(target, len(data)):
            temporary = self._write_temporary(data)
            try:
                self._make_folder(target.parent)
                os.link(temporary, target)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(target.parent)
        return True

    def delete(self, key: str) -> None:
        """Remove a key; no error if it is not there."""
        self.path(key).unlink(missing_ok=True)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """All keys below a folder, in sorted order, without temporary files."""
        top = self.root / prefix
        for folder, folders, files in os.walk(top):
            folders[:] = sorted(f for f in folders if f != _TEMP)
            for name in sorted(files):
                yield Path(folder, name).relative_to(self.root).as_posix()

    def size(self, key: str) -> int | None:
        """Bytes under a key, or None if there is nothing."""
        try:
            return self.path(key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sweep(self) -> None:
        """Remove temporary files of processes of this host that no longer run, and any older than a day."""
        folder = self.root / _TEMP
        if not folder.is_dir():
            return
        for entry in list(folder.iterdir()):
            if abandoned(entry, entry.name):
                entry.unlink(missing_ok=True)

    def _write_temporary(self, data: bytes) -> Path:
        folder = self.root / _TEMP
        self._make_folder(folder)
        path = folder / f"{socket.gethostname()}@{os.getpid()}-{next(_counter)}"
        try:
            with path.open("xb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot fsync a folder; their renames are durable on return.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def abandoned(entry: Path, owner: str) -> bool:
    """Whether a temporary file of `owner`, `HOST@PID-NUMBER`, is of a dead process of this host, or older than a day."""
    host, _, rest = owner.rpartition("@")
    pid = rest.partition("-")[0]
    try:
        age_s = time.time() - entry.lstat().st_mtime
    except FileNotFoundError:
        return False
    ours = host == socket.gethostname() and pid.isdecimal()
    return (ours and not process_runs(int(pid))) or age_s > _DAY_S


def process_runs(pid: int) -> bool:
    """Whether a process of this host with that number exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


_NO_ROOM = {errno.ENOSPC: "Disk full", errno.EDQUOT: "Disk quota used up", errno.EFBIG: "File size limit reached"}


@contextmanager
def _plain_words(target: Path, size: int) -> Iterator[None]:
    """Turn the operating system's refusals into messages that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise StageError(
                f"{_NO_ROOM[error.errno]}: could not write {size:,} bytes to {target}.",
                "Finished work is kept. Free some space and run the same command again.",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"Cannot write {target}: {error.strerror}.",
                "Choose a working folder that you may write to (cd there, or --config FOLDER/unic-pipe.yaml).",
            ) from error
        raise
