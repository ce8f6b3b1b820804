"""A configuration that fits what `init` saw: how many images of which size, which splits, and how large the student is.

Which dataset is trained on, validated with and tested with is told by their names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from unic_pipe.pipeline.samples.splits import Split, split_of, stem_of, usable_names
from unic_pipe.pipeline.samples.survey import Survey
from unic_pipe.pipeline.workspace.names import BASELINE, CENTER
from unic_pipe.schemas.benchmarks import BenchmarkConfig
from unic_pipe.schemas.config import (
    CacheConfig,
    ComputeConfig,
    Config,
    DistillConfig,
    EncoderConfig,
    EvaluateConfig,
    LadderConfig,
    LossConfig,
    OptimizerConfig,
    SamplesConfig,
    StudentConfig,
    TeacherConfig,
    ViewsConfig,
)
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.recipes import recipe_named
from unic_pipe.schemas.references import VALIDATION
from unic_pipe.schemas.starts import PRETRAINED
from unic_pipe.schemas.students import StudentShape


def training_set(surveys: Mapping[str, Survey]) -> str:
    """The dataset that students are trained on: the largest training split, or the first dataset."""
    return max(_of(surveys, "train"), key=lambda name: surveys[name].rows, default=next(iter(surveys)))


def validation_set(surveys: Mapping[str, Survey]) -> str | None:
    """Images for the loss after every epoch: a validation split, or a test set where there is none. Labels are not
    needed."""
    train = training_set(surveys)
    others = [*_of(surveys, "val"), *_of(surveys, "test")]
    alike = [name for name in others if stem_of(name) == stem_of(train)]
    return next(iter([*alike, *others]), None)


def benchmarks(surveys: Mapping[str, Survey]) -> dict[str, BenchmarkConfig]:
    """Every labelled test set with the training set of its name, or with the only one; validation sets where a training
    set has no other."""
    labelled = {name: s for name, s in surveys.items() if s.classes is not None or s.config.labels is not None}
    trains = _of(labelled, "train")
    found: dict[str, BenchmarkConfig] = {}
    kinds: tuple[Split, Split] = ("test", "val")
    for kind in kinds:
        taken = {pair.train for pair in found.values()}
        for name in _of(labelled, kind):
            alike = [train for train in trains if stem_of(train) == stem_of(name)]
            train = next(iter(alike or (trains if len(trains) == 1 else [])), None)
            if train is not None and train not in taken:
                found[name] = BenchmarkConfig(train=train, test=name)
    return found


def _of(surveys: Mapping[str, Survey], split: Split) -> list[str]:
    return [name for name in surveys if split_of(name) == split]


STUDENT, START = "main", "start"
_OTHERS = {STUDENT, START, f"{STUDENT}{BASELINE}", VALIDATION}
"""Names that no teacher can have."""
WEIGHTS = "weights"
MEASURED = "the fastest on this machine that stays 20 dB above snr_db (unic-pipe teachers --measure)"
"""What the YAML says beside the type of a teacher."""
PAPER_DROP = {1: 0.0, 2: 0.25}
"""Drop probability by number of teachers (UNIC: .25 for two, .5 for four)."""
LARGEST_BATCH, SMALLEST_BATCH, EPOCH_STEPS = 512, 8, 8
"""The paper's batch; that of few images; and steps that an epoch should have in between."""
STEPS = 2000
"""Steps that a student needs to learn anything; what is more than `EPOCHS` of them is for large datasets."""
EPOCHS, CPU_EPOCHS = 200, 20
"""The paper's epochs; without a GPU, large datasets get fewer."""
WARMUP = 20
"""The paper's epochs by those of its warm-up."""
SHORTER = 4
"""A student that starts from weights takes so many times fewer steps and epochs than one that starts from nothing."""
WARM_LR, LAYER_DECAY, FROZEN_STEPS = 1e-4, 0.8, 100
"""Its learning rate per 256 images, the decay of that by layer, and the steps (half an epoch at most) in which its heads
settle: in the range of what fine-tuning uses, and not tuned."""
RATE_BATCH = 256
"""Below it the peak rate stays that of this batch: with a sixteenth of the rate, a few hundred steps learn nothing."""
FEWEST_BLOCKS, SMALLEST_BLOCK = 16, 16
"""Blocks are what work is shared out and taken up again by."""
CALIBRATION_ROWS, CALIBRATION_SHARE = 8192, 64
"""Images that calibrate the cache of a dataset with at least so many times more."""
MOST_THREADS = 16
"""Of a training on a CPU: with more of them every part of a batch is too small to keep one busy."""
FEWEST_PATCHES = 4
"""Patches along a side, at least: fewer hold nothing that patch tokens could tell apart."""
TINY_SIDE = 64
"""Images with shorter sides than this many pixels lose what they show in the paper's crops."""


