"""CPU threads: how many cores this process may use, and how many of them torch takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def torch_threads(threads: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """So many of torch's CPU threads inside the block (sums, and so the last bits, depend on it), and as many as before
    after it. Where the work is done by another `device` than the CPU, none are set."""
    import torch

    before = torch.get_num_threads()
    try:
        if torch.device(device).type == "cpu":
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)
