"""Distilling from real samples and a real cache: targets, resume, damage, and what is refused.

Shapes: N rows, P patch tokens, D dimensions, S image side in pixels.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from builders import encoder_definition, feature_definition, feature_manifest
from PIL import Image
from torch.nn import functional as F

from unic_pipe.pipeline.cache.commit import commit_unit, prepare_view
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.cache.statistics import merge_statistics, standardization
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.samples import Dataset, index_dataset, open_dataset
from unic_pipe.pipeline.samples.images import decode_image
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.views.probes import write_probes
from unic_pipe.pipeline.views.render import render_view
from unic_pipe.pipeline.workspace.students import student_definition
from unic_pipe.schemas.config import Config, DatasetConfig, DistillConfig, SamplesConfig, StudentConfig
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.recipes import CENTER, GENTLE, Recipe
from unic_pipe.schemas.students import ExportManifest, StudentDefinition, StudentManifest
from unic_pipe.stages.distill.data.images import ViewImages
from unic_pipe.stages.distill.data.rows import usable_rows
from unic_pipe.stages.distill.data.targets import PLAIN, BlockWindow, GridResampler, TargetReader, standard_of
from unic_pipe.stages.distill.metrics import TIMINGS, read_metrics
from unic_pipe.stages.distill.parallel.world import Context
from unic_pipe.stages.distill.run import Source, StudentJob, distill

BLOCK = 8
VIEWS = 2
BAD_ROW = 13
"""Not usable for teacher beta in view 1."""
TEACHERS = {
    "alpha": {"grid": (3, 3), "cls_dim": 6, "patch_dim": 5, "codec": "float16"},
    "beta": {"grid": (2, 2), "cls_dim": 4, "patch_dim": 4, "codec": "int8"},
}
STUDENT = StudentConfig.model_validate_json(
    """{"architecture": "vit_tiny_patch16_224", "image_size": 16, "threads": 1, "streams": 2, "window_blocks": 2,
    "model_args": {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}, "drop_path": 0.2,
    "ladder": {"hidden": 8, "last_hidden": 12},
    "optimizer": {"epochs": 3, "batch": 8, "lr": 1.0, "warmup_epochs": 0}}"""
)


def make_dataset(folder: Path, name: str, count: int, seed: int) -> Dataset:
    images = folder / "images" / name
    images.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for i in range(count):
        colour = random.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(colour).resize((12, 12)).save(images / f"{i:03d}.png")
    config = DatasetConfig(source=f"images/{name}")
    return index_dataset(folder, name, config, SamplesConfig(datasets={name: config}, block_rows=BLOCK))


def make_cache(
    folder: Path, dataset: Dataset, teacher: str, recipe: Recipe, views: int, bad: int | None
) -> FeatureCache:
    """Features that are a fixed random projection of the rendered view, so that there is something to learn."""
    t = TEACHERS[teacher]
    encoder = encoder_definition(t["cls_dim"], t["patch_dim"], t["grid"], image_size=12)
    definition = feature_definition(encoder, BLOCK, t["codec"], dataset=dataset.digest, recipe=recipe, view_seed=5)
    features = FeatureFolder(LocalStore(folder / "features" / f"{dataset.manifest.name}-{teacher}"))
    features.create(feature_manifest(definition, dataset.manifest.name, teacher))
    random = np.random.default_rng(len(teacher))
    cells = t["grid"][0] * t["grid"][1]
    shapes = {"cls": (t["cls_dim"],), "patch": (cells, t["patch_dim"])}
    maps = {token: random.normal(size=(432, math.prod(shape))) / 2000 for token, shape in shapes.items()}
    for view in range(views):
        first = [(dataset.key(r), decode_image(dataset.read(r))) for r in range(2)]
        write_probes(features.store, recipe, 5, view, 12, first)
        for token, shape in shapes.items():
            prepare_view(features, view, token, dataset.manifest.end_row)
            for block in range(dataset.blocks):
                commit_block(features, dataset, view, token, block, shape, maps[token], bad)
    return FeatureCache.open(features.store.root)


def commit_block(
    features: FeatureFolder,
    dataset: Dataset,
    view: int,
    token: Any,
    block: int,
    shape: Any,
    weights: Any,
    bad: int | None,
) -> None:
    first, count = dataset.block_range(block)
    recipe = features.required_manifest().definition.recipe
    x = [
        render_view(decode_image(dataset.read(r)), recipe, 5, dataset.key(r), view, 12).numpy().reshape(-1)
        for r in range(first, first + count)
    ]
    values = (np.stack(x).astype(np.float64) @ weights + 3).reshape(count, *shape).astype(np.float32)
    valid = np.ones(count, dtype=bool)
    if bad is not None and view == 1 and first <= bad < first + count:
        valid[bad - first] = False
        values[bad - first] = np.nan
    commit_unit(features, view, token, block, values, valid, (), rows_digest=dataset.block_digest(block), batch=8)


@dataclass
class World:
    """A working folder with samples and features, copied for every test that writes."""

    folder: Path

    def source(self, teachers: Iterable[str] = TEACHERS, name: str = "train") -> Source:
        pointer = self.folder / "samples" / name
        return Source(
            open_dataset(pointer.resolve(), [self.folder]),
            {t: FeatureCache.open(self.folder / "features" / f"{name}-{t}") for t in teachers},
        )

    def definition(self, student: StudentConfig = STUDENT) -> StudentDefinition:
        source = self.source()
        config = Config.model_validate(
            {
                "samples": {"datasets": {"train": DatasetConfig(source="x")}},
                "teachers": {t: {} for t in TEACHERS},
                "students": {"main": student},
            }
        )
        features = {t: cache.definition for t, cache in source.caches.items()}
        return student_definition(config, "main", source.dataset.manifest, features, source.dataset.blocks, VIEWS)

    def distill(
        self, student: StudentConfig = STUDENT, stop_after: int | None = None, validation: bool = False, **settings: Any
    ) -> bool:
        """Train; whether the student is finished then. Raises why it failed."""
        self.reporter = StoppingReporter(stop_after)
        definition = self.definition(student)
        names = [teacher.name for teacher in definition.teachers]
        job = StudentJob("main", definition, self.source(names), self.source(names, "val") if validation else None)
        failed = distill(
            [job],
            Context(self.reporter, self.reporter.stop),
            workdir=self.folder,
            settings=DistillConfig(**({"log_every": 2} | settings)),
            device="cpu",
        )
        for error in failed.values():
            raise error
        return any(self.folder.glob("students/*/export/manifest.json"))


class StoppingReporter:
    """Keeps what is said, and asks for the end after so many steps, as a signal would."""

    def __init__(self, after: int | None) -> None:
        self.after, self.stop, self.said = after, Stop(), list[str]()

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def task(self, title: str, total: int, unit: str = "img", done: int = 0) -> Any:
        yield self

    def advance(self, amount: int = 1) -> None:
        if self.after is not None:
            self.after -= 1
            if self.after <= 0:
                self.stop.request()

    def note(self, text: str) -> None:
        pass


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("template")
    train, val = make_dataset(folder, "train", 37, 0), make_dataset(folder, "val", 11, 1)
    for teacher in TEACHERS:
        make_cache(folder, train, teacher, GENTLE, VIEWS, BAD_ROW if teacher == "beta" else None)
        make_cache(folder, val, teacher, CENTER, 1, None)
    return World(folder)


@pytest.fixture
def world(template: World, tmp_path: Path) -> World:
    shutil.copytree(template.folder, tmp_path / "work", symlinks=True)
    return World(tmp_path / "work")


@pytest.fixture(scope="module")
def whole(template: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A student trained without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "work"
    shutil.copytree(template.folder, folder, symlinks=True)
    world = World(folder)
    assert world.distill(validation=True)
    return world


def student_folder(world: World) -> Path:
    return (world.folder / "students" / "main").resolve()


def content(folder: Path) -> dict[str, bytes]:
    """Everything that must be equal after any history: weights, last checkpoint, documents."""
    files = [*folder.glob("export/*"), *folder.glob("statistics/*"), folder / "manifest.json", folder / "latest.json"]
    files.append(sorted(folder.glob("checkpoints/*.pt"))[-1])
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def assert_same_student(one: World, other: World) -> None:
    mine, theirs = (content(student_folder(w)) for w in (one, other))
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []


def test_finished_student(whole: World) -> None:
    folder = student_folder(whole)
    manifest = StudentManifest.from_bytes((folder / "manifest.json").read_bytes(), "manifest")
    export = ExportManifest.from_bytes((folder / "export/manifest.json").read_bytes(), "export")
    assert folder.name == f"main-{manifest.digest[:8]}"
    assert (manifest.rows, manifest.steps, export.step) == (36, 12, 12)
    assert export.student == manifest.digest
    assert list((folder / "tensorboard").iterdir())


def test_metrics(whole: World) -> None:
    rows = read_metrics(LocalStore(student_folder(whole)))
    training, validation = [r for r in rows if "loss" in r], [r for r in rows if "val/loss" in r]
    assert [r["step"] for r in training] == [2, 4, 6, 8, 10, 12]
    assert [r["epoch"] for r in validation] == [1, 2, 3]
    assert training[-1]["loss"] < training[0]["loss"]
    for row in training:
        terms = [row[f"alpha/{k}/{m}"] for k in ("cls", "patch") for m in ("cosine", "smooth_l1")]
        assert row["alpha/loss"] == pytest.approx(sum(terms) / 4, rel=1e-5)
        assert 1 <= row["alpha/kept"] + row["beta/kept"] < 2
        assert 0 <= row["data_wait"] <= 1
    assert [r["val/alpha/kept"] for r in validation] == [1, 1, 1]


def test_a_finished_student_is_left_alone(whole: World) -> None:
    folder = student_folder(whole)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert whole.distill()
    assert whole.reporter.said[-1].endswith("nothing to do.")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.parametrize("seed", range(3))
def test_stopped_at_random_steps_and_resumed(world: World, whole: World, seed: int) -> None:
    random = np.random.default_rng(seed)
    stops = 0
    while not world.distill(stop_after=int(random.integers(1, 6)), validation=True):
        stops += 1
        assert not (world.folder / "students" / "main").exists()
    assert stops >= 2
    assert_same_student(world, whole)
    mine, theirs = (read_metrics(LocalStore(student_folder(w))) for w in (world, whole))
    for row in mine + theirs:
        for name in TIMINGS:
            row.pop(name, None)
    assert mine == theirs


SCRIPT = """
import sys
from pathlib import Path
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.pipeline.samples import open_dataset
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.schemas.config import DistillConfig
from unic_pipe.schemas.students import StudentDefinition
from unic_pipe.stages.distill.parallel.world import Context
from unic_pipe.stages.distill.run import Source, StudentJob, distill
folder = Path(sys.argv[1])
definition = StudentDefinition.model_validate_json((folder / "definition.json").read_bytes())
source = Source(
    open_dataset((folder / "samples/train").resolve(), [folder]),
    {t.name: FeatureCache.open(folder / f"features/train-{t.name}") for t in definition.teachers},
)
settings = DistillConfig(log_every=2, checkpoint_minutes=1e-6)
job = StudentJob("main", definition, source)
distill([job], Context(SilentReporter(), Stop()), workdir=folder, settings=settings, device="cpu")
"""


def test_killed_and_resumed(world: World, whole: World) -> None:
    (world.folder / "definition.json").write_text(world.definition().model_dump_json())
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(world.folder)], cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and not list(world.folder.glob("students/*/checkpoints/*.pt")):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert world.distill(validation=True)
    assert_same_student(world, whole)


@pytest.mark.parametrize("damage", ["flip", "truncate", "older bytes"])
def test_damaged_checkpoint_changes_no_weights(world: World, whole: World, damage: str) -> None:
    for _ in range(2):
        world.distill(stop_after=5, validation=True)
    files = sorted(world.folder.glob("students/*/checkpoints/*.pt"))
    raw = files[-1].read_bytes()
    spoiled = {"flip": raw[:999] + bytes([raw[999] ^ 8]) + raw[1000:], "truncate": raw[:500]}
    files[-1].write_bytes(spoiled.get(damage, files[-2].read_bytes()))
    assert world.distill(validation=True)
    assert any("Skipped" in line for line in world.reporter.said)
    assert_same_student(world, whole)


def test_targets_are_standardized_features(template: World) -> None:
    source = template.source()
    statistics = {t: merge_statistics(c.folder, range(VIEWS), source.dataset.blocks) for t, c in source.caches.items()}
    rows = np.array([30, 2, 9, 36, 1], dtype=np.int64)
    with ThreadPoolExecutor(2) as pool:
        window = BlockWindow(source.caches, pool, 3)
        for view in range(VIEWS):
            standards = {(t, k): standard_of(statistics[t], k) for t in TEACHERS for k in ("cls", "patch")}
            wanted = {pair: {standard.name: standard, "": PLAIN} for pair, standard in standards.items()}
            found = TargetReader(window, wanted, BLOCK).read(rows, view)
            assert found.keys() == wanted.keys()
            for (teacher, token), raw in found.items():
                values = np.stack(
                    [source.caches[teacher].read_block(view, token, r // BLOCK).values[r % BLOCK] for r in rows]
                )
                document = statistics[teacher]
                mean, std = standardization(document.cls if token == "cls" else document.patch)  # type: ignore[arg-type]
                targets = raw.decode(standards[teacher, token].name)
                np.testing.assert_allclose(targets.numpy(), (values - mean) / std, rtol=2e-5, atol=2e-5)
                np.testing.assert_allclose(raw.decode().numpy(), values, rtol=1e-6, atol=1e-6)


def test_targets_of_all_usable_rows_have_mean_0_and_std_1(template: World) -> None:
    source = template.source()
    rows = usable_rows(source.dataset, {"alpha": source.caches["alpha"]}, VIEWS, ("patch",), source.dataset.blocks)
    statistics = merge_statistics(source.caches["alpha"].folder, range(VIEWS), source.dataset.blocks)
    standard = standard_of(statistics, "patch")
    with ThreadPoolExecutor(1) as pool:
        window = BlockWindow({"alpha": source.caches["alpha"]}, pool, 99)
        reader = TargetReader(window, {("alpha", "patch"): {standard.name: standard}}, BLOCK)
        targets = torch.cat([reader.read(rows, v)["alpha", "patch"].decode(standard.name) for v in range(VIEWS)])
    torch.testing.assert_close(targets.mean((0, 1)), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(targets.std((0, 1), correction=0), torch.ones(5), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("source", "target"), [((3, 3), (4, 4)), ((7, 7), (4, 4)), ((2, 5), (4, 3)), ((4, 4), (4, 4))])
def test_grids_are_resampled(source: tuple[int, int], target: tuple[int, int]) -> None:
    x = torch.randn(2, source[0] * source[1], 6)
    found = GridResampler(source, target, torch.device("cpu"))(x)
    as_map = x.transpose(1, 2).unflatten(2, source)
    expected = F.interpolate(as_map, size=target, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    constant = GridResampler(source, target, torch.device("cpu"))(torch.full_like(x, 2.5))
    torch.testing.assert_close(constant, torch.full_like(constant, 2.5))


def test_window_keeps_no_more_than_it_may(template: World) -> None:
    source = template.source()
    with ThreadPoolExecutor(2) as pool:
        window = BlockWindow(source.caches, pool, 2)
        for block in (0, 1, 2, 0, 3):
            got = window.get([("alpha", "cls", 0, block)])[0]
            np.testing.assert_array_equal(got.stored, source.caches["alpha"].read_block_raw(0, "cls", block).stored)
            assert len(window._blocks) <= 2


def test_rows_unusable_for_one_teacher_and_view_are_left_out(template: World) -> None:
    source = template.source()
    arguments = (VIEWS, ("cls", "patch"), source.dataset.blocks)
    assert usable_rows(source.dataset, source.caches, *arguments).tolist() == [r for r in range(37) if r != BAD_ROW]
    alone = {"alpha": source.caches["alpha"]}
    assert len(usable_rows(source.dataset, alone, *arguments)) == 37
    assert len(usable_rows(source.dataset, source.caches, 1, ("cls",), 3)) == 24


@pytest.mark.parametrize("keep", [True, False])
def test_images_are_the_samples_views(template: World, monkeypatch: pytest.MonkeyPatch, keep: bool) -> None:
    if not keep:
        monkeypatch.setattr("unic_pipe.stages.distill.data.images.KEEP_BYTES", 0)
    dataset = template.source().dataset
    images = ViewImages(dataset, GENTLE, 5, (12, 16), VIEWS, dataset.rows())
    with ThreadPoolExecutor(2) as pool:
        for rows in ([3, 30, 4], [30, 5, 3]):
            batch = images.batch(np.array(rows), 1, pool)
            assert list(batch) == [12, 16]
            for size, found in batch.items():
                for image, row in zip(found, rows, strict=True):
                    expected = render_view(decode_image(dataset.read(row)), GENTLE, 5, dataset.key(row), 1, size)
                    assert torch.equal(image, expected)


def test_damaged_features_are_never_trained_on(world: World) -> None:
    shard = next(p for p in (world.folder / "features/train-alpha/view-001/patch/c").rglob("*") if p.is_file())
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(StageError, match=r"alpha, view 1, patch") as error:
        world.distill()
    assert "unic-pipe verify" in str(error.value)


def test_incomplete_features_are_refused(world: World) -> None:
    FeatureFolder(LocalStore(world.folder / "features/train-beta")).void(1, "cls", [2])
    with pytest.raises(StageError, match=r"beta is incomplete.*80 %.*\n.*extract --teacher beta"):
        world.distill()


def test_views_that_render_differently_stop_it(world: World) -> None:
    picture = next((world.folder / "features/train-alpha/probes").glob("*.png"))
    Image.new("RGB", (12, 12)).save(picture)
    with pytest.raises(StageError, match="probe picture"):
        world.distill()


def test_other_usable_rows_than_at_the_start_are_refused(world: World) -> None:
    world.distill(stop_after=2)
    features = FeatureFolder(LocalStore(world.folder / "features/train-alpha"))
    dataset = world.source().dataset
    features.void(1, "cls", [0])
    commit_block(features, dataset, 1, "cls", 0, (6,), np.ones((432, 6)) / 2000, bad=2)
    with pytest.raises(StageError, match="other rows are usable"):
        world.distill()


def test_frozen_statistics_are_kept_and_guarded(world: World, whole: World) -> None:
    world.distill(stop_after=2)
    document = next(world.folder.glob("students/*/statistics/alpha.json"))
    other = next(world.folder.glob("students/*/statistics/beta.json")).read_bytes()
    document.unlink()
    world.distill(stop_after=2)
    assert document.is_file()
    document.write_bytes(other)
    with pytest.raises(StageError, match=r"alpha\.json is not what student main began with"):
        world.distill()


def test_divergence_says_what_to_set_and_keeps_the_last_good_checkpoint(world: World) -> None:
    wild = STUDENT.model_copy(update={"optimizer": STUDENT.optimizer.model_copy(update={"lr": 1e30})})
    with pytest.raises(StageError, match=r"not finite at step .*\n.*clip_norm"):
        world.distill(wild, log_every=1)
    for checkpoint in world.folder.glob("students/*/checkpoints/*.pt"):
        state = torch.load(checkpoint, weights_only=True)["state"]["student"]
        assert all(torch.isfinite(v).all() for v in state.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"tokens": "cls"}},
        {"loss": {"tokens": "patch"}},
        {"loss": {"tokens": "both", "cosine": 0.3, "smooth_l1": 0.9}},
        {"loss": {"cosine": 0.0, "smooth_l1": 1.0}},
        {"loss": {"drop_probability": 0.0}},
        {"loss": {"drop_probability": 1.0}},
        {"loss": {"standardize": "none", "drop_probability": 0.0}},
        {"loss": {"standardize": "ema"}},
        {"teachers": ["alpha"]},
        {"teachers": ["beta"], "loss": {"tokens": "patch"}},
        {"ladder": {"blocks": "last", "hidden": 8, "last_hidden": 12}},
        {"ladder": {"blocks": [0], "hidden": 3, "last_hidden": 5}},
        {"ladder": {"blocks": [0, 1], "hidden": 6, "last_hidden": 5}},
        {"optimizer": {"epochs": 1, "batch": 8, "clip_norm": 0.1, "warmup_epochs": 0}},
        {
            "image_size": 24,
            "model_args": {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "reg_tokens": 2},
        },
        {"dtype": "bfloat16"},
        {"ema": 0.5, "drop_path": 0.0},
    ],
)
def test_switches(world: World, changes: dict[str, Any]) -> None:
    """Two steps with every ingredient changed or taken away."""
    two_steps = {"epochs": 1, "batch": 16, "lr": 0.1, "warmup_epochs": 0}
    student = StudentConfig.model_validate_json(json.dumps(STUDENT.model_dump() | {"optimizer": two_steps} | changes))
    assert world.distill(student, log_every=1)
    loss = student.loss
    for row in read_metrics(LocalStore(student_folder(world))):
        teachers = student.teachers or ("alpha", "beta")
        tokens = ("cls", "patch") if loss.tokens == "both" else (loss.tokens,)
        terms = {f"{t}/{k}/{m}" for t in teachers for k in tokens for m in ("cosine", "smooth_l1")}
        assert {name for name in row if name.count("/") == 2} == terms
        for teacher in teachers:
            weighted = [
                loss.cosine * row[f"{teacher}/{token}/cosine"] + loss.smooth_l1 * row[f"{teacher}/{token}/smooth_l1"]
                for token in tokens
            ]
            assert row[f"{teacher}/loss"] == pytest.approx(sum(weighted) / len(tokens), rel=1e-4)
        kept = sum(row[f"{teacher}/kept"] for teacher in teachers)
        assert kept == {0.0: len(teachers), 1.0: 1}.get(loss.drop_probability, pytest.approx(kept))
        assert math.isfinite(row["loss"])


def test_too_few_rows_for_a_batch(world: World) -> None:
    large = STUDENT.model_copy(update={"optimizer": STUDENT.optimizer.model_copy(update={"batch": 64})})
    with pytest.raises(UserError, match="36 usable rows are fewer than one batch"):
        world.distill(large)


def test_too_little_memory_says_what_to_set(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        available = 100

    monkeypatch.setattr(psutil, "virtual_memory", Full)
    with pytest.raises(StageError, match=r"window_blocks or streams lower"):
        world.distill()
