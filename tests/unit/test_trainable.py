"""What a student's settings would end is told before any teacher runs; nothing is locked before the first step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from unic_pipe.cli.running import check_students
from unic_pipe.pipeline.workspace.status import make_plan
from unic_pipe.pipeline.workspace.trainable import keep_verdicts, read_verdicts, shape_digest, unjudged
from unic_pipe.schemas.config import LadderConfig, LossConfig, StudentConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.students import StudentVerdict
from unic_pipe.stages.distill.blueprint import build, judge, shape_of

TINY = StudentConfig(architecture="test_vit", image_size=64)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "vit_tinny_patch16_224"}, "no such model; did you mean vit_tiny_patch16_224?"),
        ({"image_size": 60}, "divisible by patch size|cut off"),
        ({"image_size": 1_000_000_000}, "cannot be built|does not take RGB images"),
        ({"model_args": {"in_chans": 1}}, "does not take RGB images of 64 pixels"),
        ({"ladder": LadderConfig(blocks=(99,))}, "does not fit an encoder with"),
        ({"loss": LossConfig(cosine=0, smooth_l1=0)}, "nothing to minimise"),
    ],
)
def test_settings_that_cannot_be_trained(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        build(TINY.model_copy(update=changes))
    assert raised.value.hint


def test_building_takes_no_memory() -> None:
    student = build(StudentConfig(architecture="vit_giant_patch14_dinov2", image_size=518))
    assert {p.device for p in student.parameters()} == {torch.device("meta")}
    assert shape_of("vit_small_patch14_dinov2", 224).patch == 14


def test_only_what_shapes_the_network_is_looked_at_again() -> None:
    for changes in ({"seed": 3}, {"threads": 7}, {"dataset": "other"}, {"dtype": "bfloat16"}):
        assert shape_digest(TINY.model_copy(update=changes)) == shape_digest(TINY)
    assert shape_digest(TINY.model_copy(update={"image_size": 32})) != shape_digest(TINY)


def test_verdicts_are_kept_for_the_programs_that_gave_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = StudentVerdict(), StudentVerdict(problem="it is wrong.", hint="Do it.")
    keep_verdicts(tmp_path, {"0" * 64: good})
    keep_verdicts(tmp_path, {"1" * 64: bad})
    assert read_verdicts(tmp_path) == {"0" * 64: good, "1" * 64: bad}
    raw = (tmp_path / "runs/students.json").read_bytes()
    (tmp_path / "runs/students.json").write_bytes(raw.replace(b"wrong", b"right"))
    assert read_verdicts(tmp_path) == {}, "an edited verdict is none"
    (tmp_path / "runs/students.json").write_bytes(raw)
    monkeypatch.setattr("unic_pipe.pipeline.workspace.trainable.program_versions", lambda: "another timm")
    assert read_verdicts(tmp_path) == {}


def test_a_typo_is_told_by_status_and_stops_every_command(raw: Any) -> None:
    wrong = ("students.tiny.architecture=vit_tinny_patch16_224",)
    inventory = raw.inventory(*wrong)
    assert unjudged(inventory) == ["tiny"]
    with pytest.raises(UserError, match=r"Student tiny: architecture vit_tinny.*did you mean") as raised:
        check_students(inventory)
    assert "students.tiny.architecture" in str(raised.value)
    assert unjudged(inventory) == []
    report = make_plan(raw.inventory(*wrong))
    [student] = [a for a in report.artefacts if a.stage == "distill"]
    assert "vit_tinny_patch16_224" in student.reason
    assert (student.next, report.next) == (None, None), "nothing is recommended that would be refused"
    check_students(raw.inventory())


def test_fewer_rows_than_a_batch_are_refused_before_extraction(raw: Any) -> None:
    raw.index()
    large = raw.inventory("students.tiny.optimizer.batch=128")
    with pytest.raises(UserError, match=r"the 90 rows of train are fewer than one batch \(128\)") as raised:
        check_students(large)
    assert raised.value.hint == "Set students.tiny.optimizer.batch to 88 or lower, a multiple of its streams (4)."
    said: list[str] = []
    check_students(large, said.append)  # as `extract` does: features are of use without this student
    assert "Features are extracted all the same. Set students.tiny.optimizer.batch" in said[0]


def test_a_pilot_holds_a_batch(raw: Any) -> None:
    """`--rows 1%` of few images is rounded up to the blocks that a batch of its students needs."""
    raw.index()
    inventory = raw.inventory("students.tiny.optimizer.batch=40", rows="1%")
    check_students(inventory)
    dataset = inventory.dataset("train").dataset
    assert dataset is not None
    assert inventory.block_limit(dataset) == 3
    assert inventory.rows_of(dataset) == 48
    assert raw.inventory(rows="1%").block_limit(dataset) == 1


@pytest.mark.slow
def test_status_needs_no_torch_once_the_network_was_built(raw: Any) -> None:
    code = (
        "import sys; from unic_pipe.cli.main import app; app(['status'], standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    codes = [subprocess.run([sys.executable, "-c", code], cwd=raw.folder, check=False).returncode for _ in range(2)]
    assert codes == [1, 0], "teachers and students are built once"
    assert judge(TINY).problem is None


def test_threads_alone_train_nothing_again(trained: Any) -> None:
    """A finished student stays what it is, whatever number of threads is configured now; status says which it had."""
    before = trained.inventory().student_definition("tiny")
    for change in ("students.tiny.threads=3", "distill.threads=3"):
        now = trained.inventory(change)
        assert now.student_definition("tiny") == before
        [student] = [a for a in make_plan(now).artefacts if a.stage == "distill"]
        assert (student.state, student.reason) == ("fresh", "trained with 1 threads")
    other = trained.inventory("students.tiny.threads=3", "students.tiny.seed=4").student_definition("tiny")
    assert other is not None
    assert (other.config.threads, other.config.seed) == (3, 4), "what is trained anew takes the new number"


def test_a_training_goes_on_with_the_threads_of_its_first_checkpoint(tmp_path: Path) -> None:
    from unic_pipe.pipeline.workspace.documents import step_threads
    from unic_pipe.schemas.config import DistillConfig
    from unic_pipe.schemas.students import CheckpointEntry

    entry = CheckpointEntry(file="checkpoints/step-00000001.pt", step=1, size=1, digest="0" * 64, student="0" * 64)
    wanted = DistillConfig(threads=5)
    assert step_threads(tmp_path, TINY, wanted) == 5
    assert step_threads(tmp_path, TINY, DistillConfig()) == TINY.threads
    for recorded, used in ((None, TINY.threads), (3, 3)):
        (tmp_path / "latest.json").write_bytes(entry.model_copy(update={"threads": recorded}).to_bytes())
        assert step_threads(tmp_path, TINY, wanted) == used


def test_nothing_is_locked_before_the_first_step(trained: Any) -> None:
    """A training at step 0 may be corrected; after a step it is not abandoned silently."""
    import shutil

    from unic_pipe.schemas.students import CheckpointEntry

    [folder] = [f for f in (trained.folder / "students").glob("tiny-*") if f.is_dir()]
    shutil.rmtree(folder / "export")
    inventory = trained.inventory("students.tiny.seed=5")
    assert inventory.unfinished_student("tiny") is not None
    latest = CheckpointEntry.from_bytes((folder / "latest.json").read_bytes(), "latest.json")
    (folder / "latest.json").write_bytes(latest.model_copy(update={"step": 0}).to_bytes())
    assert inventory.unfinished_student("tiny") is None
    (folder / "latest.json").unlink()
    assert inventory.unfinished_student("tiny") is None


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("timm/vit_tiny_patch16_224", "timm:vit_tiny_patch16_224"),
        ("weights/mine.pth", "checkpoint:weights/mine.pth"),
        ("dinno", "dino"),
    ],
)
def test_unknown_encoders_are_told_what_was_meant(typed: str, meant: str) -> None:
    from unic_pipe.pipeline.encoders.registry import parse_choice

    with pytest.raises(UserError, match=rf"did you mean {meant}\?"):
        parse_choice(typed)


def test_what_is_missing_is_downloaded_by_the_command_that_is_named(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--encoder` names an encoder that no configuration has: the hint configures it for the download."""
    import shlex

    from unic_pipe.pipeline.encoders.catalogue import catalogue
    from unic_pipe.stages.evaluate.named import with_encoders

    for name in ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(raw.folder / "nowhere"))
    with pytest.raises(UserError) as raised:
        with_encoders(raw.inventory(), ["a=timm:tf_efficientnet_lite3"])
    assert raised.value.hint is not None
    words = shlex.split(raised.value.hint)
    assert words[:4] == ["unic-pipe", "teachers", "--fetch", "--set"]
    config = raw.inventory(words[4]).config.evaluate.encoders
    [row] = [row for row in catalogue(config, raw.folder / "weights", raw.folder) if row.configured]
    assert (row.name, row.unknown, row.card is not None) == ("a", False, True)
    [wrong] = [
        r for r in catalogue({"x": config["a"].model_copy(update={"encoder": "dinno"})}, raw.folder) if r.configured
    ]
    assert wrong.unknown
