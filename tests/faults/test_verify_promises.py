"""What `verify`, `gc` and reruns promise: every flipped bit is named, repairs are whole, and kills raise no alarm."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.pipeline.workspace.run_log import RunLog
from unic_pipe.schemas.status import VerifyReport
from unic_pipe.stages.convert import export_official, import_encoder
from unic_pipe.stages.gc.stage import find
from unic_pipe.stages.verify import VerifyOptions, verify

SCRATCH = (".tmp", "tensorboard")
"""Folders of what is not read back: temporary files and locks, and curves for another program."""
REPORTS = ("report.html", "report.md", "results.csv")
"""Files for people, which are not read back either."""


def look(work: Any, **options: Any) -> VerifyReport:
    return verify(work.inventory(), VerifyOptions(**options), SilentReporter())[0]


@pytest.fixture(scope="module")
def finished_template(raw_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small finished working folder: one teacher, one view, a student, probes, an imported encoder, a run."""
    folder = tmp_path_factory.mktemp("finished") / "work"
    shutil.copytree(raw_template.folder, folder, symlinks=True)
    config = folder / "unic-pipe.yaml"
    text = (
        config.read_text()
        .replace("count: 2", "count: 1")
        .replace("{train: train, test: test}", "{train: test, test: val}")
    )
    text = text.replace("  lite1: {encoder: efficientnet-lite1, image_size: 32}\n", "").replace(
        "epochs: 3", "epochs: 2"
    )
    config.write_text(f"{text}  baseline: false\n")
    work = type(raw_template)(folder)
    work.extract()
    work.distill()
    work.index()
    assert {record.status for record in work.evaluate()} == {"done"}
    export_official(work.inventory().finished_students["tiny"], folder.parent / "one.pth")
    import_encoder(folder, folder / "weights", folder.parent / "one.pth", "brought")
    with RunLog(folder, "extract", SilentReporter()):
        pass
    return work


@pytest.fixture
def finished(finished_template: Any, tmp_path: Path) -> Any:
    shutil.copytree(finished_template.folder, tmp_path / "work", symlinks=True)
    return type(finished_template)(tmp_path / "work")


