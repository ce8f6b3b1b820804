"""SIGKILL in the middle of an extraction under klt: calibration and units come out as those of an uninterrupted run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

COMMAND = ("extract", "--teacher", "lite1", "--set", "cache.codec=klt", "--set", "cache.snr_db=12")


def copy_of(work: Any, folder: Path) -> Any:
    shutil.copytree(work.folder, folder, symlinks=True)
    return type(work)(folder)


@pytest.mark.slow
def test_killed_before_every_kind_of_change(zygote: Any, raw_template: Any, tmp_path: Path) -> None:
    whole = copy_of(raw_template, tmp_path / "whole")
    ended = zygote(whole.folder, *COMMAND)
    assert ended.status == 0, zygote.output()
    kinds = [kind for kind in dict.fromkeys(ended.changes) if "features" in kind]
    assert any("calibration/TOKEN.json" in kind for kind in kinds)
    assert any("calibration/TOKEN-" in kind for kind in kinds)
    work, killed = copy_of(raw_template, tmp_path / "work"), 0
    for kind in kinds:
        killed += zygote(work.folder, *COMMAND, before=kind).killed
    assert killed >= len(kinds) // 2
    assert zygote(work.folder, *COMMAND).status == 0, zygote.output()
    mine, theirs = work.content("features"), whole.content("features")
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []
