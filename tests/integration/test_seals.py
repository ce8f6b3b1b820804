"""Documents and tables carry seals: what was changed is an error, never data; what is older than seals is read and sealed."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from unic_pipe.pipeline.cache.tables import sealed_table, unsealed_table
from unic_pipe.pipeline.encoders import resolve_encoder
from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.pipeline.storage.pointers import resolve_pointer
from unic_pipe.pipeline.workspace.ladders import statistics_of
from unic_pipe.pipeline.workspace.results import read_results
from unic_pipe.pipeline.workspace.seals import Sealed, sealed_files, unsealed
from unic_pipe.schemas.base import Document
from unic_pipe.schemas.encoders import EncoderCache
from unic_pipe.schemas.errors import DamagedError, StageError, UserError
from unic_pipe.schemas.evaluations import ResultRecord
from unic_pipe.stages.convert import export_official
from unic_pipe.stages.report.runs import load_runs
from unic_pipe.stages.report.stage import records_in_force
from unic_pipe.stages.verify import VerifyOptions, verify


@pytest.fixture(scope="module")
def scored_template(trained_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("scored") / "work"
    shutil.copytree(trained_template.folder, folder, symlinks=True)
    work = type(trained_template)(folder)
    work.index()
    work.evaluate()
    return work


@pytest.fixture
def scored(scored_template: Any, tmp_path: Path) -> Any:
    shutil.copytree(scored_template.folder, tmp_path / "work", symlinks=True)
    return type(scored_template)(tmp_path / "work")


def files_of(work: Any) -> list[Sealed]:
    return list(sealed_files(work.inventory().workspace))


def problems_of(work: Any, **options: Any) -> dict[str, str]:
    report, _ = verify(work.inventory(), VerifyOptions(**{"read_only": True} | options), SilentReporter())
    assert report.ok == (not report.problems)
    return {problem.path: problem.kind for problem in report.problems}


def make_old(work: Any) -> None:
    """The folder as the version before seals wrote it."""
    for file in files_of(work):
        raw = file.store.get(file.key)
        if file.kind is None:
            sink = io.BytesIO()
            pq.write_table(pq.read_table(io.BytesIO(raw)).replace_schema_metadata(None), sink, compression="zstd")
            file.store.put(file.key, sink.getvalue())
        else:
            body = json.loads(raw)
            del body["checksum"]
            body["schema"] = f"{file.kind.KIND}/1"
            file.store.put(file.key, (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode())


def flipped(raw: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[place] ^= 1 << bit
    return bytes(changed)


def result_file(work: Any) -> Path:
    """A result of the student's linear probe."""
    for path in sorted((work.folder / "evaluations/main/results").glob("*.json")):
        record = ResultRecord.from_bytes(path.read_bytes(), str(path))
        if record.encoder == "tiny" and record.definition.probe == "logistic":
            return path
    raise AssertionError("no result of the student")


def test_every_kind_of_file_is_sealed_and_no_changed_bit_is_believed(scored: Any) -> None:
    assert problems_of(scored) == {}
    assert unsealed(scored.inventory().workspace) == ()
    files = files_of(scored)
    found = {Path(file.path).name for file in files}
    assert {"metrics.parquet", "results.parquet", "classes.parquet", "encoders.json", "latest.json"} <= found
    assert {file.kind.KIND for file in files if file.kind is not None} >= {
        "student", "checkpoint", "export", "result", "encoder-cache", "dataset",
    }  # fmt: skip
    generator = np.random.default_rng(0)
    for file in files:
        raw = file.store.get(file.key)
        for place in {0, 14, len(raw) - 1, *generator.integers(len(raw), size=25).tolist()}:
            file.store.put(file.key, flipped(raw, int(place), int(generator.integers(8))))
            with pytest.raises(UserError, match=Path(file.path).name):
                file.read()
        assert problems_of(scored, quick=True) == {file.path: "document"}
        file.store.put(file.key, raw)
    assert problems_of(scored) == {}


