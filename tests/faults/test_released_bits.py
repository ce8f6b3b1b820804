"""What an earlier version made (tests/data), made again: the same bits on the same kernels, else the same numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

CODECS = ("int8", "klt", "auto", "float16")
READ_DIFFERENTLY = ("klt", "auto", "float16")
"""Folders whose students learn from SigLIP, which is read by its own head now: they are trained anew."""
WEIGHTS = 1e-4
"""Largest difference of weights after training on other kernels."""
NOISE = 0.02
"""Largest error of features from other kernels, relative to their deviation: a rounding that falls to the other side
moves a value by one step of its codec."""
AIM = 2 * 10 ** (-15 / 20)
"""The same where `auto` may choose another codec, because it counts what all rows share now: each of the two holds its
features to 15 dB."""


@pytest.fixture
def same_bits(tools: Any, released_template: Path) -> bool:
    """Whether this machine computes with what the earlier version computed with."""
    return tools.kernels() == json.loads((released_template / "expected.json").read_bytes())["kernels"]


def copy_of(tools: Any, folder: Path, to: Path) -> Any:
    return tools.work(shutil.copytree(folder, to, symlinks=True))


def assert_same_features(then: Any, now: Any, same_bits: bool, noise: float) -> None:
    """Every view and token type of everything that was extracted again."""
    from unic_pipe.pipeline.cache.reader import FeatureCache

    folders = [path for path in (now.folder / "features").iterdir() if path.is_symlink()]
    assert folders
    for pointer in folders:
        ours, theirs = (FeatureCache.open(work.folder / "features" / pointer.name) for work in (now, then))
        if "siglip" in pointer.name:  # read by its own head now
            assert ours.digest != theirs.digest
            continue
        assert ours.digest == theirs.digest
        planes = [(int(path.parent.name[5:]), path.name) for path in pointer.glob("view-*/*") if path.name in ours.dims]
        assert planes
        for where in [(*plane, block) for plane in planes for block in ours.records(*plane)]:
            mine, its = (cache.read_block(*where) for cache in (ours, theirs))
            assert np.array_equal(mine.valid, its.valid)
            error = np.linalg.norm(mine.values - its.values)
            assert error <= noise * np.linalg.norm(its.values - its.values.mean(0)), where
        if same_bits:
            shards = {p: d for p, d in now.content(f"features/{pointer.resolve().name}").items() if "/c/" in p}
            assert shards
            assert [name for name, data in shards.items() if (then.folder / name).read_bytes() != data] == []


def assert_same_students(then: Any, now: Any, same_bits: bool) -> None:
    for name in now.inventory().config.students:
        exports = [work.student(name) / "export" / "model.safetensors" for work in (now, then)]
        ours, theirs = map(load_file, exports)
        assert ours.keys() == theirs.keys()
        for key, weight in theirs.items():
            np.testing.assert_allclose(ours[key], weight, rtol=0, atol=WEIGHTS, err_msg=f"{name}: {key}")
        if same_bits:
            assert exports[0].read_bytes() == exports[1].read_bytes()


@pytest.mark.parametrize("codec", CODECS)
def test_made_again_from_the_samples(
    codec: str, tools: Any, released_template: Path, tmp_path: Path, same_bits: bool
) -> None:
    then, now = (copy_of(tools, released_template / codec, tmp_path / each) for each in ("then", "now"))
    for made in ("samples", "features", "students", "evaluations"):
        shutil.rmtree(now.folder / made)
    now.index()
    now.extract()
    if codec == "auto":
        assert_same_features(then, now, same_bits=False, noise=AIM)
    else:
        assert_same_features(then, now, same_bits, NOISE)
    if codec in READ_DIFFERENTLY:
        return
    for student in now.inventory().config.students:
        now.distill(student=student)
    assert_same_students(then, now, same_bits)
    scores = [
        {(r.benchmark, r.encoder, r.definition.probe, m): v for r in work.evaluate() for m, v in r.metrics.items()}
        for work in (then, now)
    ]
    assert scores[0].keys() == scores[1].keys()
    if same_bits:
        assert scores[0] == scores[1] != {}


def test_a_training_on_what_is_read_differently_now_is_not_gone_on_with(
    tools: Any, released_template: Path, tmp_path: Path
) -> None:
    """It would go on with other targets; it is kept, and a new one begins."""
    now = copy_of(tools, released_template / "float16", tmp_path / "now")
    shutil.rmtree(now.folder / "students")
    shutil.copytree(released_template / "begun" / "students", now.folder / "students", symlinks=True)
    begun = sorted(p.name for p in (now.folder / "students").iterdir() if not p.is_symlink())
    artefact = now.artefact("students/small")
    assert artefact.state == "missing"
    assert "teachers.siglip.features" in artefact.reason
    assert begun == sorted(p.name for p in (now.folder / "students").iterdir() if not p.is_symlink())
