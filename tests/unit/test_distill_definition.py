"""A student's definition: what changes it, what does not, and what cannot be one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import ROWS, define, features

from unic_pipe.pipeline.workspace.students import student_folder
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import FeatureDefinition
from unic_pipe.schemas.recipes import CENTER


def test_definition_names_its_teachers_in_order() -> None:
    definition = define({}, {"b": features(), "a": features(view_seed=0)})
    assert [t.name for t in definition.teachers] == ["b", "a"]
    teacher = definition.teachers[0]
    assert (teacher.features, teacher.grid, teacher.cls_dim, teacher.patch_dim) == (
        digest_of(features()),
        (14, 14),
        8,
        9,
    )
    assert (definition.dataset, definition.blocks, definition.views) == (ROWS, 3, 2)
    folder = student_folder(Path("w"), "main", definition)
    assert folder == Path("w/students") / f"main-{digest_of(definition)[:8]}"


def test_naming_all_teachers_is_the_default() -> None:
    teachers = {"a": features(), "b": features()}
    assert digest_of(define({"teachers": ("b", "a")}, teachers)) == digest_of(define({}, teachers))
    assert digest_of(define({"teachers": ("a",)}, teachers)) != digest_of(define({}, teachers))


@pytest.mark.parametrize("change", [{"seed": 1}, {"image_size": 96}, {"drop_path": 0.0}, {"threads": 1}])
def test_settings_make_another_student(change: dict[str, Any]) -> None:
    assert digest_of(define(change, {"a": features()})) != digest_of(define({}, {"a": features()}))


@pytest.mark.parametrize(
    ("teachers", "name", "words"),
    [
        ({"a": features()}, "mian", "No student is named 'mian'"),
        ({}, "main", "has no teachers"),
        ({"a": features(), "b": features(recipe=CENTER)}, "main", "a and b saw different views"),
        ({"a": features(), "b": features(view_seed=3)}, "main", "a and b saw different views"),
        ({"a": features(dataset="e" * 64)}, "main", "other samples than dataset train"),
    ],
)
def test_what_does_not_fit_together(teachers: dict[str, FeatureDefinition], name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        define({}, teachers, name)


def test_planning_needs_no_torch() -> None:
    script = "import unic_pipe.pipeline.workspace.students, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False).returncode == 0
