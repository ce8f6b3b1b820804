"""Whether malloc gives freed memory back to the system. Only glibc is told anything."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -2, -3, -4, -8
"""Parameters of glibc's `mallopt`: how much may lie free at the end of the heap; how much more is asked for than is needed;
the size from which a block is mapped by itself, and unmapped when it is freed; how many such blocks there may be; and how
many threads may have heaps of their own, which are of `HEAP` bytes, and given back when they are empty."""
HEAP, OWN_TOP_PAD = 64 << 20, 128 << 10
"""Where so much must be left over, an empty heap is not given back; and glibc's own."""
OWN_MMAP, OWN_MMAP_MAX = 32 << 20, 65536
"""The largest size to which glibc raises the second by itself (it then lets twice as much lie free), and its own third."""
UNLIMITED = 2**31 - 1
_kept = False


@cache
def _libc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    found = ctypes.CDLL(None)
    return found if hasattr(found, "mallopt") else None  # musl has none


def share_one_heap() -> None:
    """Threads that have not begun yet have no heap of their own. For good.

    What does not fit a thread's own heaps (`HEAP`) is mapped and zeroed each time: with arrays of 26 and 78 MB, the encoding of
    images of 160 pixels took 1.5 times as long. Of small arrays a thread had better find those that it has freed itself, which
    its core still holds: with one heap, training at 48 pixels took 1.2 times as long, and encoding at 96 pixels 1.4 times.
    """
    libc = _libc()
    if libc is not None:
        libc.mallopt(ARENA_MAX, 1)


def keep_freed_memory(device_type: str = "cpu") -> None:
    """Where a CPU does the same again and again, what one pass has freed is there for the next.

    Otherwise every pass has its pages mapped and zeroed anew, which took a twelfth of the CPU time of an
    EfficientNet-Lite0's training steps, and four tenths of its extraction. Without glibc, or on another device, nothing
    changes.
    """
    global _kept
    libc = _libc()
    if device_type == "cpu" and libc is not None:
        _kept = True
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, UNLIMITED)
        libc.mallopt(TOP_PAD, HEAP)


def give_freed_memory_back() -> None:
    """Back to glibc's ways, with what lies free given to the system."""
    global _kept
    libc = _libc()
    if _kept and libc is not None:
        _kept = False
        libc.mallopt(MMAP_MAX, OWN_MMAP_MAX)
        libc.mallopt(MMAP_THRESHOLD, OWN_MMAP)
        libc.mallopt(TRIM_THRESHOLD, 2 * OWN_MMAP)
        libc.mallopt(TOP_PAD, OWN_TOP_PAD)
        libc.malloc_trim(0)


@contextmanager
def freed_memory_kept(device_type: str = "cpu") -> Iterator[None]:
    """Freed memory is kept inside the block, and given back at its end, unless it was kept before it."""
    before = _kept
    keep_freed_memory(device_type)
    try:
        yield
    finally:
        if not before:
            give_freed_memory_back()
