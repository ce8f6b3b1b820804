"""Documents of the feature cache: definitions, records of finished units, statistics."""

from __future__ import annotations

from typing import ClassVar, Literal

from unic_pipe.schemas.base import Digest, Document, FastHash, InsidePath, Model, Name
from unic_pipe.schemas.codecs import CodecChoice, CodecName, is_calibrated
from unic_pipe.schemas.config import Scalar, TokenType
from unic_pipe.schemas.places import Dtype
from unic_pipe.schemas.recipes import Recipe
from unic_pipe.schemas.samples import Decoding

"""How a token type is stored in the end; `auto` chooses among them."""


Readout = Literal["vit", "cnn", "fc-norm", "head", "class-tokens", "cnn-norm"]
"""How cls and patch tokens are read from a model's features."""


class EncoderDefinition(Model):
    """What makes an encoder what it is: architecture, weights, preprocessing, readout. Its digest is its identity."""

    architecture: str
    """timm model name."""
    model_args: dict[str, Scalar] = {}
    weights: str
    """SHA-256 of the weights file, or `random:SEED`."""
    conversion: str = "timm"
    """How the file's keys map onto the architecture (`timm`, `dino`, `ibot`, `deit3`, `dbot-ft`, ...)."""
    section: str | None = None
    """Where in the file the weights are, sections and wrappers joined by dots (`model_ema`, `model.teacher.backbone`).
    None: the first of `state_dict`, `model` and `teacher` that is there, or else the file itself."""
    readout: Readout
    """`vit`: final norm on all tokens. `cnn`: pooled map and spatial map. `fc-norm`: fc_norm(mean patch), raw patches.
    `head`: what the model's own head makes of the tokens (attention pooling), and these without prefix tokens.
    `class-tokens`: several class tokens, joined, and the patch tokens. `cnn-norm`: as `cnn`, the map normed as cls is."""
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    cls_dim: int
    patch_dim: int
    grid: tuple[int, int]
    """Rows and columns of the patch tokens."""

    def shape(self, token: TokenType) -> tuple[int, ...]:
        """Shape of one row's features: (D,) for `cls`, (P, D) for `patch`."""
        return (self.cls_dim,) if token == "cls" else (self.grid[0] * self.grid[1], self.patch_dim)


class CodecDefinition(Model):
    """The codec of a feature cache; `version` changes when the bytes would."""

    name: CodecChoice
    version: int = 1
    snr_db: float | None = None
    """Signal-to-noise ratio that `klt` and `auto` aim for, in dB, of features standardized per dimension."""
    rows: int | None = None
    """Most rows that calibrate cls; the axes are then those of all of them. None: `extraction.calibrate.ROWS` and
    `FRACTION`, and the axes are those of three quarters."""

    @property
    def calibrated(self) -> bool:
        """Whether a calibration says how units are stored."""
        return is_calibrated(self.name)


class ComputeDefinition(Model):
    """Everything about the forward pass that may change bits, apart from the hardware."""

    dtype: Dtype
    tf32: bool = False
    batch: int
    threads: int
    channels_last: bool = True
    views: Literal["host", "device"] = "host"
    """Where the photometric part of the views was done; `host` also for recipes that have none."""
    compile: bool = False


class FeatureDefinition(Model):
    """What one encoder's features of one dataset are made from. Its digest decides freshness (R2)."""

    format: int = 1
    dataset: Digest
    """Digest of the dataset's first segment."""
    block_rows: int
    encoder: EncoderDefinition
    recipe: Recipe
    view_seed: int
    codec: CodecDefinition
    compute: ComputeDefinition
    decoding: Decoding = Decoding()


class FeatureManifest(Document):
    """`features/<dataset>-<encoder>-<8 digits>/manifest.json`: created once, before the first unit."""

    KIND: ClassVar[str] = "features"

    dataset: Name
    encoder: Name
    definition: FeatureDefinition
    digest: Digest


class FileEntry(Model):
    """A file that belongs to a unit: path relative to the feature folder, bytes, XXH3-128 of its content."""

    path: InsidePath
    size: int
    xxh3: FastHash


