"""The proof: its configurations are valid, and its tables say what the scores are."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from unic_pipe.pipeline.workspace.configuration import load_workspace

FOLDER = Path(__file__).parents[2] / "examples/proof"


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("settings", "tables", "work")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name)


def test_every_process_has_something_to_train(proof):
    shares = proof["work"].shares
    seeds = [f"student-{seed}" for seed in range(3)]
    alone = [["--student", name] for name in seeds]
    assert shares(seeds, 1) == [alone]
    assert shares(seeds, 2) == [[alone[0], alone[2]], [alone[1]]]
    assert shares(seeds, 8) == [[words] for words in alone]
    both = [f"{name}-{seed}" for seed in (0, 1) for name in ("a", "b")]
    assert shares(both, 2) == [[["--student", f"{name}-{seed}"] for seed in (0, 1)] for name in ("a", "b")]


def test_every_configuration_is_valid_and_has_at_most_24_trainings(proof, tmp_path):
    settings = proof["settings"]

    def loaded(text: str) -> Any:
        (tmp_path / "unic-pipe.yaml").write_text(text)
        return load_workspace(tmp_path).config

    config = loaded(settings.text(settings.students()))
    assert set(config.teachers) == set(settings.TEACHERS)
    assert config.teachers["photo-expert"].encoder.endswith("photos.safetensors")
    assert len(config.students) == 24
    assert config.students["basic-0"].loss.standardize == "none"
    assert config.students["only-lite1-2"].teachers == ("lite1",)
    other = loaded(settings.text({"student": ""}, views=8, codec="float16", seeds=(0,)))
    assert (other.views.count, other.cache.codec) == (8, "float16")


def test_tables_have_means_over_seeds_and_the_best_of_several(proof, tmp_path):
    tables = proof["tables"]
    rows = ["benchmark,axis,encoder,role,probe,metric,value,status"]
    for encoder, value in (("a", 0.8), ("b", 0.6), ("student-0", 0.9), ("student-1", 0.7)):
        rows += [f"digits,,{encoder},x,logistic,top1,{value},done", f"digits,,{encoder},x,knn,top1_k20,{value},done"]
    rows.append("digits,,b,x,fewshot,top1_logistic_5shot,0.5,failed")
    (tmp_path / "evaluations/main").mkdir(parents=True)
    (tmp_path / "evaluations/main/results.csv").write_text("\n".join(rows))
    found = tables.read_scores(tmp_path)
    teachers = [tables.line(name, found, name) for name in "ab"]
    lines = [
        *teachers,
        tables.best_of("best", teachers),
        tables.mean_of("mean", teachers),
        tables.line("student", found, "student", (0, 1)),
    ]
    text = tables.table(lines, ["digits"], ["linear", "5 labels a class"])
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()]
    assert cells[0] == ["", "digits, linear", "digits, 5 labels a class", "mean"]
    assert cells[2:] == [
        ["a", "80.0", "–", "–"],
        ["b", "60.0", "–", "–"],
        ["best", "80.0", "–", "–"],
        ["mean", "70.0", "–", "–"],
        ["student", "80.0 ± 10.0", "–", "–"],
    ]
    file = tmp_path / "page.md"
    file.write_text("before\n<!-- main -->\nold\n<!-- /main -->\nafter\n")
    tables.write_between(file, "main", text)
    assert file.read_text() == f"before\n<!-- main -->\n{text}\n<!-- /main -->\nafter\n"
