"""A `Store` in a local (or network) folder: durable, atomic files."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import psutil

from unic_pipe.schemas.errors import StageError, UserError

try:
    import fcntl
except ImportError:  # Windows has no flock; there two replacements at once are not noticed.
    fcntl = None  # type: ignore[assignment]

_counter = itertools.count()
_TEMP = ".tmp"
_DAY_S = 86_400
ATTEMPTS = 3
"""Writes of a temporary file that somebody else removes before it has its name."""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


@dataclass(unsafe_hash=True)
class LocalStore:
    """A `Store` in a local (or network) folder with POSIX rename and link.

    Temporary files live in `.tmp/` of the root and carry host and process id, so that `sweep` can tell what a killed
    process left behind from what a live one is writing.
    """

    root: Path
    remote = False

    def __post_init__(self) -> None:
        self.root = Path(self.root)

    @property
    def location(self) -> str:
        """The folder's path."""
        return str(self.root)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.root.name

    def child(self, name: str) -> LocalStore:
        """The store in a folder of this one."""
        return LocalStore(self.root / name)

    def describe(self, key: str) -> str:
        """The path of a key's file."""
        return str(self.path(key))

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.root / key

    def get(self, key: str) -> bytes:
        """The bytes under a key. Raises FileNotFoundError."""
        return self.path(key).read_bytes()

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on. Raises FileNotFoundError."""
        with self.path(key).open("rb") as handle:
            handle.seek(offset)
            return handle.read(size)

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those keys that are there."""
        found: dict[str, bytes] = {}
        for key in keys:
            with suppress(FileNotFoundError, NotADirectoryError):
                found[key] = self.get(key)
        return found

    def put(self, key: str, data: bytes) -> None:
        """Write or replace: temporary file, fsync, rename, fsync of the folder."""
        self._publish(key, data, os.replace)

    def create(self, key: str, data: bytes) -> bool:
        """Write only if nothing is there. A hard link either appears whole or not at all."""
        try:
            self._publish(key, data, os.link)
        except FileExistsError:
            return False
        return True

    def _publish(self, key: str, data: bytes, appear: Callable[[Path, Path], None]) -> None:
        """Write a temporary file and let it `appear` under the key."""
        target = self.path(key)
        with _plain_words(target, len(data)):
            for attempt in range(ATTEMPTS):
                temporary = self._write_temporary(data)
                try:
                    self._make_folder(target.parent)
                    appear(temporary, target)
                    break
                except FileNotFoundError:
                    # A machine whose clock is days ahead took our file for an abandoned one.
                    if attempt == ATTEMPTS - 1:
                        raise
                finally:
                    temporary.unlink(missing_ok=True)
            sync_folder(target.parent)

    def replace(self, key: str, data: bytes | None, version: Hashable | None) -> bool:
        """Write or delete under a lock if the version is still this one; a kill releases the lock."""
        with self.locked("replace"):
            if self.version(key) != version:
                return False
            if data is None:
                self.delete(key)
            else:
                self.put(key, data)
        return True

    def delete(self, key: str) -> None:
        """Remove a key; no error if it is not there."""
        self.path(key).unlink(missing_ok=True)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove keys."""
        for key in keys:
            self.delete(key)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """All keys below a folder, in sorted order, without temporary files."""
        return (key for key, _ in self._entries(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """All keys below a folder with their bytes; one that vanishes meanwhile is left out."""
        found: dict[str, int] = {}
        for key, entry in self._entries(prefix):
            with suppress(FileNotFoundError, NotADirectoryError):
                found[key] = entry.stat().st_size
        return found

    def _entries(self, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """All keys below a folder with what the system said of them: those of a folder, then those of its folders.

        Neither by way of `Path` nor of `os.walk`, which asks of every folder whether it is a link: a cache has millions
        of files, and more folders. Folders that cannot be listed, and links to folders, have no keys."""
        left = [prefix.strip("/")]
        while left:
            within = left.pop()
            try:
                with os.scandir(f"{self.root}/{within}") as scanned:
                    entries = sorted(scanned, key=attrgetter("name"))
            except OSError:
                continue
            folders = []
            for entry in entries:
                key = f"{within}/{entry.name}" if within else entry.name
                if not _is_folder(entry):
                    yield key, entry
                elif entry.name != _TEMP and not entry.is_symlink():
                    folders.append(key)
            left += reversed(folders)

    def listing(self, prefix: str = "", deep: bool = True) -> dict[str, tuple[int, Hashable] | None]:
        """Keys below a folder with (bytes, version); not `deep`: immediate children, with None for folders."""
        if deep:
            found = self.keys(prefix)
        else:
            top = self.root / prefix
            names = sorted(os.listdir(top)) if top.is_dir() else []
            found = iter((Path(prefix) / name).as_posix() for name in names if name != _TEMP)
        listed: dict[str, tuple[int, Hashable] | None] = {}
        for key in found:
            version = self.version(key)
            if version is not None:
                listed[key] = None if self.path(key).is_dir() else (version[1], version)
        return listed

    def names(self, prefix: str = "") -> list[str]:
        """Immediate children of a folder, without hidden ones."""
        try:
            return sorted(name for name in os.listdir(self.root / prefix) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def folders(self, prefix: str = "") -> list[str]:
        """Immediate children of a folder that are folders themselves; links are not."""
        try:
            with os.scandir(self.root / prefix) as entries:
                found = [e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(found)

    def size(self, key: str) -> int | None:
        """Bytes under a key, or None if there is nothing."""
        try:
            return self.path(key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def version(self, key: str) -> tuple[int, int, int] | None:
        """(mtime_ns, size, inode) of a key's file: every write is a new inode."""
        try:
            stat = self.path(key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def sweep(self) -> None:
        """Remove temporary files of processes of this host that no longer run, and any older than a day."""
        folder = self.root / _TEMP
        if not folder.is_dir():
            return
        for entry in list(folder.iterdir()):
            if abandoned(entry, entry.name):
                entry.unlink(missing_ok=True)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """One process or thread at a time among those that take the lock of this name; a kill releases it."""
        path = self.root / _TEMP / f"{name}.lock"
        self._make_folder(path.parent)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                # A sweep of old temporary files may have removed the file while we waited for it.
                if _same_file(descriptor, path):
                    os.utime(descriptor, (time.time(),) * 2)
                    yield
                    return
            finally:
                os.close(descriptor)

    def temporary(self) -> Path:
        """Where a temporary file may be written, which `sweep` removes once this process is gone."""
        folder = self.root / _TEMP
        self._make_folder(folder)
        return folder / f"{socket.gethostname()}@{os.getpid()}-{next(_counter)}"

    def _write_temporary(self, data: bytes) -> Path:
        path = self.temporary()
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


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


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
    return (ours and not psutil.pid_exists(int(pid))) or age_s > _DAY_S


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
