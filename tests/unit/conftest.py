"""Fixtures of several test files: real images, real tars, and a working folder made by hand."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from distill_world import BAD_ROW, TEACHERS, VIEWS, World, make_cache, make_dataset
from PIL import Image

from unic_pipe.pipeline.cache.layout import record_key, statistics_key
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.samples import dataset_state, index_dataset
from unic_pipe.pipeline.samples.dataset import find_dataset
from unic_pipe.pipeline.samples.sources import data_roots
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.storage.pointers import point
from unic_pipe.pipeline.workspace.configuration import load_workspace
from unic_pipe.pipeline.workspace.evaluation_plans import evaluation_plans
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.results import result_key
from unic_pipe.pipeline.workspace.status import evaluation_path, extraction_needs, make_plan
from unic_pipe.pipeline.workspace.students import student_folder
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.benchmarks import cards
from unic_pipe.schemas.config import DatasetConfig, SamplesConfig
from unic_pipe.schemas.evaluations import ResultRecord
from unic_pipe.schemas.features import (
    FeatureManifest,
    FileEntry,
    UnitRecord,
)
from unic_pipe.schemas.recipes import CENTER, GENTLE
from unic_pipe.schemas.students import CheckpointEntry, ExportManifest, StudentManifest

CONFIG = """\
samples:
  datasets:
    test: {source: "data/test-*.tar"}
    train: {source: "data/train-*.tar"}
    unused: {source: "data/unused-*.tar"}
  block_rows: 4
views: {recipe: gentle, count: 2}
teachers:
  dino: {encoder: timm:vit_tiny_patch16_224, model_args: {depth: 1}, weights: "random:0", image_size: 32}
  ibot: {encoder: timm:vit_tiny_patch16_224, model_args: {depth: 1}, weights: "random:1", image_size: 32}
students:
  main: {architecture: vit_tiny_patch16_224, model_args: {depth: 1}, image_size: 32, streams: 1, optimizer: {batch: 2}}
evaluate:
  benchmarks: {bench: {train: train, test: test}}
  probes: [knn]
  baseline: false
"""
HEX = "ab" * 32


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """An encoded image whose pixels depend on a number."""

    def make(number: int, kind: str = "PNG", size: int = 8) -> bytes:
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def write_tar() -> Callable[..., Path]:
    """Writes (name, bytes) members with `tarfile`."""

    def write(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=form) as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.fixture
def shards(tmp_path: Path, picture: Callable[..., bytes], write_tar: Callable[..., Path]) -> Callable[..., Path]:
    """Writes `data/<name>-000N.tar` with `rows` labelled samples each, under `tmp_path`; keys repeat across tars."""

    def write(name: str, numbers: Iterable[int], rows: int = 6, classes: int = 3) -> Path:
        for n in numbers:
            members = []
            for i in range(rows):
                members.append((f"{i:04d}.png", picture(1000 * n + i)))
                members.append((f"{i:04d}.cls", str((i * 7 + n) % classes).encode()))
            write_tar(tmp_path / "data" / f"{name}-{n:04d}.tar", members)
        return tmp_path

    return write


class HandMade:
    """A working folder whose artefacts are made by hand: a real index of real tars, and documents as stages leave them.

    12 training rows (3 blocks of 4), 6 test rows (2 blocks), two tiny random teachers, one student, one benchmark.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def look(self, *overrides: str, rows: str | None = None) -> Inventory:
        return Inventory(load_workspace(self.folder, overrides), rows)

    def plan(self, *overrides: str, rows: str | None = None) -> dict:
        return {a.name: a for a in make_plan(self.look(*overrides, rows=rows)).artefacts}

    def states(self, *overrides: str) -> dict:
        return {name: (a.state, a.done, a.total) for name, a in self.plan(*overrides).items()}

    def index(self, *names: str) -> None:
        config = self.look().config.samples
        for name in names or ("train", "test"):
            index_dataset(self.folder, name, config.datasets[name], config)

    def extract(self, *teachers: str, blocks: Iterable[int] | None = None) -> None:
        """Records of units; there are no shards."""
        inventory = self.look()
        for need in extraction_needs(inventory, teachers or None):
            dataset = inventory.dataset(need.dataset).dataset
            store = LocalStore(need.folder(self.folder))
            FeatureFolder(store).create(
                FeatureManifest(
                    dataset=need.dataset, encoder=need.encoder, definition=need.definition, digest=need.digest
                )
            )
            point(self.folder / "features", need.pointer, store.root.name)
            units = [(v, t, b) for v, t in need.planes() for b in (range(dataset.blocks) if blocks is None else blocks)]
            for view, token, block in units:
                record = UnitRecord(
                    definition=need.digest, view=view, token=token, block=block, rows=dataset.block_digest(block),
                    valid="f0", count=dataset.block_range(block)[1], batch=64,
                    files=(FileEntry(path=statistics_key(view, token, block), size=1, xxh3="ab" * 16),),
                )  # fmt: skip
                store.create(record_key(view, token, block), record.to_bytes())

    def begin_student(self, *overrides: str, step: int | None = None) -> LocalStore:
        """A training of 30 steps that was begun, with a checkpoint at `step`."""
        definition = self.look(*overrides).student_definition("main")
        store = LocalStore(student_folder(self.folder, "main", definition))
        manifest = StudentManifest(
            name="main", definition=definition, digest=digest_of(definition), statistics={}, rows=12, rows_digest=HEX,
            steps=30,
        )  # fmt: skip
        store.put("manifest.json", manifest.to_bytes())
        if step is not None:
            store.put("checkpoints/c.pt", b"-")
            entry = CheckpointEntry(file="checkpoints/c.pt", step=step, size=1, digest=HEX, student=manifest.digest)
            store.put("latest.json", entry.to_bytes())
        return store

    def finish_student(self) -> LocalStore:
        """A finished student with a real export."""
        import timm

        from unic_pipe.pipeline.encoders import export_student

        store = self.begin_student(step=30)
        student = self.look().config.students["main"]
        model = timm.create_model(student.architecture, num_classes=0, img_size=32, depth=1)
        digests = export_student(
            store, model, architecture=student.architecture, model_args={"depth": 1, "img_size": 32}, image_size=32,
            mean=student.mean, std=student.std, prefix="export/",
        )  # fmt: skip
        digest = StudentManifest.from_bytes(store.get("manifest.json"), "m").digest
        export = ExportManifest(student=digest, step=30, weights=digests.weights, config=digests.config)
        store.put("export/manifest.json", export.to_bytes())
        point(self.folder / "students", "main", store.root.name)
        return store

    def evaluate(self, *encoders: str, status: str = "done") -> None:
        """Results of these encoders."""
        inventory = self.look()
        store = LocalStore(evaluation_path(inventory))
        for plan in [plan for plan in evaluation_plans(inventory).plans if plan.encoder.name in encoders]:
            record = ResultRecord(
                benchmark=plan.benchmark, encoder=plan.encoder.name, role=plan.role, definition=plan.definition,
                digest=digest_of(plan.definition), status=status, metrics={}, chosen={},
            )  # fmt: skip
            store.put(result_key(plan.benchmark, plan.encoder.name, plan.definition), record.to_bytes())


