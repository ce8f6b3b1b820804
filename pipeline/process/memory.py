"""Whether malloc gives freed memory back to the system. Only glibc is told anything."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -3, -4, -8
"""Parameters of glibc's `mallopt`: how much may lie free at the end of the heap; the size from which a block is mapped by
itself, and unmapped when it is freed; how many such blocks there may be; and how many heaps, of which all but the first
are of 64 MiB, and given back when they are empty."""
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
    """Threads that have not begun yet have no heap of their own. For good."""
    libc = _libc()
    if libc is not None:
        libc.mallopt(ARENA_MAX, 1)


def keep_freed_memory(device_type: str = "cpu") -> None:
    """Where a CPU does the same again and again, what one pass has freed is there for the next.

    Otherwise every pass has its pages mapped and zeroed anew, which took a twelfth of the CPU time of an
    EfficientNet-Lite0's training steps, and four tenths of its extraction. In threads with heaps of their own little is
    kept (`share_one_heap`). Without glibc, or on another device, nothing changes.
    """
    global _kept
    libc = _libc()
    if device_type == "cpu" and libc is not None:
        _kept = True
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, UNLIMITED)


def give_freed_memory_back() -> None:
    """Back to glibc's ways, with what lies free given to the system."""
    global _kept
    libc = _libc()
    if _kept and libc is not None:
        _kept = False
        libc.mallopt(MMAP_MAX, OWN_MMAP_MAX)
        libc.mallopt(MMAP_THRESHOLD, OWN_MMAP)
        libc.mallopt(TRIM_THRESHOLD, 2 * OWN_MMAP)
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