def test_an_edited_score_is_found_by_verify_evaluate_report_and_status(scored: Any) -> None:
    path, before = result_file(scored), scored.evaluate()
    body = json.loads(path.read_bytes())
    top1 = body["metrics"]["top1"]
    raw = path.read_bytes()
    path.write_bytes(raw.replace(f'"top1": {top1!r}'.encode(), b'"top1": 0.975', 1))
    assert path.read_bytes() != raw
    for reader in (scored.evaluate, lambda: records_in_force(scored.inventory()), lambda: load_runs([scored.folder])):
        with pytest.raises(DamagedError, match=rf"{path.name}: the checksum") as caught:
            reader()
        assert caught.value.hint is not None
        assert caught.value.hint.startswith("unic-pipe verify")
    artefact = scored.artefact("evaluations/main")
    assert artefact.state != "fresh"
    assert path.name in artefact.reason
    assert artefact.next == "unic-pipe verify"
    report, following = verify(scored.inventory(), VerifyOptions(), SilentReporter())
    name = path.resolve().relative_to(scored.folder.resolve()).as_posix()
    assert [(p.path, p.kind) for p in report.problems] == [(name, "document")]
    assert following == "unic-pipe evaluate"
    assert not path.exists()
    assert (path.parents[1] / "damaged" / "results" / path.name).exists()
    assert scored.evaluate() == before
    assert path.read_bytes() == raw


def test_a_record_is_of_its_definition_though_its_seal_holds(scored: Any) -> None:
    path = result_file(scored)
    record = ResultRecord.from_bytes(path.read_bytes(), "x")
    path.write_bytes(record.model_copy(update={"digest": "0" * 64}).to_bytes())
    with pytest.raises(DamagedError, match="not that of its definition"):
        scored.evaluate()
    assert "document" in problems_of(scored).values()


def test_a_table_of_scores_that_another_program_wrote_is_not_believed(scored: Any) -> None:
    path = scored.folder / "evaluations/main/results.parquet"
    raw = path.read_bytes()
    assert pq.read_table(path).num_rows > 0  # any Parquet reader opens it
    table = pq.read_table(path)
    values = [0.975] * table.num_rows
    column = table.column_names.index("value")
    edited = table.set_column(column, "value", [values]).replace_schema_metadata(None)
    pq.write_table(edited, path)
    with pytest.raises(DamagedError, match=r"results.parquet: the table was edited"):
        load_runs([scored.folder])
    assert list(problems_of(scored).values()) == ["document"]
    scored.evaluate()
    assert path.read_bytes() == raw


@pytest.mark.parametrize("damage", ["gone", "edited", "another"])
def test_statistics_are_never_zero_and_one(scored: Any, damage: str, tmp_path: Path) -> None:
    student = scored.inventory().finished_students["tiny"]
    path = student.folder / "statistics" / "lite0.json"
    if damage == "gone":
        path.unlink()
    elif damage == "edited":
        path.write_bytes(path.read_bytes().replace(b" 0.0,", b" 0.5,", 1))
    else:
        shutil.copy(path.with_name("lite1.json"), path)
    for reader in (
        lambda: statistics_of(student.manifest, student.folder, {"lite0": "a", "lite1": "b"}, {}),
        lambda: export_official(student, tmp_path / "x.pth"),
    ):
        with pytest.raises((StageError, DamagedError), match=r"lite0\.json") as caught:
            reader()
        assert caught.value.hint is not None
    assert not (tmp_path / "x.pth").exists()
    kind = "missing" if damage == "gone" else "content"
    assert problems_of(scored) == {path.relative_to(scored.folder).as_posix(): kind}


def test_an_edited_cache_of_encoders_is_measured_again(scored: Any) -> None:
    path = scored.folder / "runs" / "encoders.json"
    raw, workspace = path.read_bytes(), scored.inventory().workspace
    config = workspace.config.teachers["lite0"]
    before = resolve_encoder("lite0", config, workspace.weights_dir, scored.folder).definition

    def changed(body: dict[str, Any]) -> bytes:
        for definition in body["definitions"].values():
            definition["mean"] = [0.1, 0.2, 0.3]
        return json.dumps(body, indent=1).encode()

    body = json.loads(raw)
    older = {name: value for name, value in body.items() if name != "checksum"} | {"schema": "encoder-cache/1"}
    for edited in (changed(dict(body)), changed(dict(older)), b"{", b""):
        path.write_bytes(edited)
        again = resolve_encoder("lite0", config, workspace.weights_dir, scored.folder).definition
        assert again == before
        assert EncoderCache.from_bytes(path.read_bytes(), "x").definitions