@pytest.fixture(scope="session")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/` of a working folder in which the teachers were resolved once."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "unic-pipe.yaml").write_text(CONFIG)
    inventory = Inventory(load_workspace(folder))
    for name in ("dino", "ibot"):
        inventory.teacher(name)
    return folder / "runs"


@pytest.fixture
def here(tmp_path: Path, answers: Path, shards: Callable[..., Path]) -> HandMade:
    """A working folder made by hand, with nothing indexed yet."""
    shards("train", range(2))
    shards("test", range(1))
    shutil.copytree(answers, tmp_path / "runs")
    (tmp_path / "unic-pipe.yaml").write_text(CONFIG)
    return HandMade(tmp_path)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Samples and features of the two made-up teachers of `distill_world`."""
    folder = tmp_path_factory.mktemp("template")
    train, val = make_dataset(folder, "train", 37, 0), make_dataset(folder, "val", 11, 1)
    for teacher in TEACHERS:
        make_cache(folder, train, teacher, GENTLE, VIEWS, BAD_ROW if teacher == "beta" else None)
        make_cache(folder, val, teacher, CENTER, 1, None)
    return World(folder)


@pytest.fixture
def world(template: World, tmp_path: Path) -> World:
    """A copy to train in."""
    shutil.copytree(template.folder, tmp_path / "work", symlinks=True)
    return World(tmp_path / "work")


@pytest.fixture(scope="session")
def whole(template: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A student trained without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "work"
    shutil.copytree(template.folder, folder, symlinks=True)
    world = World(folder)
    assert world.distill(validation=True)
    return world


@pytest.fixture
def put(tmp_path, picture):
    """Writes images; each one's pixels depend on its path."""

    def write(*paths):
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(picture(sum(path.encode()) * 7 + len(path), "JPEG"))

    return write


@pytest.fixture
def text(tmp_path):
    """Writes a text file."""

    def write(path, content):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)

    return write


@pytest.fixture
def counts(monkeypatch):
    """Gives a benchmark of the registry other numbers of images: those of a miniature."""

    def change(name, train=None, test=0):
        monkeypatch.setitem(cards(), name, cards()[name].model_copy(update={"train": train, "test": test}))

    return change


@pytest.fixture
def read(tmp_path):
    """Indexes a split and gives {key: class name}, checking that each image is the file that the key names."""

    def index(reader, source=".", name=None):
        name = name or reader.replace("/", "-")
        config = DatasetConfig(source=source, reader=reader)
        samples = SamplesConfig(datasets={name: config}, block_rows=4)
        dataset = index_dataset(tmp_path, name, config, samples)
        assert dataset.manifest.labelled
        assert dataset.manifest.layout == "listed"
        found = {}
        for row, label in zip(dataset.rows(), dataset.labels(), strict=True):
            file = dataset.roots[0] / dataset.shard(int(row))
            assert dataset.read(int(row)) == file.read_bytes()
            assert dataset.shard(int(row)).rpartition(".")[0] == dataset.key(int(row))
            found[dataset.key(int(row))] = dataset.manifest.classes[label]
        roots = data_roots(tmp_path, config, samples)
        assert dataset_state(find_dataset(LocalStore(tmp_path / "samples"), name), roots, config, 4) == ("fresh", "")
        return found

    return index
