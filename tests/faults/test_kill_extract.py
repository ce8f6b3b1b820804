"""SIGKILL in the middle of `unic-pipe extract`, then the same command again: the cache is that of an uninterrupted run."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MOMENTS = 8
"""Working folders in which extract is killed, at moments spread over the duration of an uninterrupted run, and then again."""


@pytest.fixture(scope="module")
def whole(zygote: Any, raw_template: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """An uninterrupted run: (working folder, how it went)."""
    work = copy_of(raw_template, tmp_path_factory.mktemp("whole") / "work")
    ended = zygote(work.folder, "extract")
    assert ended.status == 0, zygote.output()
    return work, ended


def copy_of(work: Any, folder: Path) -> Any:
    shutil.copytree(work.folder, folder, symlinks=True)
    return type(work)(folder)


def finish(zygote: Any, work: Any, whole: Any) -> None:
    """Run to the end, and compare every file and link that is neither provenance nor temporary."""
    assert zygote(work.folder, "extract").status == 0, zygote.output()
    mine, theirs = work.content(), whole.content()
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []


@pytest.mark.slow
def test_killed_at_any_moment(zygote: Any, raw_template: Any, whole: tuple[Any, Any], tmp_path: Path) -> None:
    random, killed_again = np.random.default_rng(0), 0
    for moment in range(MOMENTS):
        work = copy_of(raw_template, tmp_path / str(moment))
        seconds = whole[1].seconds * (moment + random.random()) / MOMENTS
        while not zygote(work.folder, "extract", after_s=seconds).killed:
            # The uninterrupted run met a busier machine: this one was at its end before.
            seconds *= 0.7
            work = copy_of(raw_template, tmp_path / f"{moment}-{seconds}")
        how = ("SIGKILL", "SIGTERM")[moment % 2]
        ended = zygote(work.folder, "extract", after_s=seconds * random.uniform(0.3, 0.9), signal=how)
        # Before it listens to signals, SIGTERM ends it at once.
        assert ended.status in (0, -signal.SIGKILL, -signal.SIGTERM), zygote.output()
        killed_again += ended.killed
        finish(zygote, work, whole[0])
    assert killed_again > 0


@pytest.mark.slow
def test_killed_before_every_kind_of_change(
    zygote: Any, raw_template: Any, whole: tuple[Any, Any], tmp_path: Path
) -> None:
    """A working folder dies again and again: before a file of each kind is linked, moved or removed for the first time."""
    kinds = list(dict.fromkeys(whole[1].changes))
    assert len(kinds) >= 20
    for expected in ("samples/NAME", "features/NAME", "zarr.json", "N.json", "N.stats", "TOKEN.parquet", "ledger"):
        assert any(expected in kind for kind in kinds)
    work = copy_of(raw_template, tmp_path / "work")
    for number, kind in enumerate(kinds):
        if not zygote(work.folder, "extract", before=kind).killed:
            # That was done by a run that died later, and this one has come to the end.
            finish(zygote, work, whole[0])
            work = copy_of(raw_template, tmp_path / str(number))
            assert zygote(work.folder, "extract", before=kind).killed
    finish(zygote, work, whole[0])


def test_another_process_with_other_threads_writes_the_same_bytes(
    whole: tuple[Any, Any], extracted_template: Any
) -> None:
    parts = ("samples/train", "samples/val", "features")
    assert whole[0].content(*parts) == extracted_template.content(*parts)