def test_old_checkpoints_are_checked_too_and_what_is_gone_is_missing(scored: Any) -> None:
    student = scored.inventory().finished_students["tiny"].folder
    name = student.relative_to(scored.folder).as_posix()
    oldest = sorted((student / "checkpoints").glob("*.pt"))[0]
    assert oldest != sorted((student / "checkpoints").glob("*.pt"))[-1]
    raw = oldest.read_bytes()
    oldest.write_bytes(flipped(raw, len(raw) // 2, 0))
    assert problems_of(scored) == {f"{name}/checkpoints/{oldest.name}": "content"}
    oldest.write_bytes(raw)
    (student / "latest.json").unlink()
    assert problems_of(scored) == {f"{name}/latest.json": "missing"}


def test_damaged_students_are_named_by_status_and_not_trained_again(scored: Any) -> None:
    folder = scored.inventory().finished_students["tiny"].folder
    for name in ("manifest.json", "export/manifest.json"):
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(flipped(raw, len(raw) // 2, 1))
        artefact = scored.artefact("students/tiny")
        assert artefact.state != "fresh"
        assert name in artefact.reason
        with pytest.raises(DamagedError, match=name):
            scored.distill()
        (folder / name).write_bytes(raw)
    assert scored.artefact("students/tiny").state == "fresh"


def test_pointers_lead_to_folders_of_their_name(scored: Any) -> None:
    features = scored.folder / "features"
    target = os.readlink(features / "train-lite0")
    (features / "train-lite0").unlink()
    for wrong in (os.readlink(features / "train-lite1"), "../features/" + target, str(features / target)):
        (features / "train-lite0").symlink_to(wrong)
        with pytest.raises(DamagedError, match="train-lite0 points to"):
            resolve_pointer(features, "train-lite0")
        assert problems_of(scored) == {"features/train-lite0": "pointer"}
        (features / "train-lite0").unlink()
    (features / "train-lite0").symlink_to("train-lite0-00000000")
    assert problems_of(scored) == {"features/train-lite0": "pointer"}
    assert resolve_pointer(features, "train-lite0") is None


@pytest.mark.slow
def test_a_folder_of_the_version_before_is_fresh_and_is_sealed_on_request(scored: Any) -> None:
    states = scored.states()
    assert set(states.values()) == {"fresh"}
    contents = {file.path: file.read() for file in files_of(scored)}
    make_old(scored)
    assert scored.states() == states
    report = scored.status()
    old = {file.path for file in files_of(scored)} - {"runs/encoders.json"}
    assert set(report.unsealed) == old
    found, following = verify(scored.inventory(), VerifyOptions(), SilentReporter())
    assert (found.ok, set(found.unsealed), found.sealed, following) == (True, old, (), None)
    scored.evaluate()  # reads them; the tables are written with a seal
    assert {Path(path).name for path in old - set(scored.status().unsealed)} == {"results.parquet", "classes.parquet"}
    with pytest.raises(UserError, match="--read-only"):
        verify(scored.inventory(), VerifyOptions(read_only=True, seal=True), SilentReporter())
    damaged = result_file(scored)
    raw = damaged.read_bytes()
    damaged.write_bytes(raw.replace(b'"digest": "', b'"digest": "0', 1))
    found, _ = verify(scored.inventory(), VerifyOptions(seal=True), SilentReporter())
    assert [Path(p.path).name for p in found.problems] == [damaged.name]  # is set aside, never sealed
    damaged.write_bytes(raw)
    found, _ = verify(scored.inventory(), VerifyOptions(seal=True), SilentReporter())
    assert (found.ok, len(found.sealed), found.unsealed) == (True, 1, ())
    for file in files_of(scored):
        content, before = file.read(), contents[file.path]
        if file.kind is not EncoderCache:  # measured again
            assert content == before if isinstance(before, Document) else content.equals(before)
    assert scored.states() == states
    for file in files_of(scored):
        raw = file.store.get(file.key)
        file.store.put(file.key, flipped(raw, len(raw) // 2, 0))
        assert problems_of(scored, quick=True) == {file.path: "document"}
        file.store.put(file.key, raw)


def test_sealed_tables_are_reproducible_and_told_from_old_ones(tmp_path: Path) -> None:
    table = _table()
    raw = sealed_table(table)
    assert pq.read_table(io.BytesIO(raw)).equals(table)
    assert raw == sealed_table(pq.read_table(io.BytesIO(raw)).replace_schema_metadata(None))
    pq.write_table(table, tmp_path / "results.parquet")
    assert unsealed_table((tmp_path / "results.parquet").read_bytes())
    assert read_results(tmp_path / "results.parquet").equals(table)
    for place in range(len(raw)):
        (tmp_path / "results.parquet").write_bytes(flipped(raw, place, place % 8))
        with pytest.raises(DamagedError):
            read_results(tmp_path / "results.parquet")


def _table() -> Any:
    import pyarrow as pa

    return pa.table({"name": ["a", "b", "a"], "value": [0.5, None, 0.25], "count": [1, 2, 3]})
