"""Recipes of the field by name, as whole configurations: teachers, and students that learn from them.

The students' settings are `schemas.presets`. Every field that a paper or its published code decides is given there, also
where it is our default. What is not theirs is marked "ours" in the YAML that `init --preset` writes, or in docs/recipes.md.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from unic_pipe.schemas.config import (
    CacheConfig,
    ComputeConfig,
    Config,
    DistillConfig,
    EvaluateConfig,
    SamplesConfig,
    StudentConfig,
    TeacherConfig,
    ViewsConfig,
)
from unic_pipe.schemas.presets import PRESETS as STUDENTS
from unic_pipe.stages.init.fit import MEASURED

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
    return _named(teachers), {"unic-b": _student("unic-b", teachers)}


def unic_l() -> Preset:
    """UNIC-L: DINOv2-g/14 (registers) and MetaCLIP-H/14 into one ViT-L/14, at 224 and then at 336 pixels.

    From the paper and its code: teachers, architecture, ImageNet-1k, distillation at 224 and then 336 pixels, teacher
    dropping .25.

    Our choice, beside that of `unic_b`: losses, ladder, AdamW and the first phase's schedule are those of UNIC; the second
    phase's length and rate (20 epochs, 1 of them warm-up, a tenth of the peak rate); and that its teachers see 336 pixels
    too: all have patches of 14, so that teacher and student grids stay equal.
    """
    later = _at(336, LARGE_TEACHERS)
    first, second = _student("unic-l", LARGE_TEACHERS), _student("unic-l-336", tuple(later), init="unic-l")
    return {**_named(LARGE_TEACHERS), **later}, {"unic-l": first, "unic-l-336": second}


def single(name: str, teachers: tuple[str, ...]) -> Callable[[], Preset]:
    """One student with the settings of that name; which teachers is ours."""
    return lambda: (_named(teachers), {name: _student(name, teachers)})


def eupe() -> Preset:
    """EUPE: several teachers into one large proxy, the proxy into the student, and that one again at a higher resolution.

    Our choice: teachers, architectures, epochs, and one size in the third phase, where the paper draws three.
    """
    proxies = {
        "proxy": TeacherConfig(encoder="student:eupe-proxy"),
        "proxy-384": TeacherConfig(encoder="student:eupe-proxy", image_size=384),
    }
    return {**_named(AGGLOMERATED), **proxies}, {
        "eupe-proxy": _student("eupe-proxy", AGGLOMERATED),
        "eupe": _student("eupe", ("proxy",)),
        "eupe-384": _student("eupe-384", ("proxy-384",), init="eupe"),
    }


def dune() -> Preset:
    """DUNE: heterogeneous teachers, of which one alone gives cls tokens, at 336 and then at 448 pixels.

    Our choice: which teachers, which alone stand for those of its paper; teacher dropping on one dataset (`balance:
    own_data` is for mixtures).
    """
    students = {}
    for name, size, init in (("dune", 336, None), ("dune-448", 448, "dune")):
        mine = _at(size, LARGE_TEACHERS)
        general, other = mine
        terms = [
            *_halves("cls", 0.25, general), *_halves("patch", 0.25, general), *_halves("patch", 0.5, other),
        ]  # fmt: skip
        students[name] = _student(name, tuple(mine), init=init, loss={"terms": terms, "standardize": "exact"})
    return {**_at(336, LARGE_TEACHERS), **_at(448, LARGE_TEACHERS)}, students


AGGLOMERATED = ("dinov2-g", "metaclip-h", "siglip2-so400m")
"""Teachers whose weights are here for those that the recipes of agglomerated models name."""


COMMENTS: Mapping[tuple[str, ...], str] = {
    ("samples", "roots"): "folders in which the sources are searched; may change when data move",
    ("views",): "what is cached of every training sample",
    ("views", "recipe"): "paper: crops, flips, colours, blur, solarize",
    ("views", "count"): "ours; the paper draws a fresh view every epoch: more views, more disk, nearer to it",
    ("weights_dir",): "searched first for teachers' weights (unic-pipe teachers)",
    ("teachers",): "paper; their weights and licences: unic-pipe teachers",
    ("teachers", "*", "dtype"): MEASURED,
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

OTHERS: Mapping[tuple[str, ...], str] = {
    **{place: text for place, text in COMMENTS.items() if place[0] in ("samples", "weights_dir", "evaluate")},
    ("views",): "what is cached of every training sample",
    ("views", "recipe"): "ours: the augmentations of UNIC",
    ("teachers",): "ours, for those of the paper; their weights and licences: unic-pipe teachers",
    ("cache", "codec"): COMMENTS["cache", "codec"],
    ("compute", "device"): COMMENTS["compute", "device"],
    ("teachers", "*", "dtype"): MEASURED,
    ("compute", "dtype"): "of the teachers' forward pass",
    ("students", "*", "ladder"): "paper; what is ours of it: docs/recipes.md",
    ("students", "*", "loss"): "paper; what is ours of it: docs/recipes.md",
    ("students", "*", "optimizer"): "the paper's rate; ours: AdamW and the number of epochs",
    ("students", "*", "optimizer", "lr"): "per 256 images",
    ("students", "*", "init"): "goes on from the phase before",
}
"""The same for the recipes of others."""

PRESETS: Mapping[str, Callable[[], Preset]] = {
    "unic-b": unic_b,
    "unic-l": unic_l,
    "am-radio": single("am-radio", AGGLOMERATED),
    "phi-s": single("phi-s", AGGLOMERATED),
    "angle": single("angle", AGGLOMERATED),
    "eupe": eupe,
    "theia": single("theia", ("dinov2-g", "metaclip-h", "deit3")),
    "nd": single("nd", ("deit3",)),
    "task-specific": single("task-specific", ("dinov2-g",)),
    "proteus": single("proteus", ("dinov2-g",)),
    "lightly-v1": single("lightly-v1", ("dinov2-g",)),
    "lightly-v3": single("lightly-v3", ("dinov2-g",)),
    "tinyvit": single("tinyvit", ("deit3",)),
    "dune": dune,
}


def comments_of(name: str) -> Mapping[tuple[str, ...], str]:
    """What the YAML of a preset says beside its fields."""
    return COMMENTS if name.startswith("unic") else OTHERS


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


def _student(preset: str, teachers: tuple[str, ...], **changes: Any) -> StudentConfig:
    given = {key: value for key, value in changes.items() if value is not None}
    return StudentConfig.model_validate_json(json.dumps({**STUDENTS[preset], "teachers": teachers, **given}))


def _named(teachers: tuple[str, ...]) -> dict[str, TeacherConfig]:
    return {name: TeacherConfig() for name in teachers}


def _at(image_size: int, teachers: tuple[str, ...]) -> dict[str, TeacherConfig]:
    """Teachers at another image size than their own, by names that say so."""
    return {f"{name}-{image_size}": TeacherConfig(encoder=name, image_size=image_size) for name in teachers}


def _halves(token: str, weight: float, teacher: str) -> list[dict[str, object]]:
    """UNIC's two terms of one teacher's tokens."""
    return [{"token": token, "kind": kind, "weight": weight, "teachers": [teacher]} for kind in ("cosine", "smooth_l1")]
