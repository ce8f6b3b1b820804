"""Our students in the official layout, official files as encoders to evaluate, and what is refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from unic_pipe.pipeline.encoders import load_encoder
from unic_pipe.pipeline.encoders.official import read_official
from unic_pipe.pipeline.students.ladder import Ladder, rungs
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.stages.convert import export_imported, export_official, import_encoder


def command(work: Any, *arguments: str) -> str:
    from unic_pipe.cli.main import app

    result = CliRunner().invoke(app, [*arguments, "-c", str(work.folder)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_a_finished_student_in_the_official_layout_says_the_same(trained: Any, tmp_path: Path) -> None:
    student = trained.inventory().finished_students["tiny"]
    written = export_official(student, tmp_path / "unic.pth")
    assert "vit_tiny to vit_large" in written.remarks[0]
    assert "lite0, lite1" in written.remarks[1]
    assert "ImageNet's mean and std" in written.remarks[2]
    checkpoint = read_official(written.path)
    assert (checkpoint.epoch, checkpoint.args["teachers"]) == (3, ["lite0", "lite1"])
    assert eval(checkpoint.args["lp_args"]) == {"hidden_dim": 16, "last_hidden_dim": 32, "which_blocks": [0, 1]}

    image = torch.rand(2, 3, 32, 32)
    ours, theirs = load_encoder(str(student.folder / "export")), load_encoder(str(written.path))
    for a, b in zip(ours(image), theirs(image), strict=True):
        assert torch.equal(a, b)

    definition = student.manifest.definition
    dims: Any = {"cls": {t.name: t.cls_dim for t in definition.teachers}}
    dims["patch"] = {t.name: t.patch_dim for t in definition.teachers}
    ladder = Ladder(rungs(definition.config.ladder, 2), {"cls": (48,) * 2, "patch": (48,) * 2}, dims)
    state = torch.load(student.folder / "checkpoints" / "step-00000033.pt", weights_only=True)["state"]
    ladder.load_state_dict(state["ladder"])
    for (teacher, token, block), projector in ladder.to_projectors().items():
        for name, tensor in zip(("0.weight", "0.bias", "2.weight", "2.bias"), projector, strict=True):
            assert torch.equal(checkpoint.ladder[f"{teacher}.{token}.{block}.layers.{name}"], tensor)

    with torch.serialization.safe_globals([argparse.Namespace]):
        keys = list(torch.load(written.path, weights_only=True)["model"])
    assert keys[:3] == ["module.encoder.cls_token", "module.encoder.pos_embed", "module.encoder.mask_token"]
    assert "module.encoder.blocks.0.1.mlp.fc2.bias" in keys
    for teacher, size in (("lite0", 1280), ("lite1", 1280)):
        assert checkpoint.statistics[teacher]["cls"]["mean"].shape == (1, size)
        assert checkpoint.statistics[teacher]["patch"]["std"].shape == (1, 1, size)
        assert checkpoint.statistics[teacher]["patch"]["std"].min() > 0


def test_ours_out_in_and_out_again_is_equal(trained: Any, tmp_path: Path) -> None:
    command(trained, "export", "tiny", str(tmp_path / "one.pth"))
    assert "encoders/again" in command(trained, "import", str(tmp_path / "one.pth"), "again")
    command(trained, "export", str(trained.folder / "encoders" / "again"), str(tmp_path / "two.pth"))
    one, two = read_official(tmp_path / "one.pth"), read_official(tmp_path / "two.pth")
    assert (one.args, one.epoch) == (two.args, two.epoch)
    for a, b in ((one.encoder, two.encoder), (one.ladder, two.ladder)):
        assert list(a) == list(b)
        assert all(torch.equal(a[key], b[key]) for key in a)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export_imported(trained.folder / "encoders" / "again", tmp_path / "notes.txt")


def test_averaged_weights_and_running_statistics_are_those_that_are_exported(extracted: Any, tmp_path: Path) -> None:
    from unic_pipe.stages.distill.model.average import WeightAverage
    from unic_pipe.stages.distill.model.distiller import Distiller

    extracted.distill("students.tiny.ema=0.5", "students.tiny.loss.standardize=ema")
    student = extracted.inventory().finished_students["tiny"]
    checkpoint = read_official(export_official(student, tmp_path / "unic.pth").path)
    state = torch.load(student.folder / "checkpoints" / "step-00000033.pt", weights_only=True)["state"]
    model = Distiller(student.manifest.definition.config, student.manifest.definition.teachers, torch.device("cpu"))
    average = WeightAverage([model.student, model.ladder], 0.5)
    average.load(state["average"])
    with average.in_place():
        for (teacher, token, block), projector in model.ladder.to_projectors().items():
            assert torch.equal(checkpoint.ladder[f"{teacher}.{token}.{block}.layers.0.weight"], projector[0])
        assert torch.equal(checkpoint.encoder["norm.bias"], model.student.state()["norm.bias"])
    running = state["running"]["lite1"]["patch"]
    assert torch.equal(checkpoint.statistics["lite1"]["patch"]["std"].flatten(), running["std"])


def test_without_its_checkpoint_a_student_has_no_ladder_to_export(trained: Any, tmp_path: Path) -> None:
    student = trained.inventory().finished_students["tiny"]
    next((student.folder / "checkpoints").glob("step-00000033.pt")).unlink()
    with pytest.raises(StageError, match="holds its ladder, is gone or damaged"):
        export_official(student, tmp_path / "unic.pth")
    assert not (tmp_path / "unic.pth").exists()


def test_any_encoder_is_evaluated_beside_students_and_teachers(trained: Any, tmp_path: Path) -> None:
    command(trained, "export", "tiny", str(tmp_path / "unic.pth"))
    output = command(trained, "evaluate", "--device", "cpu", "--encoder", str(tmp_path / "unic.pth"))
    assert "unic" in output
    import pyarrow.parquet as pq

    def scores(name: str) -> dict[tuple[str, str], float]:
        rows = pq.read_table(trained.folder / "evaluations" / "main" / "results.parquet").to_pylist()
        return {(r["probe"], r["metric"]): r["value"] for r in rows if r["encoder"] == name}

    assert scores("unic") == scores("tiny") != {}
    times = trained.times("features")
    command(trained, "evaluate", "--device", "cpu", "--encoder", f"unic={tmp_path / 'unic.pth'}")
    assert trained.times("features") == times

    kept = trained.evaluate(f"evaluate.encoders={{unic: {{encoder: 'checkpoint:{tmp_path / 'unic.pth'}'}}}}")
    assert {r.role for r in kept if r.encoder == "unic"} == {"encoder"}


@pytest.mark.slow
def test_an_encoder_alone_has_a_headline_and_is_counted(raw: Any) -> None:
    """Nothing is configured to learn or to teach: what `--encoder` names is all that there is."""
    none = ("evaluate.probes=[knn]", "teachers={}", "students={}")
    options = [part for override in none for part in ("--set", override)]
    command(raw, "evaluate", "--device", "cpu", "--encoder", "a=efficientnet-lite1", *options)
    report = (raw.folder / "evaluations/main/report.md").read_text()
    assert "No student and no teacher has a result yet; encoder `a` scores" in report
    found = raw.artefact("evaluations/main", *none)
    assert (found.state, found.done, found.total) == ("fresh", 1, 1)
    assert found.reason == "no encoder is configured; these were given by --encoder"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lost.pth", r"lost\.pth: there is no such file or folder"),
        ("mine=nowhere/else", "nowhere/else: there is no such file"),
        ("dion", "did you mean dino"),
        ("timm:vit_tinny_patch16_224", "did you mean vit_tiny_patch16_224"),
        ("lite0=efficientnet-lite2", "a teacher has it"),
        ("tiny=efficientnet-lite2", "a student has it"),
    ],
)
def test_encoders_that_cannot_be_evaluated(trained: Any, text: str, message: str) -> None:
    from unic_pipe.pipeline.workspace.evaluation_plans import evaluation_plans
    from unic_pipe.stages.evaluate.named import with_encoders

    trained.index()
    with pytest.raises(UserError, match=message):
        evaluation_plans(with_encoders(trained.inventory(), [text]))


def test_two_encoders_of_one_name(trained: Any) -> None:
    from unic_pipe.stages.evaluate.named import with_encoders

    with pytest.raises(UserError, match="a is named already") as caught:
        with_encoders(trained.inventory(), ["a=efficientnet-lite0", "a=efficientnet-lite1"])
    assert "--encoder OTHER=efficientnet-lite1" in (caught.value.hint or "")


def test_an_imported_folder_is_never_replaced_by_another_encoder(trained: Any, tmp_path: Path) -> None:
    export_official(trained.inventory().finished_students["tiny"], tmp_path / "unic.pth")
    folder = import_encoder(trained.folder, tmp_path, tmp_path / "unic.pth", "mine")
    before = trained.times("encoders")
    assert import_encoder(trained.folder, tmp_path, tmp_path / "unic.pth", "mine") == folder
    assert trained.times("encoders") == before
    other = read_official(tmp_path / "unic.pth")
    other.encoder["norm.bias"].add_(1)
    (tmp_path / "other.pth").write_bytes(other.to_bytes())
    with pytest.raises(UserError, match="exists already and holds another encoder"):
        import_encoder(trained.folder, tmp_path, tmp_path / "other.pth", "mine")
