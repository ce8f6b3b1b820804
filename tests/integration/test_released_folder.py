"""Working folders of an earlier version (tests/data): all of it is still fresh, sound, and left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

CODECS = ("int8", "klt", "auto", "float16")
CHANGED: dict[tuple[str, str], str] = {}
"""(folder, artefact) that this version reads differently on purpose: the reason that `status` gives."""


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
        reason = CHANGED.get((released.folder.name, name))
        if reason is None:
            assert {key: found[name][key] for key in artefact} == artefact
        else:
            assert (found[name]["state"], found[name]["reason"]) == ("stale", reason)


def test_nothing_is_damaged_and_the_same_is_garbage(released: Any, released_template: Path, tools: Any) -> None:
    from unic_pipe.stages.gc.stage import find
    from unic_pipe.stages.verify import verify

    report, _ = verify(released.inventory(), True, tools.quiet())
    assert report.problems == ()
    assert report.checked > 100
    then = {item["path"] for item in expected(released_template, "garbage", released)["items"]}
    garbage = find(released.inventory())
    assert ({item.path for item in garbage.items}, garbage.unknown) == (then, ())


def test_nothing_is_done_again(released: Any) -> None:
    times = released.times()
    assert all(passed.complete for passed in released.extract().values())
    for student in released.inventory().config.students:
        released.distill(student=student)
    released.evaluate()
    assert {name: found for name, found in released.times().items() if name in times} == times