class CodecTrial(Model):
    """What a codec achieved on the calibration's held-out rows."""

    codec: CodecName
    bits_per_value: float
    """Bytes of the shards that would be written, in bits per feature value."""
    snr_db: float
    """10 log10(variance / mean squared error) of the features standardized per dimension."""
    shared_bits: float = 0.0
    """Bytes of the arrays that all rows share, in bits per feature value of one view of the dataset."""


class CalibrationDocument(Document):
    """`calibration/<token>.json`: how a token type is stored. Created once, before the first unit (R10).

    `scalar` and `klt` store integers: coefficients divided by the step. The arrays that turn them into features lie in
    Zarr arrays beside it, and `files` names them.
    """

    KIND: ClassVar[str] = "calibration"

    definition: Digest
    token: TokenType
    codec: CodecName
    step: float = 0.0
    """Width of a quantisation interval, in standard deviations of a feature."""
    rounding: float = 0.5
    """Magnitudes are rounded down after adding this; less than a half widens the interval around zero."""
    rows: int
    """Rows on which it was calibrated, chosen at random."""
    rows_digest: Digest
    """SHA-256 over their row numbers."""
    trials: tuple[CodecTrial, ...]
    variances: tuple[float, ...] = ()
    """Of the standardized sample along its principal axes, in falling order: what Gaussian R(D) is computed from."""
    files: tuple[FileEntry, ...] = ()
    """`zarr.json` and chunk of every array, in order."""


class BadRow(Model):
    """A row that cannot be used, by its offset inside the block."""

    offset: int
    key: str
    reason: str


class UnitLoss(Model):
    """How like the original the tokens of a unit's sample rows came back, standardized per dimension."""

    tokens: int
    cosine: float
    """Of each token with what came back, summed."""
    cosine_min: float


class UnitRecord(Document):
    """Proof that a unit is finished, written last (R8). One per (view, token type, block)."""

    KIND: ClassVar[str] = "unit"

    definition: Digest
    calibration: Digest | None = None
    """Digest of the calibration document by which the unit is stored; None where the codec needs none."""
    view: int
    token: TokenType
    block: int
    rows: Digest
    """SHA-256 over the keys and content hashes of the block's rows."""
    valid: str
    """One bit per row of the block, packed most significant bit first, as hexadecimal."""
    count: int
    """Number of rows in the block."""
    bad: tuple[BadRow, ...] = ()
    files: tuple[FileEntry, ...]
    """The shard files, then the escape table if there is one, then the statistics sidecar last."""
    batch: int
    """Batch size that was really used; differs from the definition's after a forced smaller batch."""
    loss: UnitLoss | None = None
    """None where too few tokens say what a standard deviation is."""


class TokenStatistics(Model):
    """Exact per-dimension statistics of one token type over named units."""

    count: int
    """Number of tokens."""
    mean: tuple[float, ...]
    m2: tuple[float, ...]
    """Sum of squared deviations from the mean, per dimension (float64)."""


class StatisticsDocument(Document):
    """Frozen statistics over a set of units; a student names it by its digest."""

    KIND: ClassVar[str] = "statistics"

    definition: Digest
    views: tuple[int, ...]
    patch_views: tuple[int, ...] | None = None
    """Views whose patches are covered; None: those of `views`."""
    blocks: int
    """Statistics cover blocks 0 to `blocks` - 1."""
    units: Digest
    """SHA-256 over the content hashes of the units' shard files, in order."""
    cls: TokenStatistics | None
    patch: TokenStatistics | None


class TokenLoss(Model):
    """What storing one token type lost, over all finished units."""

    token: TokenType
    codec: CodecName
    units: int
    bytes: int
    """Shards and escape tables."""
    bits_per_value: float
    snr_db: float | None = None
    """10 log10(mean square / mean squared error) of features standardized per dimension; None where no unit says."""
    cosine_mean: float | None = None
    cosine_min: float | None = None
    gaussian_rd_bits: float | None = None
    """Bits per value that Gaussian features with the same covariance of dimensions need for this ratio; None for
    codecs without a calibration."""


class LossDocument(Document):
    """`losses.json` of a feature folder: derived from the records when an extraction ends."""

    KIND: ClassVar[str] = "losses"

    definition: Digest
    tokens: tuple[TokenLoss, ...]
