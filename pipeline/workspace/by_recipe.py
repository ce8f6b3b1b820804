"""Recipes of the field side by side: a configured student by the loss, the heads and the rate of each. Free of torch.

`NAME-RECIPE`: at the recipe's published rate; `NAME-RECIPE-unic-rate`: at UNIC's; `NAME-RECIPE-own-rate`: at that of the
configured student. Where two of these are equal there is one student, of the first name; what the configured student is
already is that student. Everything else (network, image size, start, data, teachers, seed, batch, epochs, warm-up) is the
configured student's, so that all see the same batches.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from unic_pipe.pipeline.workspace.labels import RATES, SHORT, require_free, student_named
from unic_pipe.schemas.config import Config, LadderConfig, LossConfig, OptimizerConfig, StudentConfig
from unic_pipe.schemas.errors import UserError, did_you_mean
from unic_pipe.schemas.presets import ALIASES, PRESETS, Settings, preset_named

_WHERE = "--compare: "
_THEIRS = ("weight_decay", "beta1", "beta2", "clip_norm")
"""Of the optimizer, what a recipe decides beside the rate."""


def by_recipe(config: Config, name: str, recipes: Sequence[str], rates: Sequence[str]) -> dict[str, StudentConfig]:
    """A configured student by each of these recipes (presets, or their short names) at each of these `RATES`.

    They share one cache and train in one pass.

    Raises:
        UserError: no such student or recipe, or other students have these names.
    """
    base, found = student_named(config, name), dict[str, StudentConfig]()
    for recipe in recipes:
        preset = preset_named(recipe, _WHERE)
        every = {rate: _student(base, PRESETS[preset], rate) for rate in RATES}
        for rate in rates:
            first = next(other for other in RATES if every[other] == every[rate])
            label = name if every[rate] == base else f"{name}-{SHORT.get(preset, preset)}{RATES[first]}"
            found[label] = every[rate]
    require_free(config, name, found)
    return found


def require_known(recipes: Sequence[str], rates: Sequence[str]) -> None:
    """Refuse what `--compare` and `--rates` do not know, before anything is read.

    Raises:
        UserError: no such recipe or rate, or none at all.
    """
    for recipe in recipes:
        preset_named(recipe, _WHERE)
    for rate in rates:
        if rate not in RATES:
            raise UserError(f"--rates: no rate is named {rate!r}{did_you_mean(rate, list(RATES))}")
    if not recipes or not rates:
        raise UserError("Nothing to compare.", "unic-pipe distill --compare unic,am-radio,phi-s,theia")


def _student(base: StudentConfig, recipe: Settings, rate: str) -> StudentConfig:
    loss, ladder = (json.dumps(recipe[part]) for part in ("loss", "ladder"))
    return base.model_copy(
        update={
            "loss": LossConfig.model_validate_json(loss),
            "ladder": LadderConfig.model_validate_json(ladder),
            "optimizer": _optimizer(base.optimizer, recipe["optimizer"], rate),
        }
    )


def _optimizer(base: OptimizerConfig, recipe: Settings, rate: str) -> OptimizerConfig:
    """Rates go with the batch: `lr` is per 256 images, and the last rate is scaled as the peak is."""
    changes = {field: recipe[field] for field in _THEIRS}
    if rate != "own":
        schedule = recipe if rate == "published" else PRESETS[ALIASES["unic"]]["optimizer"]
        changes |= {"lr": schedule["lr"], "min_lr": schedule["min_lr"] * base.batch / schedule["batch"]}
    return base.model_copy(update=changes)
