"""What people read when something is not as it should be: one to three lines that say what is wrong and what to type."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from commands import Type, artefacts, configured, real, student_folders

from unic_pipe.cli.running import LOOKING

Usage = namedtuple("Usage", "total used free")


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

    @pytest.mark.parametrize("arguments", [["statos"], ["status", "--jsn"], ["extract", "--workers", "-1"], ["export"]])
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

    def test_loggers(self, typed: Type, extracted: Any) -> None:
        """They are no part of what anything is made from, and one that is not there ends a run before it begins."""
        nobodys = ("--set", "loggers.installed=[nobodys]")
        asked = artefacts(typed(extracted.folder, "status", "--json", *nobodys))
        assert asked == artefacts(typed(extracted.folder, "status", "--json"))
        for command in ("run", "distill", "evaluate"):
            typed(extracted.folder, command, *nobodys).refuses("no installed package offers a logger 'nobodys'")
        assert not list((extracted.folder / "students").glob("*"))

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
        typed(raw.folder, "init", "--data", "nothing").refuses("exists already", "move it away first")
        (raw.folder / "unic-pipe.yaml").unlink()
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
        said = typed(raw.folder, "teachers", "--fetch", "--set", "teachers.ours.encoder=checkpoint:lost.pth").err
        assert "ours: nothing can be downloaded for it. There is no weights file lost.pth" in said
        assert "Nothing to download" not in said


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
        said = typed(extracted.folder, *more, "--device", "cpu")
        assert (said.code, said.err.splitlines()[0]) == (0, LOOKING)  # before PyTorch is imported

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
