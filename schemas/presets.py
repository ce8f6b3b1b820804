"""Recipes of the field by name: the settings of a student that stand behind `preset: NAME`. Free of torch.

What a student gives itself goes before its preset. The name is in no digest: it is expanded when a configuration is read.
docs/recipes.md says of each what it is, and what differs from its paper.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from copy import deepcopy
from typing import Any

from unic_pipe.schemas.errors import UserError, did_you_mean

Settings = dict[str, Any]


def _terms(*terms: tuple[str, str, float]) -> list[Settings]:
    return [{"token": token, "kind": kind, "weight": weight} for token, kind, weight in terms]


_IMAGENET: Settings = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_ADAMW: Settings = {"weight_decay": 0.03, "beta1": 0.9, "beta2": 0.99, "min_lr": 1e-6, "clip_norm": None}
_DEIT: Settings = {
    "epochs": 300,
    "warmup_epochs": 5,
    "batch": 1024,
    "lr": 2.5e-4,
    "min_lr": 1e-5,
    "beta2": 0.999,
    "weight_decay": 0.05,
}


def _unic(
    architecture: str, image_size: int, drop: float, epochs: int, warmup_epochs: int, lr: float = 3e-4
) -> Settings:
    """UNIC (arXiv 2408.05088)."""
    return {
        "architecture": architecture,
        "image_size": image_size,
        **_IMAGENET,
        "drop_path": 0.1,
        "ladder": {"blocks": "all", "hidden": 768, "last_hidden": 3072},
        "loss": {
            "cosine": 0.5,
            "smooth_l1": 0.5,
            "tokens": "both",
            "standardize": "exact",
            "drop_probability": drop,
        },
        "optimizer": {"epochs": epochs, "warmup_epochs": warmup_epochs, "batch": 512, "lr": lr, **_ADAMW},
        "dtype": "bfloat16",
    }


def _radio(terms: list[Settings], standardize: object, ladder: Settings) -> Settings:
    """AM-RADIO and what followed it: a sum over teachers, heads on the last tokens, and the larger of two grids."""
    return {
        "architecture": "vit_base_patch16_224",
        "image_size": 224,
        "drop_path": 0.0,
        "ladder": ladder,
        "loss": {"terms": terms, "balance": "sum", "grid": "larger", "standardize": standardize},
        "optimizer": {"epochs": 200, "warmup_epochs": 1, "batch": 1024, "lr": 2.5e-4, **_ADAMW, "weight_decay": 0.02},
        "dtype": "bfloat16",
    }


_AGGLOMERATIVE = _terms(("cls", "cosine", 1.0), ("patch", "cosine", 0.9), ("patch", "smooth_l1", 0.1))
_MLP_V2: Settings = {"kind": "mlp_v2", "hidden": 1536, "layers": 1}


def _eupe(architecture: str, image_size: int, hidden: int, batch: int, peak: float, epochs: int) -> Settings:
    """EUPE (arXiv 2603.22387, equations 5 to 7)."""
    return {
        "architecture": architecture,
        "image_size": image_size,
        "drop_path": 0.0,
        "ladder": {"kind": "mlp", "hidden": hidden},
        "loss": {"terms": _AGGLOMERATIVE, "balance": "sum", "grid": "larger", "standardize": "exact"},
        "optimizer": {
            "epochs": epochs,
            "warmup_epochs": 1,
            "batch": batch,
            "lr": peak * 256 / batch,
            **_ADAMW,
            "weight_decay": 1e-4,
        },
        "dtype": "bfloat16",
    }


def _classified(terms: list[Settings], architecture: str, classifier: str = "weights", **optimizer: Any) -> Settings:
    """Recipes about the classes that one teacher tells apart: a linear head to its cls."""
    return {
        "architecture": architecture,
        "image_size": 224,
        **_IMAGENET,
        "drop_path": 0.1,
        "ladder": {"kind": "linear"},
        "loss": {"terms": terms, "balance": "sum", "standardize": "none", "classifier": classifier},
        "optimizer": {**_ADAMW, **optimizer},
        "dtype": "bfloat16",
    }


def _lightly(*terms: tuple[str, str, float]) -> Settings:
    """lightly-train's distillation: a peak of 5e-4 for batches of 1,536."""
    settings = _classified(_terms(*terms), "vit_small_patch16_224", **_DEIT)
    own = {"epochs": 100, "batch": 1536, "lr": 5e-4 * 256 / 1536, "clip_norm": 1.0}
    return {**settings, "optimizer": {**settings["optimizer"], **own}}