@dataclass(frozen=True)
class Wishes:
    """What the command line says instead of what would fit."""

    image_size: int | None = None
    epochs: int | None = None
    batch: int | None = None
    recipe: str | None = None
    views: int = 2
    start: str | None = None
    """What the student starts from."""


def fitted_config(
    samples: SamplesConfig, surveys: Mapping[str, Survey], teachers: Sequence[str], shape: StudentShape, wishes: Wishes,
    gpu: bool, cores: int,
) -> Config:  # fmt: skip
    """The configuration for what was found; it sets every field that is worth a look. `cores`: that training may use where
    there is no GPU. Raises UserError: a wish that cannot be."""
    if wishes.recipe is not None:
        recipe_named(wishes.recipe)
    train = training_set(surveys)
    side, large = surveys[train].side, surveys[train].rows >= CALIBRATION_SHARE * CALIBRATION_ROWS
    recipe = wishes.recipe or ("gentle" if side is not None and side < TINY_SIDE else "unic")
    validation, pairs = validation_set(surveys), benchmarks(surveys)
    on_gpu = ComputeConfig(device="auto", dtype="bfloat16", compile=True, views="device")
    found: dict[str, object] = {}
    student = _student(train, surveys[train], len(set(teachers)), shape, wishes, gpu)
    how: dict[str, object] = {} if validation is None else {"validation": validation}
    if not gpu and cores > student.threads:
        how["threads"] = min(cores, MOST_THREADS)
    if how:
        found["distill"] = DistillConfig.model_validate(how)
    if pairs and wishes.start == PRETRAINED:
        start = EncoderConfig(encoder=f"timm:{shape.architecture}", image_size=student.image_size)
        found["evaluate"] = EvaluateConfig(benchmarks=pairs, baseline=False, encoders={START: start})
    elif pairs:
        found["evaluate"] = EvaluateConfig(benchmarks=pairs)
    config = Config(
        samples=samples,
        views=ViewsConfig(recipe=recipe, count=wishes.views),
        weights_dir=WEIGHTS,
        teachers=_teachers(teachers),
        cache=CacheConfig(codec="auto", calibration_rows=CALIBRATION_ROWS if large else None),
        compute=on_gpu if gpu else ComputeConfig(device="auto", dtype="float32"),
        students={STUDENT: student},
    )
    return config.model_copy(update=found)


