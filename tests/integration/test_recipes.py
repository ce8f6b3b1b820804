"""Recipes of the field in one pass: the example is trained, by any number of processes, in parts, and after a kill."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from training_ranks import assert_same_student, copy_of, metrics_of

from unic_pipe.pipeline.encoders import load_encoder
from unic_pipe.pipeline.workspace.documents import finished_student
from unic_pipe.pipeline.workspace.ladders import adapted
from unic_pipe.schemas.losses import KINDS
from unic_pipe.stages.init.presets import PRESETS

EXAMPLE = Path(__file__).parents[2] / "examples" / "recipes.yaml"
OPTIMIZER = {"epochs": 1, "warmup_epochs": 0, "batch": 16, "lr": 0.03, "min_lr": 1e-6}
TOLERANCE = {"rtol": 1e-4, "atol": 2e-4}
"""Of weights after steps of 2e-3: where a gradient is almost 0, AdamW makes much of its rounding."""
PARTS = ("--set", "distill.micro_batch=5", "--set", "distill.shard=always")


def configure(work: Any, evaluated: Any = None) -> Any:
    """The example's students, made small, of the teachers that are here; with the probes that another folder has."""
    yaml, file = YAML(), work.folder / "unic-pipe.yaml"
    body = yaml.load(file)
    tiny = body["students"]["tiny"]
    text = EXAMPLE.read_text().replace("  deit3: {}", "  #")
    for name, here in (("dinov2-g", "lite0"), ("metaclip-h", "lite1"), ("deit3", "lite0")):
        text = text.replace(name, here)
    example = yaml.load(text)
    small = {
        key: tiny[key] for key in ("architecture", "model_args", "image_size", "threads", "streams", "window_blocks")
    }
    for student in example["students"].values():
        student.update({**small, "optimizer": OPTIMIZER, "dtype": "float32", "ladder": {"hidden": 16}})
    for plain in ("theia", "dune", "nd", "tinyvit", "task-specific", "proteus", "lightly-v3"):
        del example["students"][plain]["ladder"]
    for ladder in ("unic-gram", "unic-scalekd"):
        example["students"][ladder]["ladder"]["last_hidden"] = 16
    # These teachers' cls and patch tokens have different dimensions, which one block does not predict.
    # Others train UNIC itself, and EUPE's loss and balance are AM-RADIO's. Of cls the teachers have 1,280 dimensions.
    del example["students"]["unic"], example["students"]["eupe"]
    example["students"]["phi-s"]["loss"] = {"standardize": {"cls": "exact", "patch": "phi_s"}}
    loss = example["students"]["dune"]["loss"]
    loss["terms"] = [term for term in loss["terms"] if term["token"] == "patch"]
    body["students"], body["distill"] = example["students"], {"log_every": 2}
    task = {"train": "train", "test": "val"}
    body["evaluate"] |= {"benchmarks": {"task": task}, "baseline": False, "probes": ["logistic"]}
    yaml.dump(body, file)
    if evaluated is not None:
        shutil.copytree(evaluated.folder / "evaluations", work.folder / "evaluations", symlinks=True)
    return work


def refit_where_damaged(work: Any) -> None:
    """A probe that a student learns from, to the same bits."""
    (probe,) = work.folder.glob("evaluations/*-*/probes/*.npy")
    raw, done = probe.read_bytes(), work.artefact("evaluations/main").done
    probe.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert work.artefact("evaluations/main").done == done - 1
    work.evaluate()
    assert probe.read_bytes() == raw