def kept_files(folder: Path) -> list[Path]:
    """Every file but the user's own, and those that are declared not to be read back."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        declared = set(SCRATCH) & {*parts} or path.name in REPORTS or (parts[0] == "runs" and path.suffix == ".lock")
        if path.is_file() and not path.is_symlink() and len(parts) > 1 and parts[0] != "data" and not declared:
            found.append(path)
    return found


@pytest.mark.timeout(300)
def test_one_bit_of_every_file(finished: Any) -> None:
    """One after the other, over samples, features, students, evaluations, runs and encoders."""
    report = look(finished, read_only=True)
    assert (report.ok, report.problems, report.leftovers, report.unsealed) == (True, (), (), ())
    files, random, missed = kept_files(finished.folder), np.random.default_rng(0), []
    tops = {path.relative_to(finished.folder).parts[0] for path in files}
    assert tops == {"samples", "features", "students", "evaluations", "runs", "encoders"}
    assert len(files) > 90
    for path in files:
        raw = path.read_bytes()
        place, bit = int(random.integers(len(raw))), int(random.integers(8))
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :])
        name = path.relative_to(finished.folder).as_posix()
        report = look(finished, read_only=True)
        if report.ok or name not in {p.path for p in report.problems if p.kind != "unexpected"}:
            missed.append((name, place, bit))
        path.write_bytes(raw)
    assert missed == []
    assert look(finished, read_only=True).ok


def test_a_damaged_index_is_named_and_the_features_are_still_checked(finished: Any) -> None:
    index = next((finished.folder / "samples").glob("train-????????/segment-000.parquet"))
    index.write_bytes(index.read_bytes()[:-100])
    shard = next(finished.features("train-lite0").glob("view-000/cls/c/*/0"))
    shard.write_bytes(b"")
    expected = {index.relative_to(finished.folder).as_posix(), shard.relative_to(finished.folder.resolve()).as_posix()}
    for options in ({"read_only": True}, {"read_only": True, "quick": True}, {"read_only": True, "live": 1}):
        report = look(finished, **options)
        assert {p.path for p in report.problems} == expected
    assert any("damaged" in a.reason for a in finished.status().artefacts)


def test_features_of_probes_are_made_again_by_run(finished: Any) -> None:
    before = finished.content()
    for name, key in (("test-lite0-center", "view-000/cls/c/0/0"), ("test-tiny-center", "manifest.json")):
        file = finished.features(name) / key
        file.write_bytes(b"-" + file.read_bytes()[1:])
    report, following = verify(finished.inventory(), VerifyOptions(), SilentReporter())
    assert not report.ok
    assert following is not None
    assert following.startswith("unic-pipe evaluate ")
    finished.extract()
    artefact = finished.artefact("evaluations/main")
    assert (artefact.state, artefact.next) == ("partial", "unic-pipe evaluate")
    assert "set aside" in artefact.reason
    finished.evaluate()  # what `run` does next
    assert finished.artefact("evaluations/main").state == "fresh"
    assert {name: data for name, data in finished.content().items() if "/damaged/" not in name} == before
    assert look(finished).ok


def test_quick_says_so(finished: Any) -> None:
    weights = finished.student() / "export" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    program = Path(sys.executable).with_name("unic-pipe")
    run = [program, "verify", "--read-only", "-c", finished.folder]
    quick = subprocess.run([*run, "--quick"], capture_output=True, text=True, check=True).stdout
    assert "(--quick)" in quick
    assert "all as recorded" not in quick
    whole = subprocess.run([*run, "--json"], capture_output=True, text=True, check=False)
    assert whole.returncode == 1
    assert "export/model.safetensors" in whole.stdout


def alarms(work: Any) -> list[str]:
    """What verify and status say of a folder in which something was killed, where that is a problem."""
    report = look(work, read_only=True)
    return [p.path for p in report.problems] + [a.reason for a in work.status().artefacts if "damaged" in a.reason]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", [("index",), ("distill",), ("gc", "--yes")])
def test_killed_before_every_kind_of_change(
    zygote: Any, finished_template: Any, raw_template: Any, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Killed before each kind of change for the first time: no problem, and in the end no leftover."""

    def fresh(name: str) -> Any:
        source = raw_template if command == ("index",) else finished_template
        shutil.copytree(source.folder, tmp_path / name, symlinks=True)
        work = type(source)(tmp_path / name)
        if command == ("distill",):
            shutil.rmtree(work.folder / "students")
        elif command[0] == "gc":
            student = work.folder / "students" / "tiny"
            student.unlink()
            config = work.folder / "unic-pipe.yaml"
            config.write_text(config.read_text().replace("lr: 0.03", "lr: 0.02").replace("seed: 0", "seed: 1"))
            config.write_text(config.read_text().replace("recipe: gentle", "recipe: unic"))
            for name in ("train-lite0",):
                (work.folder / "features" / name).unlink(missing_ok=True)
        return work

    whole = fresh("whole")
    ended = zygote(whole.folder, *command)
    assert ended.status == 0, zygote.output()
    kinds = list(dict.fromkeys(ended.changes))
    assert len(kinds) >= 3
    for number, kind in enumerate(kinds):
        work = fresh(str(number))
        assert zygote(work.folder, *command, before=kind).killed
        assert alarms(work) == [], kind
        assert zygote(work.folder, *command).status == 0, zygote.output()
        assert zygote(work.folder, "gc", "--yes").status == 0, zygote.output()
        assert alarms(work) == [], kind
        assert look(work, read_only=True).leftovers == (), kind
        assert find(work.inventory()).unknown == (), kind


def test_gc_works_where_no_byte_can_be_written(finished: Any) -> None:
    """As on a full disk: files can be made, but every write of a byte is refused."""
    finished.distill("students.tiny.optimizer.lr=0.02")
    old = {item.path for item in find(finished.inventory("students.tiny.optimizer.lr=0.02")).items}
    assert old
    ended = subprocess.run(
        [Path(sys.executable).with_name("unic-pipe"), "gc", "--yes", "--set", "students.tiny.optimizer.lr=0.02"],
        cwd=finished.folder, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)), env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert not any((finished.folder / path).exists() for path in old)
    assert look(finished, read_only=True).ok
