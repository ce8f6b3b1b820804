"""What machines read: the objects that `--json` prints."""

from __future__ import annotations

from typing import Literal

from unic_pipe.schemas.base import Model

Stage = Literal["index", "extract", "distill", "evaluate"]
State = Literal["fresh", "partial", "stale", "missing"]


class Artefact(Model):
    """One artefact as `status` sees it."""

    name: str
    """For instance `features/train/dino` or `students/main`."""
    stage: Stage
    state: State
    done: int
    total: int
    reason: str
    """Why it is stale, what is missing, or a note; empty when there is nothing to say."""
    digest: str | None
    next: str | None
    """The command that makes it fresh."""
    path: str | None = None
    """Folder, relative to the working folder."""
    coverage: dict[str, tuple[int, ...]] = {}
    """Of features: finished blocks of each view, by token type."""
    waits_for: tuple[str, ...] = ()
    """Artefacts that have to be fresh before this one can be begun."""


class StatusReport(Model):
    """`unic-pipe status --json`."""

    artefacts: tuple[Artefact, ...]
    next: str | None
    others: tuple[Artefact, ...] = ()
    """Students in the working folder that the configuration does not ask for; `run` leaves them alone."""
    unsealed: tuple[str, ...] = ()
    """Files of an older version, which carry no checksum of themselves: read, and sealed by `verify --seal`."""
    remarks: tuple[str, ...] = ()
    """What the configuration says and was probably not meant so, such as one teacher under two names."""


class Problem(Model):
    """One damaged or missing file, as `verify` found it."""

    path: str
    teacher: str | None
    token: str | None
    view: int | None
    block: int | None
    kind: str
    """`missing`, `size`, `content`, `record`, `metadata`, `document`, `pointer`, `live`, `unreadable` (the
    disk refuses), `unexpected` (a file that nothing here wrote, which is no damage)."""


class LiveFinding(Model):
    """A teacher that was run again on cached samples; errors are relative to the features' variance."""

    teacher: str
    dataset: str
    token: str
    samples: int
    mean_error: float
    max_error: float
    mean_allowed: float
    max_allowed: float
    ok: bool


class CacheLoss(Model):
    """One teacher and token type of a cache: what it takes, and what was lost (features standardized per dimension)."""

    teacher: str
    dataset: str
    token: str
    codec: str
    bits_per_value: float
    """Of all shards and escape tables, as they lie on disk."""
    bytes: int
    snr_db: float
    cosine_mean: float
    cosine_min: float
    gaussian_rd_bits: float
    """Bits per value that Gaussian features with the same covariance of dimensions would need for this ratio."""
    encode_values_s: float
    """Values per CPU second from features to the bytes of shards."""
    decode_values_s: float
    """Values per CPU second from files to verified stored numbers, as training reads them."""


class RatePoint(Model):
    """A codec at one setting: bits per value, and the signal-to-noise ratio that they buy."""

    codec: str
    bits_per_value: float
    snr_db: float


class RateCurve(Model):
    """All codecs on one teacher's tokens."""

    teacher: str
    dataset: str
    token: str
    points: tuple[RatePoint, ...]


class CacheReport(Model):
    """`unic-pipe report cache --json`."""

    rows: tuple[CacheLoss, ...]
    curves: tuple[RateCurve, ...] = ()


class VerifyReport(Model):
    """`unic-pipe verify --json`."""

    ok: bool
    checked: int
    problems: tuple[Problem, ...]
    live: tuple[LiveFinding, ...] = ()
    """With `--live`: one per teacher, dataset and token type that could be run."""
    skipped: tuple[str, ...] = ()
    """With `--live`: teachers that could not be run, and why."""
    unsealed: tuple[str, ...] = ()
    """Files of an older version, which carry no checksum of themselves. They are no problems."""
    quick: bool = False
    """With `--quick`: shards, weights and checkpoints were not read."""
    leftovers: tuple[str, ...] = ()
    """What killed processes left, which `gc` removes. They are no problems."""
    sealed: tuple[str, ...] = ()
    """With `--seal`: files that were unsealed until now."""
