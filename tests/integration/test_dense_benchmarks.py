"""Segmentation and depth end to end: generated scenes in ADE20K's and NYUd's layouts, real features through the cache."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

COLOURS = np.array([[20, 20, 20], [230, 40, 40], [40, 200, 60], [60, 80, 240]], np.uint8)
"""Background (`other`), and three classes."""
CONFIG = """\
samples:
  block_rows: 16
  datasets:
    scenes: {source: ade/images/training}
    scenes-test: {source: ade/images/validation}
    rooms: {source: nyud/train/images}
    rooms-test: {source: nyud/test/images}
teachers:
  eye:
    encoder: timm:vit_tiny_patch16_224
    weights: "random:0"
    image_size: 32
    model_args: {patch_size: 4, depth: 1, embed_dim: 96}
compute: {batch: 8}
evaluate:
  dense:
    shapes:
      kind: segmentation
      train: scenes
      test: scenes-test
      train_labels: ade/annotations/training
      test_labels: ade/annotations/validation
      classes: 3
      first_class: 1
      pixels: 32
      steps: 150
      batch: 8
      lr: 0.03
      memory: 2000
    rooms:
      kind: depth
      train: rooms
      test: rooms-test
      train_labels: nyud/train/depth
      test_labels: nyud/test/depth
      pixels: 32
      steps: 150
      batch: 8
      lr: 0.03
"""


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def write_scenes(folder: Path, split: str, count: int, seed: int) -> None:
    """Coloured rectangles; the label of the background is 0."""
    random = np.random.default_rng(seed)
    for i in range(count):
        labels = np.zeros((48, 64), np.uint8)
        for c in random.permutation([1, 2, 3]):
            top, left = random.integers(0, 30), random.integers(0, 40)
            labels[top : top + 24, left : left + 28] = c
        noise = random.integers(-15, 15, (48, 64, 3))
        image = (COLOURS[labels].astype(int) + noise).clip(0, 255).astype(np.uint8)
        save(folder / f"ade/images/{split}/ADE_{i:04d}.png", image)
        save(folder / f"ade/annotations/{split}/ADE_{i:04d}.png", labels)


def write_rooms(folder: Path, split: str, count: int, seed: int) -> None:
    """Ramps whose brightness is their depth; the left edge has none."""
    random = np.random.default_rng(seed)
    for i in range(count):
        metres = random.uniform(1, 4) + np.linspace(0, 5, 48)[:, None] + np.zeros((1, 64))
        image = np.repeat((metres * 25).astype(np.uint8)[..., None], 3, 2)
        depth = (metres * 1000).astype(np.uint16)
        depth[:, :12] = 0
        save(folder / f"nyud/{split}/images/{i:04d}.png", image)
        save(folder / f"nyud/{split}/depth/{i:04d}.png", depth)


@pytest.fixture(scope="module")
def evaluated(tools: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any]]:
    folder = tmp_path_factory.mktemp("dense") / "work"
    for split, count, seed in (("training", 40, 0), ("validation", 20, 1)):
        write_scenes(folder, split, count, seed)
    for split, count, seed in (("train", 40, 2), ("test", 20, 3)):
        write_rooms(folder, split, count, seed)
    (folder / "unic-pipe.yaml").write_text(CONFIG)
    work = tools.work(folder)
    work.index()
    return work, work.evaluate()


def copied(evaluated: tuple[Any, list[Any]], tmp_path: Path) -> Any:
    work = evaluated[0]
    shutil.copytree(work.folder, tmp_path / "work", symlinks=True)
    return type(work)(tmp_path / "work")


def test_the_answers_that_scenes_have_are_found(evaluated: tuple[Any, list[Any]]) -> None:
    """A random vision transformer's patches still show colours: enough for a linear head, and for retrieval."""
    work, records = evaluated
    found = {r.definition.probe: r for r in records}
    assert [(r.encoder, r.role, r.status) for r in records] == [("eye", "teacher", "done")] * 3
    assert found["segmentation"].metrics["miou"] > 0.75
    assert found["in-context"].metrics["miou"] > 0.75
    assert found["depth"].metrics["rmse"] < 0.6  # a constant guess is off by 1.7 m
    assert 0 < found["in-context"].chosen["memory_patches"] <= 2000
    assert work.artefact("evaluations/main").state == "fresh"
    assert work.artefact("samples/rooms").stage == "index"


