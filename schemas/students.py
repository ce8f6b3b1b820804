"""Documents of distillation: what a student is made from, its checkpoints, its export."""

from __future__ import annotations

from typing import ClassVar

from unic_pipe.schemas.base import Digest, Document, InsidePath, Model, Name
from unic_pipe.schemas.config import StudentConfig, TokenType


class TeacherInput(Model):
    """One teacher of a student, by the digest of its features' definition."""

    name: Name
    features: Digest | None = None
    """Of the first dataset; None: it teaches on others alone."""
    grid: tuple[int, int]
    cls_dim: int
    patch_dim: int


class DatasetInput(Model):
    """A dataset of a mixture, but for the first."""

    name: Name
    dataset: Digest
    blocks: int
    """Trained on blocks 0 to `blocks` - 1."""
    features: dict[Name, Digest]
    """Features of those teachers that teach on it, by the digest of their definition."""


class StudentDefinition(Model):
    """What a student is made from. Its digest names its folder and decides freshness (R2)."""

    format: int = 1
    config: StudentConfig
    dataset: Digest
    blocks: int
    """Trained on blocks 0 to `blocks` - 1 of the dataset."""
    views: int
    """Trained on views 0 to `views` - 1."""
    patch_views: int | None = None
    """Views 0 to `patch_views` - 1 carry patches, the others are trained on by the cls loss alone; None: all do."""
    patch_every: int | None = None
    """An epoch in so many takes a view with patches; None: all views take equal turns."""
    teachers: tuple[TeacherInput, ...]
    mixed: tuple[DatasetInput, ...] = ()
    """The other datasets of a mixture, in the order of their names."""
    parent: Digest | None = None
    """Digest of the weights file that `config.init` names."""
    section: str | None = None
    """Section of that file that is read; None: the usual one."""
    labels: Digest | None = None
    """Of the labels of its dataset, where the loss is about classes."""
    live: bool = False
    """Teachers ran in the training loop, on a fresh view every epoch: the reference that a cache is compared with."""

    @property
    def datasets(self) -> tuple[tuple[str, int], ...]:
        """Digest and number of blocks of every dataset, in the order of their names."""
        return (self.dataset, self.blocks), *((part.dataset, part.blocks) for part in self.mixed)

    @property
    def features(self) -> set[str]:
        """Digests of all features that it is trained on."""
        others = {digest for part in self.mixed for digest in part.features.values()}
        return {teacher.features for teacher in self.teachers if teacher.features is not None} | others

    def token_views(self, token: TokenType) -> int:
        """Number of views with tokens of a type."""
        return self.views if token == "cls" or self.patch_views is None else self.patch_views


class StudentManifest(Document):
    """`students/<name>-<8 digits>/manifest.json`: written when training starts, and then fixed."""

    KIND: ClassVar[str] = "student"
    VERSION: ClassVar[int] = 2
    SEALED: ClassVar[int] = 2

    name: Name
    definition: StudentDefinition
    digest: Digest
    statistics: dict[Name, Digest]
    """Digest of each teacher's statistics document (a copy stands in the student's folder)."""
    targets: dict[Name, Digest] = {}
    """Digest of what was measured of each teacher's targets beside, where the loss needs it."""
    rows: int
    rows_digest: Digest
    """Digest of the rows that are valid for all of their teachers and views; of a mixture, of all its datasets."""
    steps: int
    """Optimizer steps of the whole training."""


class TargetStatistics(Document):
    """`students/<name>-<8 digits>/statistics/targets/<teacher>.json`: measured on a sample when training starts."""

    KIND: ClassVar[str] = "target-statistics"

    rows: dict[TokenType, int]
    """Wanted of the sample."""
    dispersions: dict[TokenType, float] = {}
    """Mean squared angle of tokens to their mean direction, in radians²."""
    rotations: dict[TokenType, Digest] = {}
    """SHA-256 of the file beside that holds the rotation of PHI-S."""
    class_means: dict[TokenType, Digest] = {}
    """SHA-256 of the file beside that holds the means by class."""
    classifiers: dict[TokenType, Digest] = {}
    """SHA-256 of the file beside that holds the classifier whose logits are learned."""


class CheckpointEntry(Document):
    """`students/<name>/latest.json`: the newest durable checkpoint."""

    KIND: ClassVar[str] = "checkpoint"
    VERSION: ClassVar[int] = 2
    SEALED: ClassVar[int] = 2

    file: InsidePath
    step: int
    size: int
    digest: Digest
    student: Digest
    threads: int | None = None
    """CPU threads of the training, with which it goes on; None: those of the student's definition."""
    compiled: bool | None = None
    """Whether its steps are compiled, by which `distill.compile: auto` goes on; None: not recorded."""
    at_once: int | None = None
    """Micro-batches of a step on a CPU that are learned from at once, by equal parts of the threads; None: a whole step."""


class StudentShape(Model):
    """What `init` knows of a student's network when it fits a training to the data."""

    architecture: str
    image_size: int
    patch: int
    """Pixels of the side of a patch."""
    width: int
    """For its projectors: dimensions of its rungs, or a quarter of the last one's where they grow from stage to stage."""
    batch_norm: bool = False
    """Whether it has BatchNorm layers."""


class StudentVerdict(Model):
    """Whether a student's settings make a network that can be trained, as building it once has shown."""

    problem: str | None = None
    """Why not; None where nothing is wrong."""
    hint: str | None = None
    batch_norm: bool = False
    """Whether it normalises by statistics of the batch, which are others where a batch is taken in parts."""


class StudentVerdicts(Document):
    """`runs/students.json`: answers that can be found again, so that `status` needs no PyTorch."""

    KIND: ClassVar[str] = "student-verdicts"

    versions: str
    """Of the programs that gave them; with others they say nothing."""
    verdicts: dict[Digest, StudentVerdict] = {}
    """By the digest of the settings that shape the network."""


class ExportManifest(Document):
    """`students/<name>/export/manifest.json`: the finished student; its presence and digests mean done."""

    KIND: ClassVar[str] = "export"
    VERSION: ClassVar[int] = 2
    SEALED: ClassVar[int] = 2

    student: Digest
    step: int
    weights: Digest
    """SHA-256 of `model.safetensors`."""
    config: Digest
    """SHA-256 of `config.json`."""
    adaptors: Digest | None = None
    """SHA-256 of `adaptors.safetensors`; None: exported by a version that did not write it."""
    machine: str | None = None
    """The processor, and the GPU, on which the last step was made; None: exported by a version that did not say."""


class ImportManifest(Document):
    """`encoders/<name>/manifest.json`: an official checkpoint as it was brought in. Folders of versions before it have none."""

    KIND: ClassVar[str] = "import"

    files: dict[InsidePath, Digest]
    """SHA-256 of every file of the folder."""