def _dune(image_size: int, epochs: int, lr: float) -> Settings:
    """DUNE (arXiv 2503.14405)."""
    settings = _unic("vit_base_patch14_reg4_dinov2", image_size, 0.5, epochs, epochs // 5, lr)
    return {
        **settings,
        "ladder": {"kind": "block", "layers": 1},
        "optimizer": {**settings["optimizer"], "clip_norm": 1.0},
    }


PRESETS: dict[str, Settings] = {
    "unic-b": _unic("vit_base_patch16_224", 224, 0.5, 200, 10),
    "unic-l": _unic("vit_large_patch14_224", 224, 0.25, 200, 10),
    "unic-l-336": _unic("vit_large_patch14_224", 336, 0.25, 20, 1, lr=3e-5),
    "am-radio": _radio(_AGGLOMERATIVE, "none", {"kind": "mlp_v1", "hidden": 1536, "layers": 0}),
    "phi-s": _radio(_terms(("cls", "cosine", 1.0), ("patch", "mse", 1.0)), "phi_s", _MLP_V2),
    "angle": _radio(_terms(("cls", "angle", 1.0), ("patch", "mse", 1.0)), {"cls": "none", "patch": "phi_s"}, _MLP_V2),
    "eupe-proxy": _eupe("vit_large_patch16_224", 256, 3072, 8192, 2e-5, 200),
    "eupe": _eupe("vit_base_patch16_224", 256, 1536, 8192, 2e-5, 200),
    "eupe-384": _eupe("vit_base_patch16_224", 384, 1536, 4096, 1e-5, 50),
    "theia": {
        "architecture": "deit_base_patch16_224",
        "image_size": 224,
        **_IMAGENET,
        "drop_path": 0.0,
        "ladder": {"kind": "norm_linear"},
        "loss": {
            "terms": _terms(
                ("cls", "cosine", 0.9),
                ("cls", "smooth_l1", 0.1),
                ("patch", "flat_cosine", 0.9),
                ("patch", "smooth_l1", 0.1),
            ),
            "standardize": "exact",
            "drop_probability": 0.0,
        },
        # A peak of 2e-3 that stays: the floor is the peak of 512 images.
        "optimizer": {**_ADAMW, "epochs": 50, "warmup_epochs": 5, "batch": 512, "lr": 1e-3, "min_lr": 2e-3},
        "dtype": "bfloat16",
    },
    "nd": _classified(_terms(("cls", "class_direction", 1.0)), "deit_small_patch16_224", **_DEIT),
    "tinyvit": _classified(
        [{"token": "cls", "kind": "soft_ce", "top_k": 10}],
        "tiny_vit_21m_224",
        epochs=90,
        warmup_epochs=5,
        batch=4096,
        lr=1.25e-4,
        beta2=0.999,
        weight_decay=0.01,
        clip_norm=5.0,
    ),
    "task-specific": _classified(
        [{"token": "cls", "kind": "kl"}], "deit_small_patch16_224", classifier="probe:task", **_DEIT
    ),
    # Two errors over [cls; 256 patches] and over cls alone: cls counts in both.
    "proteus": {
        **_classified([], "vit_small_patch14_dinov2", **_DEIT),
        "drop_path": 0.0,
        "ladder": {"kind": "norm_linear"},
        "loss": {
            "terms": _terms(("cls", "mse", 1 + 1 / 257), ("patch", "mse", 256 / 257), ("patch", "masked_mse", 1.0)),
            "balance": "sum",
            "standardize": "none",
        },
    },
    "lightly-v1": _lightly(("cls", "queue_similarity", 1.0)),
    "lightly-v3": _lightly(("cls", "queue_similarity", 1.0), ("patch", "cell_similarity", 1.0)),
    "dune": _dune(336, 100, 3e-4),
    "dune-448": _dune(448, 50, 2.5e-5),
}
"""A student's settings by the name of its preset, as the file would have them."""
ALIASES = {"unic": "unic-b"}
"""Short names of presets."""


def preset_named(name: str, where: str) -> str:
    """The preset of that name or short name; `where` begins the message.

    Raises:
        UserError: there is none.
    """
    found = ALIASES.get(name, name)
    if found not in PRESETS:
        near = did_you_mean(name, [*PRESETS, *ALIASES])
        raise UserError(f"{where}no preset is named {name!r}{near}", f"There are: {', '.join([*ALIASES, *PRESETS])}.")
    return found


def expand_presets(tree: MutableMapping[str, Any]) -> None:
    """Replace every student's `preset` by its settings, in place; what the student gives itself stays.

    Raises:
        UserError: no preset has that name.
    """
    students = tree.get("students")
    for name, student in students.items() if isinstance(students, MutableMapping) else ():
        if isinstance(student, MutableMapping) and "preset" in student:
            preset = preset_named(str(student.pop("preset")), f"students.{name}.preset: ")
            _fill(student, PRESETS[preset])


def _fill(given: MutableMapping[str, Any], settings: Settings) -> None:
    """Add what is not given; of heads of another kind, nothing."""
    if given.get("kind", settings.get("kind")) != settings.get("kind"):
        return
    for key, value in settings.items():
        if key not in given:
            given[key] = deepcopy(value)
        elif isinstance(value, dict) and isinstance(given[key], MutableMapping):
            _fill(given[key], value)
