"""Reading many pieces of shards from object stores: neighbours in one request, several requests under way.

A request costs tens of milliseconds before its first byte, whatever its size; images of one block mostly lie side by
side in one tar. Which bytes are asked for never changes what is read: every image is still checked by its hash.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

GAP_BYTES = 256 << 10
"""Pieces that are no further apart are read together: a gap of this size takes less time than another request."""
RANGE_BYTES = 4 << 20
"""Most that one request asks for (a single piece may be larger)."""
AHEAD_BYTES = 32 << 20
"""Bytes requested and not yet used, for one `ReadAhead`; bounds memory when pieces are large."""
REQUESTS = 32
"""Under way at a time, in a process."""

Piece = tuple[str, int, int]
"""(shard, offset, bytes)"""


@dataclass
class _Range:
    shard: str
    start: int
    end: int
    pieces: list[int]
    """Which pieces it holds; a piece leaves when it was taken."""


class ReadAhead:
    """Gives pieces in any order, best in the order in which they were named; from any thread, each once."""

    def __init__(self, read: Callable[[str, int, int], bytes], pieces: Sequence[Piece]) -> None:
        """`read(shard, offset, size)` makes one request."""
        self._read, self._pieces = read, tuple(pieces)
        self._ranges = ranges_of(self._pieces)
        self._range_of = {piece: i for i, found in enumerate(self._ranges) for piece in found.pieces}
        self._requested: dict[int, Future[bytes]] = {}
        self._next, self._waiting = 0, 0
        self._lock = threading.Lock()

    def take(self, number: int) -> bytes | None:
        """Piece `number`, shorter at the end of a shard; None if it was taken before, or its request failed.
        Raises UserError, StageError: the object store's refusals."""
        with self._lock:
            i = self._range_of.pop(number, None)
            if i is None:
                return None
            self._request(i)
            request, found = self._requested[i], self._ranges[i]
        try:
            data = request.result()
        except OSError:
            return None
        finally:
            with self._lock:
                found.pieces.remove(number)
                if not found.pieces:
                    del self._requested[i]
                    self._waiting -= found.end - found.start
                    self._request(None)
        _, offset, size = self._pieces[number]
        return data[offset - found.start : offset - found.start + size]

    def _request(self, needed: int | None) -> None:
        """Start requests in order while there is room, and the one that is needed now in any case."""
        while self._next < len(self._ranges):
            found, i = self._ranges[self._next], self._next
            if i not in self._requested:
                if self._waiting and self._waiting + found.end - found.start > AHEAD_BYTES:
                    break
                self._start(i)
            self._next += 1
        if needed is not None and needed >= self._next and needed not in self._requested:
            self._start(needed)

    def _start(self, i: int) -> None:
        found = self._ranges[i]
        if found.pieces:
            self._waiting += found.end - found.start
            self._requested[i] = _pool().submit(self._read, found.shard, found.start, found.end - found.start)


def ranges_of(pieces: Sequence[Piece]) -> list[_Range]:
    """Pieces joined into ranges of at most `RANGE_BYTES`, in the order of the first piece of each."""
    ranges: list[_Range] = []
    for i in sorted(range(len(pieces)), key=lambda i: pieces[i]):
        shard, offset, size = pieces[i]
        last = ranges[-1] if ranges else None
        end = offset + size
        if (
            last is not None
            and last.shard == shard
            and offset - last.end <= GAP_BYTES
            and max(end, last.end) - last.start <= RANGE_BYTES
        ):
            last.end = max(end, last.end)
            last.pieces.append(i)
        else:
            ranges.append(_Range(shard, offset, end, [i]))
    return sorted(ranges, key=lambda found: min(found.pieces))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(REQUESTS, thread_name_prefix="samples")


os.register_at_fork(after_in_child=_pool.cache_clear)  # the parent's threads are not here
