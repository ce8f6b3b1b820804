"""Whether malloc gives freed memory back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`: how much may lie free at the end of the heap, and the size from which a block is mapped
by itself, and unmapped when it is freed."""
OWN_MMAP = 32 << 20
"""The largest to which glibc raises that size by itself; it then lets twice as much lie free."""
UNLIMITED = 2**31 - 1


@contextmanager
def freed_memory_kept(device_type: str = "cpu") -> Iterator[None]:
    """While a CPU takes training steps, keep what they free: the next one asks for the same again. Given back at the end.

    Otherwise every step has its pages mapped and zeroed anew: a twelfth of the CPU time of an EfficientNet-Lite0's step.
    Without glibc, or on another device, nothing changes.
    """
    libc = ctypes.CDLL(None)
    if device_type != "cpu" or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(MMAP_THRESHOLD, UNLIMITED)
    libc.mallopt(TRIM_THRESHOLD, UNLIMITED)
    try:
        yield
    finally:
        libc.mallopt(MMAP_THRESHOLD, OWN_MMAP)
        libc.mallopt(TRIM_THRESHOLD, 2 * OWN_MMAP)
        libc.malloc_trim(0)