@pytest.fixture(scope="module")
def alone(ranks: Any, extracted_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All students, trained by one process without interruption."""
    work = configure(copy_of(extracted_template, tmp_path_factory.mktemp("recipes") / "work"))
    waiting = work.artefact("students/task-specific")
    assert (waiting.waits_for, waiting.next) == (("evaluations/main",), "unic-pipe evaluate")
    assert "has no logistic probe that was fitted on benchmark task" in waiting.reason
    assert ranks(work, 1) == [2]
    assert "has no logistic probe that was fitted on benchmark task" in ranks.everything()
    work.evaluate()
    refit_where_damaged(work)
    assert ranks(work, 1) == [0], ranks.everything()
    return work


def test_every_recipe_is_trained_from_one_cache_and_predicts_its_teachers(alone: Any) -> None:
    inventory = alone.inventory()
    for name, student in inventory.config.students.items():
        finished = finished_student(name, alone.student(name))
        assert finished is not None
        found = {column.split("/")[2] for row in metrics_of(alone, name) for column in row if column.count("/") == 2}
        loss = finished.manifest.definition.config.loss
        kinds = {kind for t in ("lite0", "lite1") for weights in loss.terms_of(t).values() for kind in weights}
        assert found == kinds | {"spread"}
        assert kinds <= KINDS.keys()
        encoder = load_encoder(str(finished.folder / "export"))
        for token in student.loss.trained:
            teacher = finished.manifest.definition.teachers[-1].name
            assert adapted(finished, encoder, teacher, (token,)).definition.model_dump()[f"{token}_dim"] > 0


@pytest.mark.slow
def test_parts_of_a_batch_on_two_processes_give_the_same(ranks: Any, alone: Any, extracted: Any) -> None:
    """Stopped and gone on with in between, by one process alone."""
    configure(extracted, alone)
    assert ranks(extracted, 2, *PARTS, signals=[(1, 2, "SIGTERM")]) == [0, 0], ranks.everything()
    assert ranks(extracted, 1) == [0], ranks.everything()
    for name in extracted.inventory().config.students:
        assert_same_student(extracted, alone, name, TOLERANCE)


@pytest.mark.slow
def test_four_processes_give_the_same(ranks: Any, alone: Any, extracted: Any) -> None:
    configure(extracted, alone)
    assert ranks(extracted, 4) == [0] * 4, ranks.everything()
    for name in extracted.inventory().config.students:
        assert_same_student(extracted, alone, name, TOLERANCE)


def test_gone_on_with_after_a_stop_is_bit_for_bit_the_same(ranks: Any, alone: Any, extracted: Any) -> None:
    configure(extracted, alone)
    assert ranks(extracted, 1, signals=[(0, 2, "SIGTERM")]) == [0], ranks.everything()
    assert ranks(extracted, 1) == [0], ranks.everything()
    for name in extracted.inventory().config.students:
        for file in ("export/model.safetensors", "export/adaptors.safetensors", "manifest.json"):
            assert (extracted.student(name) / file).read_bytes() == (alone.student(name) / file).read_bytes(), name


def test_eupe_is_a_chain_of_three_students(raw: Any) -> None:
    """What `init --preset eupe` writes, made small: heads of the second phase go on in the third."""
    yaml, file = YAML(typ="safe"), raw.folder / "unic-pipe.yaml"
    body = yaml.load(file.read_text())
    teachers, students = PRESETS["eupe"]()
    tiny = body["students"]["tiny"]
    small = {key: tiny[key] for key in ("architecture", "model_args", "threads", "streams", "window_blocks")}
    sizes = {"eupe-proxy": 32, "eupe": 32, "eupe-384": 48}
    chain = {}
    for name, student in students.items():
        given = student.model_dump(mode="json", exclude_unset=True)
        own = {
            "image_size": sizes[name],
            "optimizer": OPTIMIZER,
            "dtype": "float32",
            "ladder": {"kind": "mlp", "hidden": 16},
        }
        chain[name] = {**given, **small, **own}
    chain["eupe-proxy"]["teachers"] = ["lite0", "lite1"]
    proxies = {n: t.model_dump(mode="json", exclude_unset=True) for n, t in teachers.items() if n.startswith("proxy")}
    proxies["proxy-384"]["image_size"] = 64
    body |= {"students": chain, "teachers": {**body["teachers"], **proxies}, "evaluate": {}}
    body["views"]["count"] = 1
    yaml.dump(body, file)
    raw.index()
    said: list[str] = []
    for name in chain:
        raw.extract(teachers=list(chain[name]["teachers"]))
        raw.said.clear()
        raw.distill(student=name)
        said = list(raw.said)
    assert any("eupe-384: starts from student eupe" in text for text in said)
    assert not any("afresh" in text for text in said)
    old, new = (finished_student(name, raw.student(name)) for name in ("eupe", "eupe-384"))
    assert old is not None
    assert new is not None
    assert [t.grid for t in new.manifest.definition.teachers] == [(8, 8)]
