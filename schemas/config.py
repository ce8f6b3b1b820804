"""The configuration file, `unic-pipe.yaml`: what a user may decide, with the defaults of the paper."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

from unic_pipe.schemas.base import Model, Name
from unic_pipe.schemas.benchmarks import BenchmarkConfig, named_benchmarks
from unic_pipe.schemas.chains import circles, needed_students
from unic_pipe.schemas.codecs import CodecChoice
from unic_pipe.schemas.errors import did_you_mean
from unic_pipe.schemas.heads import LADDER
from unic_pipe.schemas.heads import LadderConfig as LadderConfig
from unic_pipe.schemas.loggers import LoggersConfig
from unic_pipe.schemas.losses import LossConfig as LossConfig
from unic_pipe.schemas.losses import TokenType as TokenType
from unic_pipe.schemas.optimizers import OptimizerConfig as OptimizerConfig
from unic_pipe.schemas.places import CONSISTENCY as CONSISTENCY
from unic_pipe.schemas.places import Count, Dtype, Fraction, Mean, Pixels, Seeds, Std, Threads, ascending
from unic_pipe.schemas.places import DatasetConfig as DatasetConfig
from unic_pipe.schemas.places import SamplesConfig as SamplesConfig
from unic_pipe.schemas.places import StorageConfig as StorageConfig
from unic_pipe.schemas.probes import LabelledProbe
from unic_pipe.schemas.protocols import DenseConfig, ZeroShotConfig
from unic_pipe.schemas.recipes import RECIPES, Recipe
from unic_pipe.schemas.references import problem
from unic_pipe.schemas.references import reference_problems as reference_problems
from unic_pipe.schemas.starts import Start

Scalar = bool | int | float | str
Positive = Annotated[float, Field(gt=0)]


class ViewsConfig(Model):
    """How many views of each training sample are cached, and what they look like."""

    recipe: str | Recipe = "unic"
    """`unic` (the paper's crops and colours), `gentle` (mild crops alone), `center`, or parameters of your own."""
    count: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Views of each sample; all of them carry `cls` tokens."""
    patch: Annotated[int, Field(ge=0)] | None = None
    """Views 0 to `patch` - 1 carry patch tokens as well; all of them by default. Patches are most of a cache."""
    patch_every: Count | None = None
    """Every so many epochs train on a view with patches, those between on one without, by the cls loss alone. By
    default all views take equal turns."""
    seed: int = 0
    """Of what is drawn for each view."""

    @field_validator("recipe")
    @classmethod
    def _recipe_exists(cls, recipe: str | Recipe) -> str | Recipe:
        if isinstance(recipe, str) and recipe not in RECIPES:
            raise ValueError(f"no view recipe has this name{did_you_mean(recipe, list(RECIPES))}")
        return recipe

    @model_validator(mode="after")
    def _patches_have_views(self) -> ViewsConfig:
        wrong: tuple[str, str, object] | None = None
        if self.patch is not None and self.patch > self.count:
            wrong = "patch", f"more than count ({self.count})", self.patch
        elif self.patch_every is not None and not 0 < self.patch_views < self.count:
            wrong = "patch_every", f"needs views with and without patches: 0 < patch < count ({self.count})", self.patch
        elif self.patch_every == 1:
            wrong = "patch_every", "1 would never use the views without patches", 1
        if wrong is not None:
            raise ValidationError.from_exception_data("ViewsConfig", [problem((wrong[0],), wrong[1], wrong[2])])
        return self

    @property
    def patch_views(self) -> int:
        """Number of views that carry patches."""
        return self.count if self.patch is None else self.patch


class EncoderConfig(Model):
    """A frozen encoder. Under `teachers:` the key is its name, and its registry name unless `encoder` is given."""

    encoder: str | None = None
    """A registry name (`dino`, `ibot`, `deit3`, ...), `timm:NAME`, `hf-hub:OWNER/NAME`, `checkpoint:PATH`, or
    `student:NAME`: a finished student, which so becomes the teacher of another one."""
    weights: str | None = None
    """A local weights file instead of the one that the registry names, or `random:SEED`."""
    prefix: str | None = None
    """What stands before the weights' keys in the file, sections included (`model_ema.`, `teacher.backbone.`); needed
    only where several sets of weights fit, or another one than the moving average is meant."""
    architecture: str | None = None
    """timm architecture of a `checkpoint:` file that does not say it itself."""
    model_args: dict[str, Scalar] = {}
    """Keyword arguments for `timm.create_model`."""
    image_size: Pixels | None = None
    """Input height and width in pixels; the encoder's own by default."""
    mean: Mean | None = None
    """Of the pixels by channel, between 0 and 1; the encoder's own by default."""
    std: Std | None = None
    """Of the pixels, as `mean`."""
    dtype: Dtype | None = None
    """Autocast type of its forward pass; `compute.dtype` by default. `unic-pipe teachers --measure` says which is worth it."""


class TeacherConfig(EncoderConfig):
    """A frozen encoder that students learn from."""

    datasets: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Training and validation sets of which its features are extracted and learned; all by default. Rows of the others
    in a mixture are learned from the other teachers alone."""


class CacheConfig(Model):
    """How features are stored."""

    codec: CodecChoice = "float16"
    """`klt`: calibrated transform and one step for `snr_db`. `auto`: whichever of all codecs meets `snr_db` in the
    fewest bits, per teacher and token type. Centre crops, with which encoders are measured, are float16 under both."""
    snr_db: Annotated[float, Field(ge=3, le=60)] = 15.0
    """Signal-to-noise ratio that `klt` and `auto` aim for, in dB. Below 15, students' validation loss rose in our table
    (README); at 15 and above it was that of float16 targets within the spread of seeds."""
    calibration_rows: Annotated[int, Field(ge=256, le=65_536)] | None = None
    """Most images by which `klt` and `auto` are calibrated for cls tokens; each costs a forward pass. null: 2048, and of a small
    dataset a quarter, but 256. Eight for every dimension of cls take 7 to 8 % fewer bits than three (docs/codecs.md)."""


class ComputeConfig(Model):
    """How encoders are run. Every field but `device` is part of a feature's definition."""

    device: str = "auto"
    """`auto` (cuda when there is one), `cpu`, `cuda`, `cuda:N` or `mps`. Outside every digest."""
    dtype: Dtype = "float32"
    """Autocast type of the forward pass, of encoders that have none of their own (`teachers.NAME.dtype`)."""
    tf32: bool = False
    """TensorFloat-32 in matrix products on a GPU."""
    batch: Count = 64
    """Images per forward pass; batches are cut inside a block."""
    threads: Threads = 1
    """CPU threads of one forward pass: fixed, because sums change with it. Parallelism comes from blocks."""
    channels_last: bool = True
    """Memory format of images, which convolutions are quicker in."""
    views: Literal["host", "device"] = "host"
    """Where extraction does the photometric part of the views (colours, blur, solarize): `host`, image by image on the
    CPU; `device`, in batches where the encoder runs, which is worth it on a GPU. Pixels are equal but for the rounding
    of blurred ones (R7); features are extracted anew when it changes."""
    compile: bool = False
    """Compile the encoders (`torch.compile`; on a CPU this needs a C++ compiler). Every forward pass is then one of
    `batch` images: fewer are filled up. Takes a minute or so for each encoder and process; other bits than without."""


class StudentConfig(Model):
    """One student: its architecture, its projectors, and how it is trained."""

    architecture: str = "vit_small_patch16_224"
    """Any timm model that gives tokens or a map."""
    model_args: dict[str, Scalar] = {}
    """Keyword arguments for `timm.create_model`."""
    image_size: Pixels = 224
    """Input height and width in pixels, of validation and export, too."""
    image_sizes: Annotated[tuple[Pixels, ...], Field(min_length=2), AfterValidator(ascending)] | None = None
    """Sizes of the images in training, where those are several: each step has one of them, in turns that follow the seed.
    For networks that take images of any size (ViTs with `model_args: {dynamic_img_size: true}`)."""
    mean: Mean = (0.485, 0.456, 0.406)
    """Of the pixels by channel, between 0 and 1; ImageNet's by default."""
    std: Std = (0.229, 0.224, 0.225)
    """Of the pixels, as `mean`."""
    drop_path: Fraction = 0.1
    """Probability with which an image skips the last block in training; less for the blocks below it."""
    init: str | Start | None = None
    """What this one starts from. The bare name of a student: its encoder and its ladder, for instance for a second phase
    at a higher image size (ladders match by the order of the teachers; where they do not fit they start afresh, which is
    said). Weights alone: `student:NAME`, `teacher:NAME`, `pretrained` (short for `timm:ARCHITECTURE`), or whatever an
    encoder is named by. Mean and std are then those of the weights unless they are given."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of an exponential moving average of the weights (encoder and ladder; running statistics of
    BatchNorm, too). The averaged encoder is what is exported, and the validation loss is that of the averages."""
    batch_norm: Literal["batch", "frozen"] = "batch"
    """Statistics of BatchNorm layers in training: `batch`, those of the global batch, over all processes; `frozen`, the
    running ones that the student starts with (see `init`), while its weights are trained: for batches in parts."""
    noise: Fraction = 0.0
    """Strength by which brightness, contrast and saturation of the student's images change, anew in every epoch, whatever
    the number of cached views. Targets stay those of the views as teachers saw them."""
    dataset: Name | dict[Name, float] = "train"
    """A dataset, or several by their shares: how often each is passed through in an epoch, at most once. Every batch
    has a fixed number of places for each, none of them more than its share; which rows have which teachers:
    `teachers.NAME.datasets`."""
    teachers: tuple[Name, ...] | None = None
    """All configured teachers by default."""
    ladder: LadderConfig = LadderConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Autocast type of the training step; weights stay float32."""
    seed: int = 0
    """Of the initial weights; without `order_seed` also of the order, of the views' turns and of what is dropped."""
    seeds: Seeds | None = None
    """As many students, `NAME-0`, `NAME-1` ..., each with one of these seeds: `evaluate` then states their spread."""
    order_seed: int | None = None
    """Students that share it see the same batches, views and drops whatever their seeds, and train in one pass. Their
    spread then leaves out what the order does."""
    streams: Count = 8
    """Canonical sample streams; divides the batch. World sizes that divide it see the same global batches."""
    window_blocks: Count = 8
    """Blocks that are decoded at a time and shuffled together, per stream."""
    threads: Threads = 2
    """CPU threads of a training step on a CPU, also parts of its batch at once; another number alone trains nothing again."""

    @property
    def start(self) -> Start | None:
        """`init`, by its fields."""
        return Start(encoder=self.init) if isinstance(self.init, str) else self.init

    @field_validator("dataset")
    @classmethod
    def _short_form(cls, dataset: str | dict[str, float]) -> str | dict[str, float]:
        """The whole of one dataset is that dataset, and the order of several means nothing."""
        if isinstance(dataset, dict) and list(dataset.values()) == [1.0]:
            return next(iter(dataset))
        return dict(sorted(dataset.items())) if isinstance(dataset, dict) else dataset

    @property
    def datasets(self) -> dict[str, float]:
        """Shares of the datasets that it is trained on."""
        return self.dataset if isinstance(self.dataset, dict) else {self.dataset: 1.0}

    @model_validator(mode="after")
    def _values_go_together(self) -> StudentConfig:
        if self.optimizer.batch % self.streams:
            message = f"not a multiple of streams ({self.streams})"
            wrong = problem(("optimizer", "batch"), message, self.optimizer.batch)
            raise ValidationError.from_exception_data("StudentConfig", [wrong])
        if self.ladder.kind == "block" and "phi_s" in map(self.loss.normaliser, self.loss.trained):
            message = (
                "phi_s turns cls and patch each in its own way, and ladder.kind: block has one last layer for both"
            )
            wrong = problem(("loss", "standardize"), message, "phi_s")
            raise ValidationError.from_exception_data("StudentConfig", [wrong])
        if self.loss.needs_masks and self.ladder.kind in (LADDER, "block"):
            message = "masked_mse takes heads on single tokens, for instance norm_linear"
            wrong = problem(("ladder", "kind"), message, self.ladder.kind)
            raise ValidationError.from_exception_data("StudentConfig", [wrong])
        alone = {
            "class means are those of": self.loss.needs_classes,
            "masked cells are counted over": self.loss.needs_masks,
            "a queue holds the targets of": self.loss.needs_queue,
        }
        if any(alone.values()) and len(self.datasets) > 1:
            message = f"{next(what for what, needed in alone.items() if needed)} one dataset: name one"
            wrong = problem(("dataset",), message, self.dataset)
            raise ValidationError.from_exception_data("StudentConfig", [wrong])
        if self.loss.own and self.loss.own.keys() != self.datasets.keys():
            message = f"names the teachers of every dataset of the student: {', '.join(self.datasets)}"
            wrong = problem(("loss", "own"), message, sorted(self.loss.own))
            raise ValidationError.from_exception_data("StudentConfig", [wrong])
        if self.seeds is not None and "seed" in self.model_fields_set:
            wrong = problem(("seeds",), "give seed or seeds, not both", self.seeds)
            raise ValidationError.from_exception_data("StudentConfig", [wrong])
        return self

    @property
    def draws_seed(self) -> int:
        """Seed of the order, of the views' turns and of what is dropped."""
        return self.seed if self.order_seed is None else self.order_seed


class DistillConfig(Model):
    """How a run of `distill` goes about it. Nothing here is part of a student's identity: `micro_batch`, `compile`,
    `shard` and the number of processes change the rounding of sums, and with it weights within that tolerance; the
    rest changes nothing."""

    validation: (
        Name
        | Annotated[tuple[Name, ...], Field(min_length=1)]
        | Annotated[dict[Name, Positive], Field(min_length=1)]
        | None
    ) = None
    """Dataset of the validation loss (view recipe `center`, no dropping, no drop path), or several: the loss of each, and
    that of all their images; with weights (`{a: 2, b: 1}`) the weighted mean of their losses instead."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0
    """A checkpoint is written at least this often, and after every epoch."""
    keep_checkpoints: Count = 2
    """The newest so many are kept."""
    log_every: Count = 10
    """Steps between rows of the metrics table."""
    threads: Threads | None = None
    """CPU threads of a training step on a CPU, instead of `students.NAME.threads`. Sums change with them in their last
    bits, so a training goes on with the number that its first checkpoint recorded."""
    micro_batch: Count | None = None
    """At most so many images at a time and process: what a larger share of the batch adds up to is the same step."""
    compile: bool | Literal["auto"] = False
    """Compile the student's blocks and its ladder (`torch.compile`; on a CPU this needs a C++ compiler). `auto`: measured
    before the first step, and done where it saves more time than compiling takes; the training goes on as it began."""
    shard: Literal["auto", "always", "never"] = "auto"
    """Whether several processes share out weights and moments (FSDP2) instead of holding copies (DDP); `auto`: above a
    billion parameters, student and ladder together."""
    timeout_minutes: Annotated[float, Field(gt=0)] = 30.0
    """A process that waits for another one longer than this ends."""

    @property
    def validations(self) -> tuple[str, ...]:
        """Datasets of the validation loss."""
        return (self.validation,) if isinstance(self.validation, str) else tuple(self.validation or ())


class EvaluateConfig(Model):
    """Linear-probe and k-NN benchmarks of the students and of every teacher."""

    benchmarks: dict[Name, BenchmarkConfig] = {}
    """By name; a list of names is enough for those that need no settings: `[dtd, pets]`."""
    root: str = "benchmarks"
    """Folder in which benchmarks that have a name are searched. Outside every digest."""
    encoders: dict[Name, EncoderConfig] = {}
    """Encoders to probe beside students and teachers."""
    zero_shot: dict[Name, ZeroShotConfig] = {}
    """Zero-shot classification by a CLIP-like teacher and its students, by name."""
    dense: dict[Name, DenseConfig] = {}
    """Segmentation and depth from patch tokens, by name."""
    probes: tuple[LabelledProbe, ...] = ("logistic", "knn")
    """Benchmarks that have a name take the linear probe of their protocol (`logistic` or `sgd`) where one is listed."""
    search: Literal["fast", "optuna"] = "fast"
    """How hyper-parameters are chosen on the validation split. `fast`: all values fitted together on the device.
    `optuna`: the papers' protocol, one independent fit after the other, chosen by TPE (extra `optuna`); goes on after a
    kill."""
    trials: Count = 40
    """Fits of a search by `optuna`."""
    c_range: tuple[Positive, Positive] = (1e-5, 1e6)
    """Inverse regularisation strengths that the search of `logistic` covers."""
    c_values: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """For `fast`: search these values instead of the range; of equally good ones the first wins."""
    sgd_epochs: Count = 100
    """Epochs of a fit of `sgd`."""
    k_values: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 5, 10, 20, 50, 100, 200)
    """The papers' 10, 20, 100 and 200, and what a curve needs besides."""
    shots: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 5, 10)
    """Training samples a class of `fewshot`."""
    draws: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Random choices of those samples, averaged."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training set on which hyper-parameters are chosen."""
    seeds: Seeds = (0,)
    """Scores are means over these: each draws another validation split (and order of batches)."""
    baseline: bool = True
    """Also evaluate each student's architecture at random initialisation."""

    _named = field_validator("benchmarks", mode="before")(named_benchmarks)

    @field_validator("c_range")
    @classmethod
    def _range_ascends(cls, c_range: tuple[float, float]) -> tuple[float, float]:
        if c_range[0] >= c_range[1]:
            raise ValueError("the first value has to be below the second")
        return c_range


