"""Runs side by side: differences only where scores are of equal protocol and data, clear errors for everything else."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.evaluations import RESULT_COLUMNS
from unic_pipe.stages.report.comparison import compare_runs
from unic_pipe.stages.report.comparison_text import for_markdown, for_terminal, write_page
from unic_pipe.stages.report.runs import load_runs

Rows = list[dict[str, object]]


def rows(values: dict[tuple[str, str], float], **changes: object) -> Rows:
    """Table rows from (benchmark, encoder) -> top-1; `changes` are columns."""
    return [
        {
            "benchmark": bench, "encoder": encoder, "probe": "logistic", "metric": "top1", "value": value, "seed": 0,
            "encoder_digest": encoder.encode().hex() * 4, "dataset_digest": bench.encode().hex() * 4,
            "protocol": "logistic-knn/1", **changes,
        }
        for (bench, encoder), value in values.items()
    ]  # fmt: skip


def write(folder: Path, table: Rows) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table), folder / "results.parquet")
    return folder


FIRST = {("digits", "main"): 0.90, ("digits", "lite"): 0.95, ("pets", "main"): 0.80, ("pets", "lite"): 0.85}
SECOND = {("digits", "main"): 0.93, ("digits", "lite"): 0.95, ("pets", "main"): 0.79, ("pets", "lite"): 0.85}


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / "a", rows(FIRST)), write(tmp_path / "b", rows(SECOND))]


def differences(paths: list[Path]) -> dict[tuple[str, str, str], float | None]:
    (table,) = compare_runs(load_runs(paths)).tables
    return {
        (row.benchmark, column.run, column.encoder): cell.difference
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
    }


def test_differences_are_to_the_same_encoder_of_the_first_run(runs: list[Path]) -> None:
    found = differences(runs)
    assert found["digits", "b", "main"] == pytest.approx(0.03)
    assert found["pets", "b", "main"] == pytest.approx(-0.01)
    assert found["digits", "b", "lite"] == 0
    assert {v for (_, run, _), v in found.items() if run == "a"} == {None}


def test_an_encoder_of_another_name_is_compared_with_the_first_column(tmp_path: Path, runs: list[Path]) -> None:
    other = write(tmp_path / "c", rows({("digits", "new"): 0.97}))
    found = compare_runs(load_runs([runs[0], other]), ["main", "new"])
    assert [c.encoder for c in found.tables[0].columns] == ["main", "new"]
    assert found.tables[0].rows[0].cells[1].difference == pytest.approx(0.07)
    assert "difference to main of a" in for_markdown(found)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("protocol", "logistic-knn/2", "protocol logistic-knn/2, not"), ("dataset_digest", "f" * 64, "ffffffff, not")],
)
def test_other_protocol_or_other_data_is_marked_and_never_compared(
    tmp_path: Path, runs: list[Path], column: str, value: str, said: str
) -> None:
    odd = [row | ({column: value} if row["benchmark"] == "pets" else {}) for row in rows(SECOND)]
    found = compare_runs(load_runs([runs[0], write(tmp_path / "odd", odd)]))
    assert not found.comparable
    by_name = {row.benchmark: row for row in found.tables[0].rows}
    assert [c.difference for c in by_name["pets"].cells] == [None] * 4
    assert said in by_name["pets"].cells[2].problem
    assert by_name["pets"].cells[0].problem == ""
    assert by_name["digits"].cells[2].difference is not None
    assert found.tables[0].mean == (), "one comparable benchmark is no mean"
    out = io.StringIO()
    Console(file=out, width=140).print(for_terminal(found))
    for text in (out.getvalue(), for_markdown(found)):
        assert "79.0†" in text
        assert said in text


def test_mean_is_over_the_benchmarks_that_every_encoder_has(tmp_path: Path, runs: list[Path]) -> None:
    more = write(tmp_path / "more", rows({**SECOND, ("cars", "main"): 0.10}))
    found = compare_runs(load_runs([runs[0], more])).tables[0]
    assert found.mean_of == 2
    assert [round(c.value or 0, 4) for c in found.mean] == [0.85, 0.9, 0.86, 0.9]
    assert [c.encoder for c in found.columns] == ["main", "lite", "main", "lite"]
    assert found.mean[2].difference == pytest.approx(0.01)


def test_seeds_are_averaged_with_their_spread(tmp_path: Path, runs: list[Path]) -> None:
    seeds = [r for s, v in enumerate((0.90, 0.92, 0.94)) for r in rows({("digits", "main"): v}, seed=s)]
    found = compare_runs(load_runs([runs[0], write(tmp_path / "seeds", seeds)]), ["main"])
    cell = next(row for row in found.tables[0].rows if row.benchmark == "digits").cells[1]
    assert cell.value == pytest.approx(0.92)
    assert cell.spread == pytest.approx(0.02)
    assert "**92.0** ±2.0 (+2.0)" in for_markdown(found)
    averaged = rows({("digits", "main"): 0.92}, seed=None)
    averaged += rows({("digits", "main"): 0.03}, seed=None, metric="top1_spread")
    averaged += [r for s, v in enumerate((0.90, 0.92, 0.94)) for r in rows({("digits", "main"): v}, seed=s)]
    (table,) = compare_runs(load_runs([write(tmp_path / "averaged", averaged)]), metrics=["all"]).tables
    assert (table.rows[0].cells[0].value, table.rows[0].cells[0].spread) == (0.92, 0.03), "as the table says"


def test_metrics_are_chosen_by_name(tmp_path: Path) -> None:
    table = rows(FIRST)
    table += rows(FIRST, metric="per_class")
    table += [r for k in (10, 20) for r in rows(FIRST, probe="knn", metric=f"top1_k{k}")]
    loaded = load_runs([write(tmp_path / "a", table)])
    assert [(t.probe, t.metric) for t in compare_runs(loaded).tables] == [("logistic", "top1"), ("knn", "top1_k20")]
    assert [t.metric for t in compare_runs(loaded, metrics=["per_class"]).tables] == ["per_class"]
    assert len(compare_runs(loaded, metrics=["all"]).tables) == 4
    with pytest.raises(UserError, match="did you mean per_class"):
        compare_runs(loaded, metrics=["perclass"])
    with pytest.raises(UserError, match="No run has the encoder nobody"):
        compare_runs(loaded, ["nobody"])


def test_less_is_better_where_it_is_an_error(tmp_path: Path) -> None:
    a = write(tmp_path / "a", rows({("nyud", "main"): 0.50}, metric="rmse"))
    b = write(tmp_path / "b", rows({("nyud", "main"): 0.45}, metric="rmse"))
    assert "| nyud | 0.500 | **0.450** (−0.050) |" in for_markdown(compare_runs(load_runs([a, b])))


def test_a_run_is_a_working_folder_an_evaluation_or_a_table(tmp_path: Path) -> None:
    folder = write(tmp_path / "work" / "evaluations" / "main-12345678", rows(FIRST))
    (folder.parent / "main").symlink_to("main-12345678")
    (tmp_path / "work" / "unic-pipe.yaml").write_text("")
    for path in (tmp_path / "work", folder.parent, folder.parent / "main", tmp_path / "work" / "unic-pipe.yaml"):
        assert load_runs([path])[0].path.resolve() == folder / "results.parquet"
    assert load_runs([tmp_path / "work"])[0].label == "work"
    assert load_runs([folder / "results.parquet"])[0].label == "main-12345678"
    (folder.parent / "second").symlink_to("main-12345678")
    with pytest.raises(UserError, match="several evaluations") as error:
        load_runs([tmp_path / "work"])
    assert "evaluations/main or " in str(error.value.hint)


def test_runs_of_equal_folder_names_are_told_apart(tmp_path: Path) -> None:
    paths = [write(tmp_path / name / "run", rows(FIRST)) for name in ("x", "y")]
    assert [run.label for run in load_runs(paths)] == [str(p) for p in paths]
    with pytest.raises(UserError, match="given twice"):
        load_runs([paths[0], paths[0] / "results.parquet"])


def test_missing_damaged_and_old_tables_are_refused_by_name(tmp_path: Path, runs: list[Path]) -> None:
    with pytest.raises(UserError, match=r"There is no .*nowhere"):
        load_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="holds no finished evaluation"):
        load_runs([tmp_path])
    old = [{c: v for c, v in row.items() if c not in ("protocol", "dataset_digest")} for row in rows(FIRST)]
    with pytest.raises(UserError, match="lacks dataset_digest, protocol"):
        load_runs([write(tmp_path / "old", old)])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "results.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(UserError, match=r"broken/results.parquet: the table was edited or damaged"):
        load_runs([runs[0], tmp_path / "broken"])
    empty = pa.Table.from_pylist([], schema=pq.read_schema(runs[0] / "results.parquet"))
    (tmp_path / "empty").mkdir()
    pq.write_table(empty, tmp_path / "empty" / "results.parquet")
    with pytest.raises(UserError, match="no finished result"):
        load_runs([tmp_path / "empty"])
    with pytest.raises(UserError, match="two results of main on digits"):
        load_runs([write(tmp_path / "two", rows(FIRST) + rows(FIRST, encoder_digest="0" * 64))])


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self.tags.add(tag)
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_escaped_and_alone_in_its_folder(tmp_path: Path, runs: list[Path]) -> None:
    hostile = "<script>alert(1)</script>"
    odd = write(tmp_path / "odd", rows({("digits", hostile): 0.5, ("pets", hostile): 0.6}, protocol=f"{hostile}/2"))
    folder = tmp_path / "pages"
    folder.mkdir()
    write_page(folder / "compare.html", compare_runs(load_runs([*runs, odd])))
    assert [p.name for p in folder.iterdir()] == ["compare.html"]
    page = (folder / "compare.html").read_text()
    assert "script" not in Tags(page).tags
    assert "93.0" in page
    assert "+3.0" in page
    assert all(column in RESULT_COLUMNS for column in rows(FIRST)[0])
    with pytest.raises(UserError, match="is a folder"):
        write_page(folder, compare_runs(load_runs(runs)))


def test_command_prints_json_markdown_and_warns_without_torch(tmp_path: Path, runs: list[Path]) -> None:
    odd = write(tmp_path / "odd", rows(SECOND, protocol="logistic-knn/2"))
    program = (
        "import sys; from unic_pipe.cli.main import main\n"
        "try: main()\nfinally: assert not {'torch', 'timm', 'zarr', 'sklearn'} & set(sys.modules)"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, "report", "compare", *arguments],
            capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip

    found = run(*map(str, [*runs, odd]), "--json", "--html", str(tmp_path / "c.html"))
    assert found.returncode == 0, found.stderr
    body = json.loads(found.stdout)
    assert body["comparable"] is False
    assert [r["label"] for r in body["runs"]] == ["a", "b", "odd"]
    assert "not compared" in found.stderr
    assert (tmp_path / "c.html").is_file()
    assert run(*map(str, runs), "--json", "--markdown").returncode == 2
    missing = run(str(tmp_path / "nowhere"))
    assert (missing.returncode, "Traceback" in missing.stderr) == (2, False)
