"""The two settings of the UNIC paper (arXiv 2408.05088) by name.

Every field that the paper or its published code (github.com/naver/unic) decides is given here, also where it is our
default. What is not theirs is marked "our choice" in the docstrings, and in the YAML that `init --preset` writes.
"""

from collections.abc import Callable, Mapping

from unic_pipe.schemas.config import (
    CacheConfig,
    ComputeConfig,
    Config,
    DistillConfig,
    EvaluateConfig,
    LadderConfig,
    LossConfig,
    OptimizerConfig,
    SamplesConfig,
    StudentConfig,
    TeacherConfig,
    ViewsConfig,
)

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LARGE_TEACHERS = ("dinov2-g", "metaclip-h")


Preset = tuple[dict[str, TeacherConfig], dict[str, StudentConfig]]
"""Teachers and students."""


def unic_b() -> Preset:
    """UNIC: DINO, iBOT, DeiT-III and dBOT-ft (all ViT-B/16, ImageNet-1k) into one ViT-B/16.

    From the paper and its code: teachers, architecture, 224 pixels, drop path .1, ladder on all blocks with 768 and 3072
    hidden units, cosine and smooth-L1 at .5 each for cls and patch, teacher dropping .5, AdamW β (.9, .99), weight decay
    .03, 3e-4 per 256 images, 10 of 200 epochs warm-up, cosine to 1e-6, batch 512, the augmentations of recipe `unic`.

    Our choice: cached views instead of a fresh one every epoch; exact statistics instead of running ones
    (`standardize: ema` is the official way); bfloat16 instead of float16 autocast; int8 features.
    """
    teachers = ("dino", "ibot", "deit3", "dbot-ft")
    student = _student("vit_base_patch16_224", 224, teachers, 0.5, _optimizer(200, 10))
    return {name: TeacherConfig() for name in teachers}, {"unic-b": student}


def unic_l() -> Preset:
    """UNIC-L: DINOv2-g/14 (registers) and MetaCLIP-H/14 into one ViT-L/14, at 224 and then at 336 pixels.

    From the paper and its code: teachers, architecture, ImageNet-1k, distillation at 224 and then 336 pixels, teacher
    dropping .25.

    Our choice, beside that of `unic_b`: losses, ladder, AdamW and the first phase's schedule are those of UNIC; the second
    phase's length and rate (20 epochs, 1 of them warm-up, a tenth of the peak rate); and that its teachers see 336 pixels
    too: all have patches of 14, so that teacher and student grids stay equal.
    """
    architecture = "vit_large_patch14_224"
    later = tuple(f"{name}-336" for name in LARGE_TEACHERS)
    first = _student(architecture, 224, LARGE_TEACHERS, 0.25, _optimizer(200, 10))
    second = _student(architecture, 336, later, 0.25, _optimizer(20, 1, lr=3e-5)).model_copy(update={"init": "unic-l"})
    teachers = {name: TeacherConfig() for name in LARGE_TEACHERS}
    teachers |= {n: TeacherConfig(encoder=name, image_size=336) for n, name in zip(later, LARGE_TEACHERS, strict=True)}
    return teachers, {"unic-l": first, "unic-l-336": second}


COMMENTS: Mapping[tuple[str, ...], str] = {
    ("samples", "roots"): "folders in which the sources are searched; may change when data move",
    ("views",): "what is cached of every training sample",
    ("views", "recipe"): "paper: crops, flips, colours, blur, solarize",
    ("views", "count"): "ours; the paper draws a fresh view every epoch: more views, more disk, nearer to it",
    ("weights_dir",): "searched first for teachers' weights (unic-pipe teachers)",
    ("teachers",): "paper; their weights and licences: unic-pipe teachers",
    (
        "cache",
        "codec",
    ): "ours: the fewest bits that reach snr_db (15 dB), per teacher and token type; float16 keeps all",
    ("compute", "device"): "auto: cuda when there is one; outside every identity",
    ("compute", "dtype"): "ours; the paper's code runs in float16",
    ("students", "*", "architecture"): "paper",
    ("students", "*", "image_size"): "paper",
    ("students", "*", "mean"): "paper",
    ("students", "*", "drop_path"): "paper's code",
    ("students", "*", "init"): "paper: the second phase goes on from the first, at a higher resolution",
    ("students", "*", "ladder"): "paper: a projector on every block, a larger one on the last",
    ("students", "*", "loss"): "paper: half cosine, half smooth-L1, on cls and patch",
    ("students", "*", "loss", "standardize"): "ours: exact statistics; ema: the paper's running ones; none: without",
    ("students", "*", "loss", "drop_probability"): "paper: .5 for four teachers, .25 for two",
    ("students", "*", "optimizer"): "paper's code: AdamW, linear warm-up, cosine decay",
    ("students", "*", "optimizer", "lr"): "per 256 images",
    ("students", "*", "dtype"): "ours; the paper's code runs in float16",
    ("students", "unic-l", "ladder"): "as for unic-b; not checked against the paper's appendix",
    ("students", "unic-l", "optimizer"): "as for unic-b; not checked against the paper's appendix",
    ("students", "unic-l-336", "optimizer"): "ours: a tenth of the epochs and of the rate",
    ("evaluate",): "any labelled pair of datasets is a benchmark",
}
"""What the YAML says beside a field; `*` is any student. "paper": from it or its code, "ours": our choice."""

PRESETS: Mapping[str, Callable[[], Preset]] = {"unic-b": unic_b, "unic-l": unic_l}


def preset_config(
    name: str, samples: SamplesConfig, distill: DistillConfig, evaluate: EvaluateConfig, views: int
) -> Config:
    """The configuration of a preset; its students train on the dataset `train`, or the first one."""
    teachers, students = PRESETS[name]()
    dataset = "train" if "train" in samples.datasets else next(iter(samples.datasets))
    return Config(
        samples=samples,
        views=ViewsConfig(recipe="unic", count=views),
        weights_dir="weights",
        teachers=teachers,
        cache=CacheConfig(codec="auto"),
        compute=ComputeConfig(device="auto", dtype="bfloat16"),
        students={student: s.model_copy(update={"dataset": dataset}) for student, s in students.items()},
        distill=distill,
        evaluate=evaluate,
    )


def _student(
    architecture: str, image_size: int, teachers: tuple[str, ...], drop: float, optimizer: OptimizerConfig
) -> StudentConfig:
    return StudentConfig(
        architecture=architecture,
        image_size=image_size,
        mean=_MEAN,
        std=_STD,
        drop_path=0.1,
        teachers=teachers,
        ladder=LadderConfig(blocks="all", hidden=768, last_hidden=3072),
        loss=LossConfig(cosine=0.5, smooth_l1=0.5, tokens="both", standardize="exact", drop_probability=drop),
        optimizer=optimizer,
        dtype="bfloat16",
    )


def _optimizer(epochs: int, warmup_epochs: int, lr: float = 3e-4) -> OptimizerConfig:
    return OptimizerConfig(
        epochs=epochs, warmup_epochs=warmup_epochs, batch=512, lr=lr, min_lr=1e-6, weight_decay=0.03, beta1=0.9, beta2=0.99,
        clip_norm=None,
    )  # fmt: skip
