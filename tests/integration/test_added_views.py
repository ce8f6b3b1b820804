"""Adding views, token types, teachers or samples extracts only what is new; a student learns from uneven views."""

from __future__ import annotations

from typing import Any

import pytest

TRAIN_ONLY = "distill.validation=null"


def test_adding_extracts_only_what_is_new(raw: Any, tools: Any) -> None:
    """6 blocks; units of a teacher = blocks × planes."""
    few = (TRAIN_ONLY, "views.count=2", "views.patch=1")
    first = raw.extract(*few, teachers=["lite0"])["train"]
    assert (first.done, first.before, first.total) == (18, 0, 18)
    before = raw.times("features")

    more = (TRAIN_ONLY, "views.count=3", "views.patch=1")
    second = raw.extract(*more, teachers=["lite0"])["train"]
    assert (second.done, second.before) == (6, 18)
    third = raw.extract(TRAIN_ONLY, "views.count=3", "views.patch=2", teachers=["lite0"])["train"]
    assert (third.done, third.before) == (6, 24)
    fourth = raw.extract(*more)["train"]
    assert (fourth.done, fourth.before) == (24, 24)

    tools.put_tar(raw.folder / "data/train-0003.tar", tools.digit_members(300, 16))
    fifth = raw.extract(*more)["train"]
    assert (fifth.done, fifth.before) == (8, 48)
    shards = {name for name in before if "/c/" in name}
    after = raw.times("features")
    assert shards
    assert {name for name in shards if before[name] != after.get(name)} == set()


@pytest.fixture(scope="module")
def uneven(raw_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    import shutil

    folder = tmp_path_factory.mktemp("uneven") / "work"
    shutil.copytree(raw_template.folder, folder, symlinks=True)
    work = type(raw_template)(folder)
    work.settings = ("views.count=3", "views.patch=1", "views.patch_every=2", "students.tiny.optimizer.epochs=4")
    work.extract(*work.settings)
    return work


@pytest.mark.slow
def test_a_student_of_uneven_views_resumes_with_the_same_bits(uneven: Any) -> None:
    import shutil

    import pyarrow.parquet as pq

    copy = type(uneven)(uneven.folder.parent / "stopped")
    shutil.copytree(uneven.folder, copy.folder, symlinks=True)
    uneven.distill(*uneven.settings)
    for images in (100, 170, 260):
        copy.distill(*uneven.settings, stop_at=images)
    copy.distill(*uneven.settings)
    export = f"students/{uneven.student().name}/export"
    assert uneven.content(export) == copy.content(export) != {}

    rows = pq.read_table(uneven.student() / "metrics.parquet").to_pylist()
    trained = [row for row in rows if row["loss"] is not None]
    without = [row for row in trained if row["lite0/patch/cosine"] is None]
    assert 0 < len(without) < len(trained)
    assert all(row["lite0/cls/cosine"] is not None for row in trained)
    assert all(row["val/lite0/patch/cosine"] is not None for row in rows if row["val/loss"] is not None)
