"""Commands over a simulated working folder find what was simulated."""

from __future__ import annotations

import json
from pathlib import Path

from scale import simulate
from typer.testing import CliRunner

from unic_pipe.cli.main import app
from unic_pipe.pipeline.process.progress import SilentReporter


def test_a_simulated_folder_is_what_the_commands_say_it_is(tmp_path: Path) -> None:
    """Two tars and a rest, five blocks, two teachers, three views: all extracted; every command has its row."""
    rows = simulate(tmp_path, 1_100, SilentReporter(), teachers=2, views=3)
    assert {row.rows for row in rows} == {1_100}
    assert [row.name for row in rows][:3] == ["index", "to read the records' tables", "status"]
    assert all(row.seconds > 0 for row in rows)
    ended = CliRunner().invoke(app, ["status", "--json", "--config", str(tmp_path)])
    artefacts = {a["name"]: a for a in json.loads(ended.stdout)["artefacts"]}
    assert artefacts["samples/train"]["total"] == 1_100
    for teacher in ("tiny0", "tiny1"):
        features = artefacts[f"features/train/{teacher}"]
        assert (features["state"], features["total"]) == ("fresh", 5 * 3 * 2)
