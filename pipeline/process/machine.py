"""The machine on which this runs: its name, and what else it has to do."""

import os
import platform
import time
from pathlib import Path

import psutil


def machine_name(device: str) -> str:
    """The processor's name, and the GPU's."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    if device.startswith("cuda"):
        import torch

        name = f"{torch.cuda.get_device_name(device)}, {name}"
    return name


class Elsewhere:
    """Counts the CPU seconds of other programs on this machine."""

    def __init__(self) -> None:
        self._started, self._before = time.perf_counter(), self._others()

    def cores(self) -> float:
        """Cores that they kept busy on average since the beginning."""
        return max(0.0, self._others() - self._before) / (time.perf_counter() - self._started)

    @staticmethod
    def _others() -> float:
        times = psutil.cpu_times()
        return float(times.user + times.system) - time.process_time()


def load_average() -> float:
    """Of the last minute; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
