"""Documents of planning: what was measured on this machine, and what `plan --json` prints."""

from __future__ import annotations

from typing import ClassVar

from unic_pipe.schemas.base import Digest, Document, Model
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.status import Stage


class CodecMeasurement(Model):
    """What one token type of one row takes with one codec, from units that were really written."""

    row_bytes: float
    """Bytes of a unit's shards per row."""
    row_spread: float | None = None
    """How far rows that a codec was fitted to and others are from it, relative; None of codecs that are not fitted."""
    unit_bytes: float
    """Bytes of a unit that its rows do not change: empty shards, record and statistics."""
    plane_bytes: float
    """Bytes of a (view, token type) beside its units: array metadata and the frame of the table of records."""
    unit_files: int
    """Shard files of a unit."""
    unit_folders: int
    plane_files: int
    plane_folders: int
    token_bytes: float = 0.0
    """Bytes of the token type's calibration, once per feature folder."""
    token_files: int = 0
    row_seconds: float
    """Seconds of one core to encode, check and write a row."""
    calibration_seconds: float = 0.0
    """Seconds of one core to fit the codec to the rows that were measured."""


class Measurement(Document):
    """`runs/measurements/<8 digits>.json`: one encoder on some rows of one dataset, on one kind of device."""

    KIND: ClassVar[str] = "measurement"
    VERSION: ClassVar[int] = 2
    SEALED: ClassVar[int] = 2

    encoder: Digest
    dataset: Digest
    recipe: Digest
    device: str
    rows: int
    """Rows that were measured."""
    decode_seconds: float
    """Seconds of one core to read and decode an image."""
    render_seconds: float
    """Seconds of one core to render a view of it."""
    forward_seconds: float
    """Seconds of a forward pass per image: of one core on a CPU, of the device elsewhere."""
    forward_spread: float | None = None
    """Its standard error over the measured batches, relative; None of a single one."""
    calibration_rows: int = 0
    """Rows that calibrated codecs were fitted to."""
    folder_bytes: float
    """Bytes of a feature folder without views: manifest, group metadata, ledger."""
    folder_files: int
    view_bytes: float
    """Bytes of a view beside its token types: group metadata and probe pictures."""
    view_files: int
    codecs: dict[TokenType, dict[str, CodecMeasurement]]
    """By token type and codec."""


class StepMeasurement(Document):
    """`runs/measurements/student-<8 digits>.json`: what a training step of one student costs, on one kind of device."""

    KIND: ClassVar[str] = "step-measurement"

    student: Digest
    """Of everything of it that makes a step cost more or less."""
    device: str
    versions: str
    """Of the programs with which it was measured."""
    seconds: float
    """Seconds of a step."""
    checkpoint_bytes: int
    export_bytes: int


class PlanRow(Model):
    """One token type of one encoder's features, one student, or what cannot be planned yet."""

    name: str
    """As in `status`, for instance `features/train/dino`."""
    stage: Stage
    token: TokenType | None = None
    images: int = 0
    views: int = 0
    tokens: int = 0
    """Tokens per image and view."""
    codec: str | None = None
    bits_per_value: float | None = None
    bytes: int = 0
    """When it is finished."""
    bytes_left: int = 0
    """Still to be written."""
    files: int = 0
    """Files still to be written."""
    hours: float | None = None
    """Still to be worked; a feature folder's time stands in its first row."""
    note: str = ""


class StagePlan(Model):
    """Totals of one stage: what is still to be written and worked."""

    bytes: int
    files: int
    hours: float | None
    probes: int = 0
    """Probes without a result; their time is not in `hours`."""


class PlanReport(Model):
    """`unic-pipe plan --json`."""

    bytes: int
    """Still to be written, by all stages."""
    files: int
    inodes: int
    """Files and folders still to be made."""
    hours: float | None
    hours_spread: float | None = None
    """Standard error of the extraction's hours, relative, as far as the measured batches differ; None where it is not known."""
    bytes_spread: float | None = None
    """How far the extraction's bytes may be off, relative, by what fitted codecs take on other images; None where it is not
    known."""
    free_bytes: int
    fits: bool
    """Whether the disk has room for the bytes and the inodes."""
    device: str
    cores: int
    mb_per_s: float | None
    """Writing rate of the extraction, in MB/s."""
    bottleneck: str | None
    """What the extraction waits for most: `decoding`, `rendering`, `encoders`, `encoding` (the codec) or `disk`."""
    stages: dict[Stage, StagePlan]
    rows: tuple[PlanRow, ...]
    measured: str | None = None
    """When the oldest measurement that was used again was made (UTC, ISO 8601); None: all are of now."""
    advice: str | None = None
    """The lines of unic-pipe.yaml that fit `--disk` and `--deadline`."""

    @property
    def unknown(self) -> tuple[PlanRow, ...]:
        """What the sums lack: datasets that are not indexed, and teachers without weights."""
        return tuple(row for row in self.rows if row.stage in ("index", "extract") and not row.images)
