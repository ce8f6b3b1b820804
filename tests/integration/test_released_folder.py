"""Working folders of an earlier version (tests/data): all of it is still fresh, sound, and left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from unic_pipe.pipeline.workspace.results import CLASS_TABLE, TABLE

CODECS = ("int8", "klt", "auto", "float16")
TIES = "digits: of equally good values a search takes the middle one now, not the first"
CHANGED: dict[tuple[str, str], tuple[int, str]] = {
    (folder, "evaluations/main"): (kept, TIES) for folder, kept in zip(CODECS, (8, 2, 2, 1), strict=True)
}
"""(folder, artefact) that this version reads differently on purpose: how much of it stays in force, and the reason that
`status` gives."""


@pytest.fixture(params=CODECS)
def released(request: pytest.FixtureRequest, tools: Any, released_template: Path, tmp_path: Path) -> Any:
    """A copy of one of the folders."""
    return tools.work(shutil.copytree(released_template / request.param, tmp_path / request.param, symlinks=True))


def expected(released_template: Path, what: str, released: Any) -> Any:
    return json.loads((released_template / "expected.json").read_bytes())[what][released.folder.name]


def test_every_artefact_is_what_it_was(released: Any, released_template: Path) -> None:
    found = {a["name"]: a for a in released.status().model_dump(mode="json")["artefacts"]}
    then = {a["name"]: a for a in expected(released_template, "status", released)["artefacts"]}
    assert list(found) == list(then)
    for name, artefact in then.items():
        changed = CHANGED.get((released.folder.name, name))
        if changed is None:
            assert {key: found[name][key] for key in artefact} == artefact
        else:
            kept, reason = changed
            same = {"state": "partial", "done": kept, "reason": reason, "next": "unic-pipe evaluate"}
            assert {key: found[name][key] for key in artefact} == artefact | same


def test_nothing_is_damaged_and_the_same_is_garbage(released: Any, released_template: Path, tools: Any) -> None:
    from unic_pipe.stages.gc.stage import find
    from unic_pipe.stages.verify import verify

    report, _ = verify(released.inventory(), True, tools.quiet())
    assert report.problems == ()
    assert report.checked > 100
    then = {item["path"] for item in expected(released_template, "garbage", released)["items"]}
    garbage = find(released.inventory())
    assert ({item.path for item in garbage.items}, garbage.unknown) == (then, ())


def test_nothing_is_done_again_but_what_is_read_differently(released: Any) -> None:
    times = {name: at for name, at in released.times().items() if not name.endswith((TABLE, CLASS_TABLE))}
    assert all(passed.complete for passed in released.extract().values())
    for student in released.inventory().config.students:
        released.distill(student=student)
    released.evaluate()
    assert released.artefact("evaluations/main").state == "fresh"
    assert {name: found for name, found in released.times().items() if name in times} == times
