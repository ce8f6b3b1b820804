"""Weights & Biases, MLflow and trackio themselves, on this machine alone: what each of them has in the end.

`make loggers` runs this in an environment that has them.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from distill_world import World, student_folder

from unic_pipe.pipeline.loggers import Page, Picture, Run, send, wanted_loggers
from unic_pipe.pipeline.loggers.to_wandb import records_in
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.loggers import LoggersConfig
from unic_pipe.stages.distill.metrics import TIMINGS, read_metrics

pytestmark = pytest.mark.loggers
Rows = dict[int, dict[str, Any]]
SCORES = pa.table({"encoder": ["main", "alpha"], "value": [0.5, None]})
PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738"
    "550000000049454e44ae426082"
)
PAGE = "<!doctype html><p>scores</p>"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's settings or credentials, and no report of use to the makers."""
    for name in [n for n in os.environ if n.startswith(("WANDB_", "MLFLOW_", "TRACKIO_", "HF_"))]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "true")


def trained_after_a_kill(world: World, settings: dict[str, Any]) -> None:
    """A training that is stopped, loses its newest checkpoint, and computes again what it has sent."""
    makers = wanted_loggers(LoggersConfig.model_validate(settings))
    assert not world.distill(stop_after=7, validation=True, loggers=makers)
    newest = max(world.folder.glob("students/*/checkpoints/*.pt"))
    newest.write_bytes(newest.read_bytes()[:500])
    assert world.distill(validation=True, loggers=makers)
    assert [line for line in world.reporter.said if "logger" in line or "reached" in line] == []


def evaluated(world: World, settings: dict[str, Any]) -> None:
    """An evaluation, sent twice."""
    makers = wanted_loggers(LoggersConfig.model_validate(settings))
    folder, said = world.folder / "evaluations/main-12345678", list[str]()
    run = Run("evaluation", "evaluation main", "main-12345678-abc", folder, world.folder, {"probes": ["knn"]})
    values = {"scores": SCORES, "patches/val": Picture(PICTURE), "report": Page(PAGE)}
    for _ in range(2):
        send(run, [{"step": 0, **values}], makers, said.append)
    assert said == []


def measured(world: World) -> Rows:
    """What metrics.parquet has, by step, without what is different every time."""
    steps: Rows = {}
    for row in read_metrics(LocalStore(student_folder(world))):
        steps.setdefault(int(row.pop("step")), {}).update(row)
    return {step: untimed(row) for step, row in steps.items()}


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in TIMINGS}


def test_what_nobody_asks_for_is_not_imported() -> None:
    """Not by us: timm imports wandb wherever it is installed."""
    for name in ("unic_pipe.stages.distill.stage", "unic_pipe.stages.report.stage"):
        importlib.import_module(name)
    assert wanted_loggers(LoggersConfig()) == {}
    assert not {"mlflow", "trackio"} & sys.modules.keys()


def test_wandb(world: World) -> None:
    settings = {"wandb": {"project": "birds", "mode": "offline"}}
    trained_after_a_kill(world, settings)
    files = sorted(world.folder.glob("loggers/wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert len({path.name for path in files}) == 1  # two stretches of one run
    history: list[tuple[int, dict[str, Any]]] = []
    for record in (record for path in files for record in records_in(path.read_bytes())):
        if record.HasField("run") and record.run.run_id:
            assert (record.run.project, record.run.display_name) == ("birds", "main")
        if record.HasField("history"):
            items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            step = record.history.step.num or items["_step"]
            history.append((step, {k: v for k, v in untimed(items).items() if not k.startswith("_")}))
    assert history == list(measured(world).items())
    evaluated(world, settings)
    media = world.folder.glob("loggers/wandb/offline-run-*-main-12345678-abc/files/media/*")
    assert {path.name for path in media} == {"table", "images", "html"}


def test_mlflow(world: World) -> None:
    from mlflow import MlflowClient

    settings: dict[str, Any] = {"mlflow": {"experiment": "birds"}}
    trained_after_a_kill(world, settings)
    evaluated(world, settings)
    client = MlflowClient(tracking_uri=f"sqlite:///{world.folder}/loggers/mlflow.db")
    experiment = client.get_experiment_by_name("birds")
    assert experiment is not None
    evaluation, student = client.search_runs([experiment.experiment_id])
    found: Rows = {}
    for name in student.data.metrics:
        for metric in client.get_metric_history(student.info.run_id, name):
            assert name not in found.setdefault(metric.step, {}), "a step that is there twice"
            found[metric.step][name] = metric.value
    assert {step: untimed(row) for step, row in found.items()} == measured(world)
    assert student.data.params["config.optimizer.batch"] == "8"
    assert (student.info.run_name, student.info.status) == ("main", "FINISHED")
    place = world.folder / "loggers/mlflow" / evaluation.info.run_id / "artifacts"
    assert (place / "scores.csv").read_text() == "encoder,value\nmain,0.5\nalpha,\n"
    assert (place / "report.html").read_text() == PAGE
    assert (place / "patches/val.png").exists()


def test_trackio(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(world.folder / "trackio"))  # read when it is imported
    from trackio import utils
    from trackio.sqlite_storage import SQLiteStorage

    assert world.folder / "trackio" == utils.TRACKIO_DIR
    settings, project = {"trackio": {"project": "birds"}}, "birds"
    trained_after_a_kill(world, settings)
    [name] = SQLiteStorage.get_runs(project)
    assert name.startswith(student_folder(world).name)
    found = [(row["step"], untimed({k: v for k, v in row.items() if k not in ("step", "timestamp")}))
             for row in SQLiteStorage.get_logs(project, name)]  # fmt: skip
    assert found == list(measured(world).items())
    evaluated(world, settings)
    [shown] = SQLiteStorage.get_logs(project, "main-12345678-abc")
    assert {key: value["_type"] for key, value in shown.items() if isinstance(value, dict)} == {
        "scores": "trackio.table", "patches/val": "trackio.image", "report": "trackio.html",
    }  # fmt: skip
    assert capsys.readouterr().out == ""


def test_who_is_not_logged_in_is_told_so_before_anything_begins() -> None:
    for settings, said in (
        ({"wandb": {"mode": "online"}}, "wandb login"),
        ({"trackio": {"space": "me/x"}}, "hf auth login"),
    ):
        with pytest.raises(UserError, match=said):
            wanted_loggers(LoggersConfig.model_validate(settings))
