"""The plan of a small working folder made by hand: what is fresh, partial, stale or missing, and what to type next.

Samples are real tars and a real index; encoders are real, tiny, random ViTs. Features are only records: the plan
trusts nothing else.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from unic_pipe.pipeline.cache.layout import record_key
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.configuration import rows_wanted
from unic_pipe.pipeline.workspace.documents import finished_student
from unic_pipe.pipeline.workspace.status import (
    benchmark_datasets,
    extraction_needs,
    make_plan,
    training_datasets,
    used_datasets,
)
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import UnitRecord
from unic_pipe.schemas.students import ExportManifest
from unic_pipe.stages.plan.probes import probe_work

HEX = "ab" * 32


def test_in_a_new_folder_everything_is_missing_and_indexing_comes_first(here):
    report = make_plan(here.look())
    assert [(a.name, a.stage, a.state) for a in report.artefacts] == [
        ("samples/test", "index", "missing"),
        ("samples/train", "index", "missing"),
        ("features/train/dino", "extract", "missing"),
        ("features/train/ibot", "extract", "missing"),
        ("students/main", "distill", "missing"),
        ("evaluations/main", "evaluate", "missing"),
    ]
    assert report.next == "unic-pipe index test"
    assert all(a.next for a in report.artefacts)
    assert report.artefacts[2].reason == "its samples are not indexed yet"
    assert sorted(p.name for p in here.folder.iterdir()) == ["data", "runs", "unic-pipe.yaml"]


def test_datasets_that_a_stage_reads(here):
    inventory = here.look("distill.validation=unused")
    assert training_datasets(inventory) == ["train", "unused"]
    assert benchmark_datasets(inventory) == ["test", "train"]
    assert used_datasets(here.look()) == ["test", "train"]


def test_from_indexed_to_finished_step_by_step(here):
    here.index()
    assert here.states() == {
        "samples/test": ("fresh", 6, 6),
        "samples/train": ("fresh", 12, 12),
        "features/train/dino": ("missing", 0, 12),
        "features/train/ibot": ("missing", 0, 12),
        "students/main": ("missing", 0, 0),
        "evaluations/main": ("missing", 0, 3),
    }
    assert make_plan(here.look()).next == "unic-pipe extract --teacher dino"

    here.extract("dino")
    here.extract("ibot", blocks=[1])
    now = here.plan()
    assert (now["features/train/dino"].state, now["features/train/dino"].done) == ("fresh", 12)
    assert (now["features/train/ibot"].state, now["features/train/ibot"].done) == ("partial", 4)
    assert now["features/train/dino"].next is None
    assert make_plan(here.look()).next == "unic-pipe extract --teacher ibot"

    here.extract("ibot")
    here.begin_student()
    assert here.states()["students/main"] == ("partial", 0, 30)
    here.begin_student(step=20)
    assert here.states()["students/main"] == ("partial", 20, 30)
    assert make_plan(here.look()).next == "unic-pipe distill --student main"
    assert here.plan()["evaluations/main"].reason == "waits for students/main"

    here.finish_student()
    assert here.states()["students/main"] == ("fresh", 30, 30)
    assert here.states()["evaluations/main"] == ("missing", 0, 3)
    here.evaluate("dino", "ibot")
    assert here.states()["evaluations/main"] == ("partial", 2, 3)
    here.evaluate("main", status="failed")
    assert here.states()["evaluations/main"] == ("partial", 2, 3)
    assert make_plan(here.look()).next == "unic-pipe evaluate"
    here.evaluate("main")
    report = make_plan(here.look())
    assert {a.state for a in report.artefacts} == {"fresh"}
    assert report.next is None


def test_probes_of_a_student_that_is_to_come_are_still_to_be_made(here):
    here.index()
    here.extract()

    def left(*overrides):
        needs, probes = probe_work(here.look(*overrides))
        mine = {need.definition.encoder.weights for need, _ in needs if need.encoder == "main"}
        return mine, probes

    stand_in, probes = left()
    assert (len(stand_in), probes) == (1, 3)
    here.finish_student()
    here.evaluate("dino", "ibot", "main")
    trained, probes = left()
    assert (len(trained), probes) == (1, 0)
    assert trained != stand_in
    assert left("students.main.optimizer.lr=0.5") == (stand_in, 1), "the one of before counts for nothing"


def test_planning_writes_nothing(here):
    here.index()
    here.extract()
    before = {p: p.stat().st_mtime_ns for p in here.folder.rglob("*")}
    make_plan(here.look())
    assert {p: p.stat().st_mtime_ns for p in here.folder.rglob("*")} == before


def test_a_changed_definition_is_stale_and_says_what_changed(here):
    here.index()
    here.extract()
    here.finish_student()
    now = here.plan("compute.dtype=bfloat16")
    assert now["features/train/dino"].state == "stale"
    assert now["features/train/dino"].reason == "differs: compute.dtype: float32 → bfloat16"
    now = here.plan("teachers.dino.dtype=bfloat16")
    assert now["features/train/dino"].reason == "differs: compute.dtype: float32 → bfloat16"
    assert now["features/train/ibot"].state == "fresh", "the type is one teacher's"
    now = here.plan("teachers.dino.weights=random:1")
    assert now["features/train/dino"].reason == "differs: encoder.weights digest changed"
    assert now["features/train/ibot"].state == "fresh"
    now = here.plan("students.main.optimizer.lr=0.5", "students.main.seed=1")
    assert now["students/main"].state == "stale"
    assert now["students/main"].reason == "differs: optimizer.lr: 0.0003 → 0.5, seed: 0 → 1"
    assert now["students/main"].next == "unic-pipe distill --student main"
    now = here.plan("students.main.teachers=[dino]")
    assert now["students/main"].reason == "differs: teachers.ibot removed"


def test_settings_that_change_no_bytes_stale_nothing(here):
    here.index()
    here.extract()
    overrides = (
        "compute.device=cuda",
        "teachers.dino.dtype=float32",
        "distill.log_every=1",
        "samples.max_bad_fraction=1",
        "weights_dir=elsewhere",
    )
    assert {a.state for n, a in here.plan(*overrides).items() if n.startswith("features/")} == {"fresh"}


def test_another_student_waits_behind_an_unfinished_one(here):
    here.index()
    here.begin_student(step=5)
    now = here.plan("students.main.seed=1")["students/main"]
    assert (now.state, now.next) == ("missing", "unic-pipe distill --student main")
    assert now.reason == "a training with other settings is unfinished; differs: seed: 0 → 1"


def test_new_samples_make_features_partial_and_stale_nothing(here, shards):
    here.index()
    here.extract()
    shards("train", [2])
    now = here.plan()
    assert (now["samples/train"].state, now["samples/train"].reason) == ("partial", "1 new tar since indexing")
    here.index("train")
    assert here.states()["features/train/dino"] == ("partial", 12, 20)


def test_changed_samples_are_named(here, write_tar):
    here.index()
    write_tar(here.folder / "data" / "train-0001.tar", [("0000.png", b"-")])
    now = here.plan()["samples/train"]
    assert (now.state, now.next) == ("stale", "unic-pipe index train")
    assert "data/train-0001.tar" in now.reason


def test_records_of_other_rows_or_damaged_ones_do_not_count(here):
    here.index()
    here.extract()
    inventory = here.look()
    need = extraction_needs(inventory, ("dino",))[0]
    store = LocalStore(need.folder(here.folder))
    raw = bytearray(store.get(record_key(0, "cls", 0)))
    raw[100] ^= 1
    store.put(record_key(0, "cls", 0), bytes(raw))
    record = UnitRecord.from_bytes(store.get(record_key(1, "patch", 2)), "r")
    store.put(record_key(1, "patch", 2), record.model_copy(update={"rows": HEX}).to_bytes())
    store.put(record_key(1, "cls", 0), store.get(record_key(1, "cls", 1)))
    assert here.states()["features/train/dino"] == ("partial", 9, 12)


def test_a_student_whose_files_or_documents_are_gone_is_not_finished(here):
    here.index()
    store = here.finish_student()
    assert finished_student("main", store.root) is not None
    weights = store.get("export/model.safetensors")
    store.delete("export/model.safetensors")
    assert here.states()["students/main"] == ("partial", 30, 30)
    store.put("export/model.safetensors", weights)
    export = ExportManifest.from_bytes(store.get("export/manifest.json"), "e")
    store.put("export/manifest.json", export.model_copy(update={"student": HEX}).to_bytes())
    assert here.states()["students/main"][0] == "partial"
    store.put("manifest.json", b"{")
    assert here.states()["students/main"][0] == "missing"


def test_missing_weights_name_the_command_that_gets_them(here):
    here.index()
    text = (here.folder / "unic-pipe.yaml").read_text()
    (here.folder / "unic-pipe.yaml").write_text(text.replace("students:", "  dbot-ft: {}\nstudents:", 1))
    report = make_plan(here.look())
    now = {a.name: a for a in report.artefacts}
    assert now["features/train/dbot-ft"].state == "missing"
    assert "dbot-ft: no weights" in now["features/train/dbot-ft"].reason
    assert now["features/train/dbot-ft"].next == "unic-pipe teachers --fetch"
    assert now["features/train/dino"].next == "unic-pipe extract --teacher dino"
    assert now["students/main"].state == now["evaluations/main"].state == "missing"


def test_an_error_without_a_command_still_has_a_next_step(here):
    here.index()
    report = make_plan(here.look("teachers.dino.weights=nowhere.pth", "students={}", "evaluate={}"))
    assert report.artefacts[1].reason.startswith("There is no weights file nowhere.pth")
    assert report.artefacts[1].next == report.next == "unic-pipe extract --teacher dino"


def test_a_teacher_is_extracted_over_the_sets_of_its_students_only(here):
    here.index()
    students = "students={a: {teachers: [dino]}, b: {dataset: test, teachers: [ibot]}}"

    def wanted(*overrides):
        return [need.name for need in extraction_needs(here.look(*overrides))]

    assert wanted(students) == ["features/test/ibot", "features/train/dino"]
    assert [n for n in here.plan(students) if n.startswith("features/")] == [
        "features/test/ibot",
        "features/train/dino",
    ]
    assert wanted("students={a: {teachers: [dino]}}") == ["features/train/dino", "features/train/ibot"]
    assert wanted("students={}") == ["features/train/dino", "features/train/ibot"]
    assert wanted("teachers={}") == []
    validated = wanted("distill.validation=test", "students={a: {teachers: [dino]}}")
    assert "features/test/dino-center" in validated


def test_a_pilot_asks_for_the_first_blocks_and_has_its_own_student(here):
    here.index()
    now = here.plan(rows="30%")
    assert (now["features/train/dino"].total, now["features/train/dino"].digest) == (
        4,
        here.plan()["features/train/dino"].digest,
    )
    assert "students/main-pilot" in now
    assert here.plan(rows="5")["features/train/dino"].total == 8
    assert here.plan(rows="1,000")["features/train/dino"].total == 12


@pytest.mark.parametrize("rows", ["", "0", "-3", "0%", "101%", "1.5", "x", "%", "nan%", "1e3"])
def test_a_pilot_of_nonsense_is_refused(rows):
    with pytest.raises(UserError, match=f"--rows {rows}: expected a percentage or a number of rows"):
        rows_wanted(rows, SimpleNamespace(manifest=SimpleNamespace(rows=100)))


def test_an_unknown_teacher_gets_a_suggestion(here):
    with pytest.raises(UserError, match=r"No teacher is named 'dnio'; did you mean dino\?"):
        here.look().teacher("dnio")
