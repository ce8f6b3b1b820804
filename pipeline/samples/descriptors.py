"""Reading byte ranges of shards under several roots, with few open files, from any thread and after a fork."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from unic_pipe.pipeline.samples.places import Root
from unic_pipe.pipeline.samples.ranges import LocalRanges
from unic_pipe.pipeline.storage import Store

MOST_OPEN = 32


class _File(LocalRanges):
    """An open file; closed when the last reader lets go of it."""

    def __del__(self) -> None:
        if hasattr(self, "size"):
            self.close()


class _Object:
    """An object: nothing is open between two requests."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key

    def read(self, size: int, offset: int) -> bytes:
        """One range request."""
        return self._store.get_range(self._key, offset, size)


class ShardFiles:
    """Shards found under roots, the most recently used files open."""

    def __init__(self, roots: Sequence[Root]) -> None:
        self._roots = tuple(roots)
        self.remote = any(not isinstance(root, Path) for root in self._roots)
        """Whether reading may mean requests, of which several should be under way at a time."""
        self._reset()

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, fewer at the end of the file.

        Raises:
            FileNotFoundError: under no root.
            OSError: the disk's errors.
            UserError, StageError: the object store's.
        """
        return self._open(shard).read(size, offset)

    def forget(self, shard: str) -> None:
        """Look for the shard anew at its next read."""
        with self._lock:
            self._files.pop(shard, None)
            self._objects.pop(shard, None)

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._objects: dict[str, _Object] = {}

    def _open(self, shard: str) -> _File | _Object:
        if self._process != os.getpid():  # after a fork: the parent's lock may be held by a thread that is not here
            self._reset()
        with self._lock:
            found = self._files.get(shard)
            if found is not None:
                self._files.move_to_end(shard)
                return found
            if shard in self._objects:
                return self._objects[shard]
        opened = self._find(shard)
        with self._lock:
            if isinstance(opened, _Object):
                self._objects[shard] = opened
                return opened
            self._files[shard] = opened
            while len(self._files) > MOST_OPEN:
                self._files.popitem(last=False)
        return opened

    def _find(self, shard: str) -> _File | _Object:
        for number, root in enumerate(self._roots, start=1):
            if isinstance(root, Path):
                try:
                    return _File(root / shard)
                except (FileNotFoundError, NotADirectoryError):
                    continue
            # The last root is not asked: reading will tell.
            if number == len(self._roots) or root.size(shard) is not None:
                return _Object(root, shard)
        raise FileNotFoundError(shard)
