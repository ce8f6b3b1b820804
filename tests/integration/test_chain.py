"""A chain: teachers into a large proxy, the proxy into a small student, seen by `status` and made by `run`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

CONFIG = """\
samples:
  block_rows: 16
  datasets:
    train: {source: "data/train-*.tar"}
    test: {source: "data/test-*.tar"}
views: {recipe: gentle, count: 1}
teachers:
  lite0: {encoder: efficientnet-lite0, image_size: 64}
  proxy: {encoder: "student:large"}
compute: {batch: 8}
students:
  small: &small
    teachers: [proxy]
    architecture: vit_tiny_patch16_224
    model_args: {patch_size: 16, depth: 1, embed_dim: 24, num_heads: 2}
    image_size: 32
    threads: 1
    streams: 2
    ladder: {hidden: 8, last_hidden: 16}
    optimizer: {epochs: 1, warmup_epochs: 0, batch: 8, lr: 0.01}
  large:
    <<: *small
    teachers: [lite0]
    model_args: {patch_size: 8, depth: 2, embed_dim: 48, num_heads: 3}
evaluate:
  benchmarks: {digits: {train: train, test: test}}
  probes: [knn]
  k_values: [5]
  baseline: false
"""


@pytest.fixture
def work(raw_template: Any, tmp_path: Path) -> Any:
    shutil.copytree(raw_template.folder / "data", tmp_path / "data")
    (tmp_path / "unic-pipe.yaml").write_text(CONFIG)
    return type(raw_template)(tmp_path)


def run(work: Any) -> list[str]:
    """The stages that `unic-pipe run` talks of, in order."""
    from typer.testing import CliRunner

    from unic_pipe.cli.main import app

    result = CliRunner().invoke(app, ["run", "-c", str(work.folder), "--device", "cpu"])
    assert result.exit_code == 0, (result.output, result.exception)
    return re.findall(r"\[\d/4\] (\w+)", result.output)


def test_status_shows_and_run_makes_the_whole_chain(work: Any) -> None:
    before = {a.name: a.reason for a in work.status().artefacts}
    assert before["students/small"] == before["features/train/proxy"] == "waits for students/large"
    assert before["students/large"] == "its samples are not indexed yet"
    work.index()
    found = {a.name: a for a in work.status().artefacts}
    for name in ("features/train/proxy", "students/small"):
        waiting = found[name]
        assert (waiting.state, waiting.reason) == ("missing", "waits for students/large")
        assert waiting.waits_for == ("students/large",)
        assert waiting.next == "unic-pipe distill --student large"
    assert found["features/train/lite0"].next == "unic-pipe extract --teacher lite0"
    assert found["students/large"].waits_for == ()

    assert run(work) == ["index", "extract", "distill", "extract", "distill", "evaluate"]
    assert set(work.states().values()) == {"fresh"}
    proxy = work.inventory().teacher("proxy").definition
    assert (proxy.cls_dim, proxy.grid, proxy.image_size) == (48, (4, 4), 32)
    records = work.evaluate()
    assert {(r.encoder, r.role) for r in records} == {("large", "student"), ("small", "student"), ("lite0", "teacher")}
    assert run(work) == ["index", "extract", "distill", "evaluate"]


def test_another_large_student_makes_the_rest_of_the_chain_anew(work: Any) -> None:
    from unic_pipe.schemas.errors import NotFinishedError

    work.extract()
    with pytest.raises(NotFinishedError, match="Teacher proxy waits for students/large, which is not finished"):
        work.extract(teachers=["proxy"])
    with pytest.raises(NotFinishedError, match="waits for students/large"):
        work.distill(student="small")
    work.distill(student="large")
    assert {n: s for n, s in work.states().items() if "proxy" in n or "students" in n} == {
        "features/train/proxy": "missing",
        "students/small": "missing",
        "students/large": "fresh",
    }
    assert work.artefact("features/train/proxy").next == "unic-pipe extract --teacher proxy"
    work.extract()
    work.distill(student="small")
    assert work.artefact("students/small").state == "fresh"

    other = "students.large.seed=7"
    assert work.artefact("features/train/proxy", other).reason == "waits for students/large"
    assert work.artefact("students/small", other).reason == "waits for students/large"
    work.distill(other, student="large")
    assert work.artefact("features/train/proxy", other).state == "stale"
    assert "weights" in work.artefact("features/train/proxy", other).reason


def test_a_student_cannot_wait_for_itself(work: Any) -> None:
    from unic_pipe.schemas.errors import UserError

    with pytest.raises(UserError, match=r"students\.large\.teachers: .*large needs large \(teacher proxy\)"):
        work.status("students.large.teachers=[lite0, proxy]")
    with pytest.raises(UserError, match=r"proxy: no student is named 'huge'"):
        work.inventory("teachers.proxy.encoder=student:huge").teacher("proxy")


def test_the_example_is_a_chain_whose_status_says_what_waits(tmp_path: Path, raw_template: Any) -> None:
    from unic_pipe.stages.distill.model.build import build_student

    example = Path(__file__).parents[2] / "examples" / "eupe-chain.yaml"
    shutil.copy(example, tmp_path / "unic-pipe.yaml")
    config = type(raw_template)(tmp_path).inventory().config
    assert config.teachers["proxy"].encoder == "student:proxy-l"
    assert config.students["small"].teachers == ("proxy",)
    for student in config.students.values():
        settings = student.model_copy(update={"model_args": {"depth": 2, "embed_dim": 48, "num_heads": 2}})
        assert build_student(settings).depth == 2
    states = {a.name: a for a in type(raw_template)(tmp_path).status().artefacts}
    assert {"students/proxy-l", "students/small", "students/small-direct"} <= set(states)
    assert states["features/train/proxy"].waits_for == states["students/small"].waits_for == ("students/proxy-l",)
