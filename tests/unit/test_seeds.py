"""`seeds`: as many students of one configuration, and the spread of their scores."""

from __future__ import annotations

import io
import re
import statistics
from pathlib import Path

import pytest
from report_page import ENCODERS, VALUES, Page, report_data, scores
from rich.console import Console

from unic_pipe.pipeline.workspace.configuration import load_workspace
from unic_pipe.pipeline.workspace.seeds import SeedGroup, as_written, seed_groups
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import StudentConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.students import StudentDefinition
from unic_pipe.stages.report.data import EncoderEntry, ReportData
from unic_pipe.stages.report.files import markdown, results_table
from unic_pipe.stages.report.render import render

BODY = "samples: {datasets: {train: {source: x}}}\nteachers: {a: {}}\nstudents:\n"


def load(folder: Path, students: str, *overrides: str) -> dict[str, StudentConfig]:
    (folder / "unic-pipe.yaml").write_text(BODY + students)
    return load_workspace(folder, overrides).config.students


def test_a_student_for_every_seed_is_the_one_written_by_hand(tmp_path: Path) -> None:
    found = load(tmp_path, "  main: {seeds: [0, 7], drop_path: 0.2}\n  other: {}\n", "students.main.ema=0.9")
    assert list(found) == ["main-0", "main-7", "other"]
    by_hand = load(tmp_path, "  x: {drop_path: 0.2, ema: 0.9}\n  y: {drop_path: 0.2, ema: 0.9, seed: 7}\n")
    assert [digest_of(found[n]) for n in ("main-0", "main-7")] == [digest_of(by_hand[n]) for n in ("x", "y")]
    assert load_workspace(tmp_path, ["students.x.seeds=[1]"]).seeded == {"x": ("x-1",)}


def test_hints_name_settings_as_the_file_has_them() -> None:
    error = UserError("Student main-0: no.", "Set students.main-0.streams: 1, or students.main-00.optimizer.batch.")
    assert as_written(error, {"main": ("main-0", "main-1")}).hint == (
        "Set students.main.streams: 1, or students.main-00.optimizer.batch."
    )


@pytest.mark.parametrize(
    ("students", "words"),
    [
        ("  main: {seeds: [0, 1]}\n  main-1: {}\n", "students.main.seeds makes a student main-1"),
        ("  main: {seeds: [0, 1], seed: 2}\n", "students.main.seeds.*give seed or seeds, not both"),
        ("  main: {seeds: [1, 1]}\n", "the same seed twice"),
        ("  main: {seeds: []}\n", "students.main.seeds"),
    ],
)
def test_seeds_that_make_no_students(tmp_path: Path, students: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(tmp_path, students)


def definition(**config: object) -> StudentDefinition:
    return StudentDefinition(
        config=StudentConfig.model_validate(config), dataset="0" * 64, blocks=1, views=1, teachers=()
    )


def test_students_that_differ_in_their_seed_alone_are_a_group() -> None:
    found = seed_groups(
        {
            "main-0-std": definition(ema=0.9),
            "main-1-std": definition(ema=0.9, seed=1, threads=5),
            "again": definition(ema=0.9, seed=1),
            "a": definition(order_seed=3),
            "b": definition(order_seed=3, seed=9),
            "alone": definition(drop_path=0.3),
            "plain": definition(seed=5),
        }
    )
    assert found == (
        SeedGroup("main-std", ("main-0-std", "main-1-std"), False),
        SeedGroup("a, b", ("a", "b"), True),
    )


def test_evaluate_and_the_report_state_the_spread() -> None:
    top1 = {"main-0": 0.90, "main-1": 0.92, "main-2": 0.97}
    values = {name: {**row, **{n: v - i / 10 for n, v in top1.items()}} for i, (name, row) in enumerate(VALUES.items())}
    data = ReportData(
        "seeds",
        report_data().benchmarks,
        (*(EncoderEntry(n, "student") for n in top1), *ENCODERS),
        scores(values),
        seed_groups=(SeedGroup("main", tuple(top1), True),),
    )
    std = 100 * statistics.stdev(top1.values())
    said = f"`main` scores 93.0 ± {std / 3**0.5:.1f} on `digits` (n = 3, std {std:.1f})"
    assert said in markdown(data)
    assert f"| 93.0 ±{std / 3**0.5:.1f} | 83.0 ±2.1 | 73.0 ±2.1 | 83.0 ±2.1 |" in markdown(data)
    out = io.StringIO()
    Console(file=out, width=120).print(results_table(data))
    assert said.replace("`", "") in " ".join(out.getvalue().split())
    page = Page(render(data))
    assert re.search("whose part this spread leaves out", page.text)
    assert ["digits", "93.0 ±2.1"] in [row for table in page.tables for row in table]
