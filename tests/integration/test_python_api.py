"""`Pipeline`: the code of docs/python.md, tables, progress, errors and stops, on the folder of the tests."""

from __future__ import annotations

import re
import signal
from typing import Any

import pytest
from documents import ROOT

from unic_pipe import Config, Pipeline, UserError

QUICK = {"evaluate.probes": ["knn"], "evaluate.baseline": False}
HERE = {
    'Pipeline("imagenet", callback': f'Pipeline(".", overrides={QUICK}, progress=False, callback',
    'Pipeline("imagenet")': f'Pipeline(".", overrides={QUICK}, progress=show)',
    '"imagenet"': '"."',
    '"data"': '"data/val-*.tar"',
    "image_size=224": "image_size=32, progress=show",
    '"dino"': '"lite0"',
    '"dini"': '"lite"',
    '"main"': '"tiny"',
}
"""What the document calls what the working folder of the tests has, and a quicker evaluation."""


def test_the_code_of_the_document_runs(
    trained: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(codes) == 7
    monkeypatch.chdir(trained.folder)
    before = trained.times("features", "students")
    updates: list[Any] = []
    names: dict[str, Any] = {"show": updates.append}
    for code in codes:
        for document, here in HERE.items():
            code = code.replace(document, here)
        exec(code, names)
    assert {name: each for name, each in trained.times("features", "students").items() if name in before} == before
    said = capsys.readouterr()
    assert said.err == ""
    assert "did you mean lite" in said.out
    [told] = re.findall(r"^evaluation main-\w{8} 0 (.*)$", said.out, re.MULTILINE)
    assert told == "['classes', 'patches/val', 'report', 'scores']"
    titles = {update.text for update in updates if update.done == update.total}
    assert any(title.startswith("features of test") for title in titles)
    assert any(update.text.startswith("report: ") for update in updates)
    scores = names["scores"].to_pylist()
    assert {row["encoder"] for row in scores} == {"tiny", "lite0", "lite1"}
    assert all(0 < row["value"] <= 1 for row in scores)
    lines = (trained.folder / "evaluations/main/results.csv").read_text().splitlines()
    assert lines[0].split(",") == names["scores"].column_names
    assert len(lines) - 1 == len(scores)
    assert names["curves"]["step"].to_pylist()[-1] == 33
    assert names["written"].rows == 12
    assert names["tokens"].cls.shape == (1, 1280)


def test_what_is_wrong_is_said_in_the_words_of_the_commands(raw: Any) -> None:
    with pytest.raises(UserError, match="nowhere: no such file"):
        Pipeline(raw.folder / "nowhere")
    with pytest.raises(UserError, match="needs the folder that it governs"):
        Pipeline(Config.model_validate({"samples": {"datasets": {}}}))
    with pytest.raises(UserError, match=r"in students.main.optimizer.lrr: unknown field; did you mean lr\?"):
        Pipeline({"students": {"main": {"optimizer": {"lrr": 1}}}}, raw.folder)
    names = {"samples": {"datasets": {"a-b": {"source": "x"}, "a": {"source": "y"}}}, "teachers": {"c": {}, "b-c": {}}}
    with pytest.raises(UserError, match="would both be features/a-b-c"):
        Pipeline(names, raw.folder)
    plain = {"samples": {"datasets": {"train": {"source": "data"}}}, "students": {"main": {"seeds": (0, 1)}}}
    assert list(Pipeline(plain, raw.folder).config.students) == ["main-0", "main-1"]
    p = Pipeline(raw.folder, overrides={"students.tiny.seed": 3}, progress=False)
    assert p.config.students["tiny"].seed == 3
    with pytest.raises(UserError, match="expected a percentage"):
        p.extract(rows="much")
    with pytest.raises(UserError, match=r"No student 'tinny' has been trained; did you mean tiny\?"):
        p.curves("tinny")
    assert p.scores().num_rows == 0


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_stop_ends_a_stage_and_the_same_call_goes_on(raw: Any, number: int, raised: type[BaseException]) -> None:
    def stop(update: Any) -> None:
        if update.total is not None:
            signal.raise_signal(number)

    with pytest.raises(raised):
        Pipeline(raw.folder, progress=stop).index("train")
    table = Pipeline(raw.folder, progress=False).index("train")
    states = dict(zip(table["name"].to_pylist(), table["state"].to_pylist(), strict=True))
    assert states["samples/train"] == "fresh"
