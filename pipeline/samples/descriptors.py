"""Reading byte ranges of shards, with few open files, from any thread and after a fork."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

MOST_OPEN = 32


class _Descriptor:
    """An open file; closed when the last reader lets go of it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class ShardFiles:
    """Shards found under roots, the most recently used ones open."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = tuple(roots)
        self._reset()

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, fewer at the end of the file.

        Raises:
            FileNotFoundError: under no root.
            OSError: the disk's errors.
        """
        descriptor = self._open(shard)
        data = os.pread(descriptor.number, size, offset)
        while len(data) < size:
            more = os.pread(descriptor.number, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def forget(self, shard: str) -> None:
        """Open the shard anew at its next read."""
        with self._lock:
            self._open_files.pop(shard, None)

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open_files: OrderedDict[str, _Descriptor] = OrderedDict()

    def _open(self, shard: str) -> _Descriptor:
        if self._process != os.getpid():  # after a fork: the parent's lock may be held by a thread that is not here
            self._reset()
        with self._lock:
            found = self._open_files.get(shard)
            if found is not None:
                self._open_files.move_to_end(shard)
                return found
        opened = self._find(shard)
        with self._lock:
            self._open_files[shard] = opened
            while len(self._open_files) > MOST_OPEN:
                self._open_files.popitem(last=False)
        return opened

    def _find(self, shard: str) -> _Descriptor:
        for root in self._roots:
            try:
                return _Descriptor(root / shard)
            except (FileNotFoundError, NotADirectoryError):
                continue
        raise FileNotFoundError(shard)
