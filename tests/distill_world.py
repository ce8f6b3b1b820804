"""A small working folder to train in: samples and features of two made-up teachers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from builders import encoder_definition, feature_definition, feature_manifest
from PIL import Image

from unic_pipe.pipeline.cache.commit import commit_unit, prepare_view
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.loggers import Maker
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.samples import Dataset, index_dataset, open_dataset
from unic_pipe.pipeline.samples.images import decode_image
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.views.probes import write_probes
from unic_pipe.pipeline.views.render import render_view
from unic_pipe.pipeline.workspace.students import student_definition
from unic_pipe.schemas.config import Config, DatasetConfig, DistillConfig, SamplesConfig, StudentConfig
from unic_pipe.schemas.recipes import Recipe
from unic_pipe.schemas.students import StudentDefinition
from unic_pipe.stages.distill.data.rows import Source
from unic_pipe.stages.distill.jobs import StudentJob
from unic_pipe.stages.distill.parallel.world import Context
from unic_pipe.stages.distill.run import distill

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
    start: ResolvedEncoder | None = None
    """The weights that the student starts from."""

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
        self,
        student: StudentConfig = STUDENT,
        stop_after: int | None = None,
        validation: bool = False,
        loggers: Mapping[str, Maker] | None = None,
        **settings: Any,
    ) -> bool:
        """Train; whether the student is finished then. Raises why it failed."""
        self.reporter = StoppingReporter(stop_after)
        definition = self.definition(student)
        names = [teacher.name for teacher in definition.teachers]
        validations = (self.source(names, "val"),) if validation else ()
        job = StudentJob("main", definition, (self.source(names),), validations, self.start)
        failed = distill(
            [job],
            Context(self.reporter, self.reporter.stop, loggers=loggers or {}),
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


def student_folder(world: World) -> Path:
    return (world.folder / "students" / "main").resolve()


def content(folder: Path) -> dict[str, bytes]:
    """Everything that must be equal after any history: weights, last checkpoint, documents."""
    statistics = [path for path in folder.glob("statistics/**/*") if path.is_file()]
    files = [*folder.glob("export/*"), *statistics, folder / "manifest.json", folder / "latest.json"]
    files.append(sorted(folder.glob("checkpoints/*.pt"))[-1])
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def assert_same_student(one: World, other: World) -> None:
    mine, theirs = (content(student_folder(w)) for w in (one, other))
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []
