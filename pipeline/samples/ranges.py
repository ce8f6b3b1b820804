"""Reading a shard by position: a local file by its descriptor, an object through a window that is read ahead.

Both give `read(size, offset)`: that many bytes, fewer only at the end of the file.
"""

import os
from collections.abc import Callable
from pathlib import Path

from unic_pipe.pipeline.storage.regular import require_regular

WINDOW_BYTES = 8 << 20
"""An object is read from front to back in requests of this many bytes: few enough requests, little enough memory when
sixteen threads read one each."""


class LocalRanges:
    """A local file. Safe in threads."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(require_regular(path), os.O_RDONLY)
        self.size = os.fstat(self.number).st_size

    def read(self, size: int, offset: int) -> bytes:
        """One `pread`, more only when the system gave less than was asked for."""
        data = os.pread(self.number, size, offset)
        while len(data) < size:
            more = os.pread(self.number, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.number)


class WindowRanges:
    """An object that is read once, from front to back: `fetch(offset, size)` is called for one window after the other.

    Every byte is fetched at most once as long as positions do not go back beyond the window. Not for threads.
    """

    def __init__(self, size: int, fetch: Callable[[int, int], bytes], window: int = WINDOW_BYTES) -> None:
        self.size, self._fetch, self._window = size, fetch, window
        self._start, self._data = 0, b""

    def read(self, size: int, offset: int) -> bytes:
        """From the window; what is beyond it moves the window on."""
        size = max(0, min(size, self.size - offset))
        end = self._start + len(self._data)
        if not self._start <= offset <= end:
            self._start, self._data, end = offset, b"", offset
        if offset + size > end:
            wanted = max(offset + size, min(end + self._window, self.size))
            self._data = self._data[offset - self._start :] + self._fetch(end, wanted - end)
            self._start = offset
        at = offset - self._start
        return self._data[at : at + size]

    def close(self) -> None:
        """Forget the window."""
        self._data = b""


Ranged = LocalRanges | WindowRanges
"""An open shard: its `size` in bytes, and `read(size, offset)`."""