class Config(Model):
    """The whole of `unic-pipe.yaml`."""

    samples: SamplesConfig
    storage: StorageConfig = StorageConfig()
    views: ViewsConfig = ViewsConfig()
    feature_roots: tuple[str, ...] = ()
    """Folders of finished features (`features/` of a colleague, also `s3://…/features`), which are only read. Searched by
    digest for what this working folder lacks. Outside every digest."""
    weights_dir: str = "weights"
    """Searched first for every weights file. Outside every digest."""
    teachers: dict[Name, TeacherConfig] = {}
    cache: CacheConfig = CacheConfig()
    compute: ComputeConfig = ComputeConfig()
    students: dict[Name, StudentConfig] = {}
    distill: DistillConfig = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    loggers: LoggersConfig = LoggersConfig()
    """Outside every digest."""

    @model_validator(mode="after")
    def _names_exist(self) -> Config:
        problems = reference_problems(self.model_dump()) or _circle_problems(self)
        if problems:
            raise ValidationError.from_exception_data("Config", problems)
        return self

    def teaches(self, teacher: str, dataset: str) -> bool:
        """Whether a teacher's features of a dataset are learned, if a student has both."""
        chosen = self.teachers[teacher].datasets if teacher in self.teachers else None
        return chosen is None or dataset in chosen

    def teachers_of(self, student: str) -> tuple[str, ...]:
        """The teachers of a configured student, in the order of the configuration: those that teach on one of its
        datasets."""
        chosen, datasets = self.students[student].teachers, self.students[student].datasets
        named = [teacher for teacher in self.teachers if chosen is None or teacher in chosen]
        return tuple(teacher for teacher in named if any(self.teaches(teacher, dataset) for dataset in datasets))


def _circle_problems(config: Config) -> list[InitErrorDetails]:
    """Students that would have to be finished before they begin."""
    teaching = {teacher: encoder.encoder for teacher, encoder in config.teachers.items()}
    found = circles(
        needed_students(teaching, {name: (config.teachers_of(name), s.start) for name, s in config.students.items()})
    )
    message = "a student cannot wait for itself: {}; list its teachers without that one"
    return [problem(("students", n, "teachers"), message.format(why), n) for n, why in found.items()]
