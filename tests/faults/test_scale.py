"""Commands over a simulated working folder find what was simulated."""

from __future__ import annotations

import json
from pathlib import Path

from scale import simulate
from typer.testing import CliRunner

from unic_pipe.cli.main import app
from unic_pipe.pipeline.process.progress import SilentReporter


def test_a_simulated_folder_is_what_the_commands_say_it_is(tmp_path: Path) -> None:
    """Two tars and a rest, five blocks: everything extracted, nothing to collect; every command has its row."""
    rows = simulate(tmp_path, 1_100, SilentReporter())
    assert {row.rows for row in rows} == {1_100}
    assert [row.name for row in rows][:2] == ["index", "status"]
    assert all(row.seconds > 0 for row in rows)
    ended = CliRunner().invoke(app, ["status", "--json", "--config", str(tmp_path)])
    artefacts = {a["name"]: a for a in json.loads(ended.stdout)["artefacts"]}
    assert artefacts["samples/train"]["total"] == 1_100
    assert (artefacts["features/train/tiny"]["state"], artefacts["features/train/tiny"]["total"]) == (
        "fresh",
        5 * 2 * 2,
    )