def test_rows_of_the_table_have_the_schema_of_all_others(evaluated: tuple[Any, list[Any]]) -> None:
    import pyarrow.parquet as pq

    from unic_pipe.schemas.evaluations import RESULT_COLUMNS

    folder = (evaluated[0].folder / "evaluations" / "main").resolve()
    table = pq.read_table(folder / "results.parquet")
    assert table.column_names == list(RESULT_COLUMNS)
    rows = {(r["probe"], r["metric"]): r for r in table.to_pylist()}
    assert set(rows) == {
        ("segmentation", "miou"),
        ("segmentation", "pixel_accuracy"),
        ("in-context", "miou"),
        ("in-context", "pixel_accuracy"),
        ("depth", "rmse"),
    }
    assert rows["depth", "rmse"]["protocol"] == "depth-linear/1"
    assert all(len(r["encoder_digest"]) == len(r["dataset_digest"]) == 64 for r in rows.values())


def test_only_what_changed_labels_concern_is_computed_again(evaluated: tuple[Any, list[Any]], tmp_path: Path) -> None:
    work = copied(evaluated, tmp_path)
    times = work.times("evaluations")
    assert [r.digest for r in work.evaluate()] == [r.digest for r in evaluated[1]]
    assert work.times("evaluations") == times
    path = work.folder / "ade/annotations/validation/ADE_0000.png"
    save(path, np.full((48, 64), 2, np.uint8))
    for file in (work.folder / "ade/annotations/training").iterdir():  # no training map shows the last class any more
        labels = np.array(Image.open(file))
        save(file, np.where(labels == 3, 0, labels).astype(np.uint8))
    assert work.artefact("evaluations/main").done == 1
    again = {r.definition.probe: r for r in work.evaluate()}
    before = {r.definition.probe: r for r in evaluated[1]}
    assert again["depth"] == before["depth"]
    assert again["segmentation"].metrics["miou"] < before["segmentation"].metrics["miou"]
    for probe in ("segmentation", "in-context"):
        said = r"[\d.]+ % of the test pixels belong to 1 class that the training label maps never show \(3\): counted as wrong."
        assert re.fullmatch(said, again[probe].message)
        assert before[probe].message == ""


