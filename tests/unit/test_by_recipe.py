"""One student by the recipes of the field: what a recipe decides, what is shared, and what the students are called."""

from __future__ import annotations

import json
from typing import Any

import pytest

from unic_pipe.pipeline.workspace.by_recipe import by_recipe, require_known
from unic_pipe.pipeline.workspace.labels import in_order, origins
from unic_pipe.schemas.config import Config, StudentConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.presets import PRESETS, expand_presets

BOTH = ("published", "unic")


def config(**students: dict[str, Any]) -> Config:
    tree = {
        "samples": {"datasets": {"train": {"source": "x"}}},
        "teachers": {"a": {}, "b": {}},
        "students": students,
    }
    expand_presets(tree)
    return Config.model_validate_json(json.dumps(tree))


OWN: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "image_size": 64,
    "seed": 4,
    "init": "pretrained",
    "drop_path": 0.3,
    "optimizer": {"epochs": 5, "batch": 128, "lr": 0.02, "warmup_epochs": 2, "frozen_steps": 7},
}


def test_a_recipe_decides_loss_heads_and_rate_and_the_student_the_rest() -> None:
    found = by_recipe(config(main=OWN), "main", ("unic", "am-radio", "theia"), (*BOTH, "own"))
    assert [(name, s.optimizer.lr, s.optimizer.min_lr) for name, s in found.items()] == [
        ("main-unic", 3e-4, 1e-6 / 4),  # a batch a quarter of UNIC's
        ("main", 0.02, 1e-6),  # its loss is UNIC's
        ("main-am-radio", 2.5e-4, 1e-6 / 8),
        ("main-am-radio-unic-rate", 3e-4, 1e-6 / 4),
        ("main-am-radio-own-rate", 0.02, 1e-6),
        ("main-theia", 1e-3, 2e-3 / 4),
        ("main-theia-unic-rate", 3e-4, 1e-6 / 4),
        ("main-theia-own-rate", 0.02, 1e-6),
    ]
    base = StudentConfig.model_validate(OWN)
    for name, student in found.items():
        recipe = next((r for r in ("am-radio", "theia") if r in name), "unic-b")
        theirs = PRESETS[recipe]
        assert student.ladder.kind == theirs["ladder"].get("kind", "ladder")
        assert student.optimizer.weight_decay == theirs["optimizer"]["weight_decay"]
        assert student.loss.balance == theirs["loss"].get("balance", "dropping")
        ours = {"loss": base.loss, "ladder": base.ladder, "optimizer": base.optimizer}
        assert student.model_copy(update=ours) == base
        shared = ("epochs", "batch", "warmup_epochs", "frozen_steps")
        assert [getattr(student.optimizer, f) for f in shared] == [getattr(base.optimizer, f) for f in shared]


def test_one_rate_alone_keeps_the_names_and_a_recipe_that_the_student_has_is_that_student() -> None:
    assert list(by_recipe(config(main=OWN), "main", ("unic", "phi-s"), ("unic",))) == [
        "main-unic",
        "main-phi-s-unic-rate",
    ]
    assert list(by_recipe(config(main={"preset": "unic"}), "main", ("unic-b", "unic-l"), BOTH)) == [
        "main",
        "main-unic-l",
    ]


def test_unknown_recipes_and_rates_and_names_of_others_are_refused() -> None:
    with pytest.raises(UserError, match=r"no preset is named 'am-radoi'; did you mean am-radio\?"):
        require_known(["unic", "am-radoi"], BOTH)
    with pytest.raises(UserError, match=r"no rate is named 'publshed'; did you mean published\?"):
        require_known(["unic"], ["publshed"])
    with pytest.raises(UserError, match="Nothing to compare"):
        require_known([], BOTH)
    with pytest.raises(UserError, match="main-theia are configured"):
        by_recipe(config(main=OWN, **{"main-theia": {}}), "main", ("theia",), ("published",))


def test_they_are_listed_together_and_lead_back_to_their_student() -> None:
    names = ["b-unic-live", "b-theia", "b", "b-phi-s-unic-rate", "b-unic", "b-basic", "a-unic-l"]
    assert in_order(sorted(names), ["b", "a"]) == [
        "b-basic", "b", "b-unic", "b-phi-s-unic-rate", "b-theia", "b-unic-live", "a-unic-l",
    ]  # fmt: skip
    assert origins("main-am-radio-unic-rate-pilot")[-1] == "main"
    assert origins("main-unic-l") == ["main-unic-l", "main"]