def block_rows(rows: int) -> int:
    """Rows of a block: the usual number, or fewer where there would be too few blocks."""
    usual = SamplesConfig.model_fields["block_rows"].default
    return int(min(usual, max(SMALLEST_BLOCK, _power_of_two(rows // FEWEST_BLOCKS))))


def comments(config: Config, surveys: Mapping[str, Survey]) -> dict[tuple[str, ...], str]:
    """What the YAML says beside the fields of such a configuration."""
    student = config.students[STUDENT]
    steps = surveys[next(iter(student.datasets))].rows // student.optimizer.batch
    about = {name: _about(survey) for name, survey in surveys.items()}
    optimizer = student.optimizer
    return {
        **{("samples", "datasets", name): text for name, text in about.items()},
        ("samples", "roots"): "folders in which the sources are searched; may change when data move",
        ("views",): "what is cached of every training sample",
        ("views", "recipe"): "unic: the paper's crops and colours; gentle: for tiny images",
        ("views", "count"): "more views: more disk, better students",
        ("weights_dir",): "searched first for teachers' weights (unic-pipe teachers)",
        ("teachers",): "frozen; also NAME: {encoder: timm:NAME} or {encoder: checkpoint:PATH}",
        ("cache", "codec"): "the fewest bits that reach snr_db (15 dB), per teacher; float16 keeps everything",
        ("cache", "calibration_rows"): "images that the codec is fitted to; null: 2,048",
        ("compute", "device"): "auto: cuda when there is one; outside every identity",
        ("teachers", "*", "dtype"): MEASURED,
        ("compute", "dtype"): "of the teachers' forward pass",
        ("compute", "compile"): "encoders are compiled first, a minute each",
        ("compute", "views"): "colours and blur in batches on the GPU: a sixth of the CPU's work",
        ("students", "*", "ladder"): "projectors, not kept: of its width, or a quarter of the last stage's",
        ("students", "*", "loss", "drop_probability"): "the paper: .25 for two teachers, .5 for four",
        ("students", "*", "optimizer", "epochs"): f"{optimizer.epochs * steps:,} steps, {steps:,} an epoch",
        ("students", "*", "optimizer", "lr"): "per 256 images",
        ("students", "*", "optimizer", "layer_decay"): "of the rate, by layer, from the last one down",
        ("students", "*", "optimizer", "frozen_steps"): "first steps, in which only the ladder learns",
        ("students", "*", "batch_norm"): "keeps the statistics that belong to the weights",
        ("students", "*", "init"): "where it starts; mean and std are those of these weights",
        ("students", "*", "streams"): "of samples, side by side; divides the batch",
        ("distill", "threads"): "of a training step on a CPU; another number trains nothing again",
        ("distill", "validation"): _validation_words(next(iter(config.distill.validations), None)),
        ("evaluate",): "any labelled pair of datasets is a benchmark",
        (
            "evaluate",
            "baseline",
        ): "the student at random initialisation; it starts from weights, which are judged instead",
    }


def _student(train: str, found: Survey, teachers: int, shape: StudentShape, wishes: Wishes, gpu: bool) -> StudentConfig:
    streams = StudentConfig.model_fields["streams"].default
    fitting = max(SMALLEST_BATCH, _power_of_two(found.rows // EPOCH_STEPS))
    batch = wishes.batch or min(LARGEST_BATCH, fitting, found.rows)
    if batch > found.rows:
        raise UserError(f"--batch {batch}: there are {found.rows} images in {train}.", "Give a smaller one, or none.")
    if batch % streams:
        streams = 1
    steps = max(1, found.rows // batch)
    epochs = wishes.epochs or ceil(
        max(EPOCHS if gpu else CPU_EPOCHS, STEPS / steps) / (1 if wishes.start is None else SHORTER)
    )
    student = StudentConfig(
        architecture=shape.architecture,
        image_size=wishes.image_size or _image_size(found.side, shape),
        dataset=train,
        ladder=LadderConfig(hidden=shape.width, last_hidden=4 * shape.width),
        loss=LossConfig(drop_probability=PAPER_DROP.get(teachers, 0.5)),
        optimizer=OptimizerConfig(
            epochs=epochs, warmup_epochs=min(epochs, max(1, epochs // WARMUP)), batch=batch, lr=3e-4 * _raised(batch)
        ),
        dtype="bfloat16" if gpu else "float32",
        streams=streams,
    )
    return student if wishes.start is None else _from_weights(student, wishes.start, steps, shape)


def _from_weights(student: StudentConfig, start: str, steps: int, shape: StudentShape) -> StudentConfig:
    """The settings of a student of `steps` steps an epoch that starts from weights: gentler, with the weights' own
    statistics, and only what is set is given, so that mean and std are those of the weights."""
    changes = {
        "lr": WARM_LR * _raised(student.optimizer.batch),
        "layer_decay": LAYER_DECAY,
        "frozen_steps": min(FROZEN_STEPS, steps // 2),
    }
    gentle = student.optimizer.model_copy(update=changes)
    statistics = {"batch_norm": "frozen"} if shape.batch_norm else {}
    return student.model_copy(update={"init": start, "optimizer": gentle, **statistics})


def _raised(batch: int) -> float:
    """What a rate per 256 images is multiplied by."""
    return max(1.0, RATE_BATCH / batch)


def _image_size(side: int | None, shape: StudentShape) -> int:
    """The architecture's own size, or that of smaller images, in whole patches."""
    if side is None or side >= shape.image_size:
        return shape.image_size
    return min(shape.image_size, max(FEWEST_PATCHES, ceil(side / shape.patch)) * shape.patch)


def _teachers(chosen: Sequence[str]) -> dict[str, TeacherConfig]:
    """Teachers by short names that nothing else has; two of one architecture are told apart by the rest of their names."""
    found: dict[str, TeacherConfig] = {}
    for teacher in dict.fromkeys(chosen):
        target = teacher.partition(":")[2]
        file = Path(target).name
        short = (file.split(".")[0], file.replace(".", "-"), target)
        names = [usable_names([name])[name] for name in (short if target else (teacher,))]
        choices = (*names, *(f"{names[0]}-{n}" for n in range(2, len(chosen) + 3)))
        name = next(n for n in choices if n not in found and n not in _OTHERS and not n.endswith(CENTER))
        found[name] = TeacherConfig(encoder=teacher) if target or name != teacher else TeacherConfig()
    return found


def _about(survey: Survey) -> str:
    about = "" if survey.exact else "about "
    return f"{about}{survey.rows:,} images" + (f", {survey.classes:,} classes" if survey.classes else "")


def _validation_words(name: str | None) -> str:
    if name is not None and split_of(name) == "test":
        return "the loss after every epoch is measured on these; nothing is chosen by it"
    return "validation loss after every epoch"


def _power_of_two(number: int) -> int:
    """The largest power of two that is not larger, at least 1."""
    return 1 << max(0, number.bit_length() - 1)