def test_missing_label_maps_are_said_before_anything_is_extracted(
    evaluated: tuple[Any, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from unic_pipe.cli.errors import guarded
    from unic_pipe.cli.main import app

    work = copied(evaluated, tmp_path)
    (work.folder / "ade/annotations/validation/ADE_0003.png").unlink()
    one = "ade/annotations/validation: 1 of 20 label maps are not there (first: ADE_0003.png)."
    assert one in work.artefact("evaluations/main").reason
    assert [r.definition.probe for r in work.evaluate()] == ["depth"]
    shutil.rmtree(work.folder / "ade/annotations/validation")
    shutil.rmtree(work.folder / "samples")
    none = "ade/annotations/validation: no folder of label maps"
    assert none in work.artefact("evaluations/main").reason
    monkeypatch.chdir(work.folder)
    work.index()
    for command in ("extract", "plan"):
        capsys.readouterr()
        teach = ["--set", "samples.datasets.train.source=nyud/test/images"]
        assert guarded(lambda: app(args=[command, *teach], standalone_mode=False), False) in (0, 1)  # noqa: B023
        assert none.replace(" ", "") in "".join("".join(capsys.readouterr()).split())  # broken where lines end


def test_a_stop_leaves_no_result_of_what_was_not_finished(evaluated: tuple[Any, list[Any]], tmp_path: Path) -> None:
    from unic_pipe.pipeline.process.stopping import Stop
    from unic_pipe.pipeline.workspace.evaluation_plans import evaluation_plans
    from unic_pipe.pipeline.workspace.results import RESULTS
    from unic_pipe.stages.evaluate.outcome import Setting, code_of
    from unic_pipe.stages.evaluate.tasks import Kept, loader_of

    work, stop = copied(evaluated, tmp_path), Stop()
    stop.request()
    inventory = work.inventory("evaluate.dense.shapes.steps=1000000", "evaluate.dense.rooms.steps=1000000")
    setting = Setting(inventory.config.evaluate, "cpu", tmp_path / "runs", stop)
    found = {}
    for plan in evaluation_plans(inventory).plans:
        loaded = loader_of(inventory, plan, Kept())(setting)
        found[plan.definition.probe] = code_of(plan.definition.probe)(*loaded)
    assert found["segmentation"] is found["depth"] is None
    assert len(list((work.folder / "evaluations").glob(f"main-*/{RESULTS}/*.json"))) == 3


def test_a_name_of_the_registry_promises_its_number_of_images(evaluated: tuple[Any, list[Any]], tmp_path: Path) -> None:
    work = copied(evaluated, tmp_path)
    path = work.folder / "unic-pipe.yaml"
    path.write_text(path.read_text().replace("    shapes:", "    ade20k:"))
    assert "ade20k has 20,210 images where dataset scenes has 40" in work.artefact("evaluations/main").reason


def test_nyud_is_evaluated_from_its_matlab_files(
    tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A miniature of the real files; what `--unpack` prints is the whole configuration of the benchmark."""
    h5py = pytest.importorskip("h5py")
    from scipy.io import savemat

    from unic_pipe.cli.errors import guarded
    from unic_pipe.cli.main import app
    from unic_pipe.schemas.benchmarks import cards

    folder, random = tmp_path / "work", np.random.default_rng(0)
    (folder / "benchmarks/nyud").mkdir(parents=True)
    with h5py.File(folder / "benchmarks/nyud/nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = random.integers(0, 256, (6, 3, 64, 48), dtype=np.uint8)
        file["depths"] = random.uniform(0.7, 10, (6, 64, 48)).astype(np.float32)
    splits = {"trainNdxs": np.array([[1], [3], [5], [6]]), "testNdxs": np.array([[2], [4]])}
    savemat(folder / "benchmarks/nyud/splits.mat", splits)
    monkeypatch.setitem(cards(), "nyud", cards()["nyud"].model_copy(update={"train": 4, "test": 2}))
    monkeypatch.chdir(folder)
    assert guarded(lambda: app(args=["benchmarks", "nyud", "--unpack"], standalone_mode=False), False) == 0
    teachers = CONFIG[CONFIG.index("teachers:") : CONFIG.index("evaluate:")]
    (folder / "unic-pipe.yaml").write_text(capsys.readouterr().out + teachers)
    work = tools.work(folder)
    work.index()
    (record,) = work.evaluate("evaluate.dense.nyud.steps=2", "evaluate.dense.nyud.pixels=32")
    assert (record.benchmark, record.definition.probe, record.status) == ("nyud", "depth", "done")
    assert record.metrics["rmse"] > 0
    assert record.chosen["test_samples"] == 2


def test_the_report_shows_miou_and_metres(evaluated: tuple[Any, list[Any]], tmp_path: Path) -> None:
    from unic_pipe.stages.report.stage import records_in_force, report

    work = copied(evaluated, tmp_path)
    inventory = work.inventory()
    page, _ = report(inventory, records_in_force(inventory))
    text = (page.parent / "report.md").read_text()
    assert "mIoU" in text
    assert "RMSE" in text
    assert "segmentation" in page.read_text()

    # Images, and below them the encoder's patches: one pixel each, as PNGs in the page.
    pictures = [Image.open(io.BytesIO(base64.b64decode(p))) for p in re.findall('png;base64,([^"]+)', page.read_text())]
    assert [p.size for p in pictures] == [(96, 96)] * 6 + [(8, 8)] * 6
    seen = np.asarray(pictures[6]).astype(float)
    assert seen.std() > 20
    # What was drawn is kept: the same page, without reading a token.
    again, kept = page.read_bytes(), list((work.folder / "runs" / "pictures").iterdir())
    for shard in (work.features("scenes-test-eye-center") / "view-000").rglob("*"):
        shard.unlink() if shard.is_file() else None
    report(work.inventory(), records_in_force(inventory))
    assert page.read_bytes() == again
    kept[0].unlink()
    report(work.inventory(), records_in_force(inventory))
    assert "base64" not in page.read_text()  # damaged features are no reason to have no report
