"""What `bench --json` prints: measured times, and the bounds that they are compared with."""

from __future__ import annotations

from typing import Literal

from unic_pipe.schemas.base import Model

Part = Literal["extract", "distill", "live", "ladder", "probe"]
Resource = Literal["host", "device", "disk"]


class BenchRow(Model):
    """One measured piece of work; times are those of one repetition over `images` images."""

    part: Part
    name: str
    resource: Resource | None = None
    """What it keeps busy; None: the whole part as it really runs, or something that is only shown beside it."""
    images: int
    seconds: float
    """Wall time, alone on the machine; the median repetition."""
    low_seconds: float
    high_seconds: float
    cpu_seconds: float
    """CPU seconds of all threads, the median repetition."""
    bound_share: float | None = None
    """Fraction of the bound's seconds that this piece makes up; None for what is no part of it."""
    note: str = ""


class Bound(Model):
    """A part's wall time against the least that its pieces allow."""

    part: Part
    wall_seconds: float
    bound_seconds: float
    limit: str
    """The piece or resource that limits most."""
    device_seconds: float
    host_seconds: float
    """CPU seconds of the host's pieces over the number of cores; of all pieces where the device is the CPU."""
    disk_seconds: float
    cpu_ratio: float
    """CPU seconds of the pieces over those of the whole: what is missing from 1 is work outside the pieces, the rest of
    what is missing from `ratio` is waiting."""

    @property
    def ratio(self) -> float:
        """Efficiency: bound over wall."""
        return self.bound_seconds / self.wall_seconds


class Against(Model):
    """A stage against what one would write instead, on the same images and models, in turns (`--against`)."""

    part: Part
    peer: str
    """What it was compared with."""
    images: int
    """Forward passes, images or rows of one turn."""
    seconds: float
    """Wall seconds of the stage's turn, the median."""
    peer_seconds: float
    ratio: float
    """How many times as fast the stage is: the median over turns of the peer's wall over the stage's."""
    low_ratio: float
    high_ratio: float


class BenchReport(Model):
    """`unic-pipe bench --json`."""

    device: str
    machine: str
    cores: int
    repeats: int
    threads: dict[str, int]
    """CPU threads of a teacher's forward pass (`extract`) and of a training step (`distill`)."""
    load: float
    """Load average of the machine (one minute) before anything ran."""
    others_cores: float
    """Cores that other programs kept busy while this measured."""
    extract_ratio: float | None
    """Bound over wall of the extraction."""
    distill_ratio: float | None
    """Bound over wall of a pass over the cache that reads and renders everything."""
    live_speedup: float | None
    """Wall of the same pass with the teachers in the loop over that from the cache."""
    live_bound: float | None
    """(teachers' forward passes + student step) over student step."""
    bounds: tuple[Bound, ...]
    rows: tuple[BenchRow, ...]
    against: tuple[Against, ...] = ()
    notes: tuple[str, ...] = ()
