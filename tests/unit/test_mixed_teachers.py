"""Teachers that teach on a part of a mixture: losses, gradients, moments and means against ones computed by hand."""

from __future__ import annotations

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_world import (
    BLOCK,
    STUDENT,
    TEACHERS,
    VIEWS,
    StoppingReporter,
    World,
    make_cache,
    make_dataset,
    student_folder,
)
from pydantic import ValidationError
from torch.nn import functional as F

from unic_pipe.pipeline.samples.mixtures import split
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.views.render import normalize
from unic_pipe.pipeline.workspace.differences import describe
from unic_pipe.pipeline.workspace.students import student_definition
from unic_pipe.schemas.config import Config, DistillConfig, LossConfig, StudentConfig
from unic_pipe.schemas.losses import Term
from unic_pipe.schemas.recipes import GENTLE
from unic_pipe.schemas.students import StudentDefinition, StudentManifest
from unic_pipe.stages.distill.data.batches import Batch, BatchPlan
from unic_pipe.stages.distill.data.images import ViewImages
from unic_pipe.stages.distill.data.mixing import Side, read
from unic_pipe.stages.distill.data.rows import Rows, Source
from unic_pipe.stages.distill.data.target_statistics import sample
from unic_pipe.stages.distill.data.targets import PLAIN, BlockWindow, TargetReader
from unic_pipe.stages.distill.jobs import StudentJob
from unic_pipe.stages.distill.metrics import measures, read_metrics
from unic_pipe.stages.distill.model.distiller import Distiller
from unic_pipe.stages.distill.parallel.world import Context
from unic_pipe.stages.distill.run import distill

TAUGHT = {"more": ("beta",), "train": ("alpha", "beta")}
"""In the order of the mixture: alpha has no features of the first dataset."""
ROWS = np.array([3, 2 + (1 << 40), 17, 9 + (1 << 40), 30 + (1 << 40), 5])
ALPHAS = [1, 3, 4]
"""Places of the rows of `train`."""


@pytest.fixture(scope="module")
def world(template: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("taught") / "work"
    shutil.copytree(template.folder, folder, symlinks=True)
    make_cache(folder, make_dataset(folder, "more", 21, 5), "beta", GENTLE, VIEWS, None)
    return World(folder)


def sources(world: World) -> dict[str, Source]:
    return {name: world.source(teachers, name) for name, teachers in TAUGHT.items()}


def definition(world: World, student: StudentConfig) -> StudentDefinition:
    body = {
        "samples": {"datasets": {name: {"source": "x"} for name in TAUGHT}},
        "teachers": {"alpha": {"datasets": ("train",)}, "beta": {}},
        "students": {"main": student.model_copy(update={"dataset": dict.fromkeys(TAUGHT, 1.0)})},
    }
    parts = [(s.dataset.manifest, {t: c.definition for t, c in s.caches.items()}) for s in sources(world).values()]
    (first, features), (other, theirs) = parts
    mixed = [(other, theirs, 5)]
    return student_definition(Config.model_validate(body), "main", first, features, 3, VIEWS, mixed=mixed)


@pytest.fixture(scope="module")
def batch(world: World) -> Batch:
    """Rows of both datasets, with targets as they are stored."""
    with ThreadPoolExecutor(1) as pool:
        sides = []
        for source in sources(world).values():
            wanted = {(t, k): {"": PLAIN} for t in source.caches for k in ("cls", "patch")}
            window = BlockWindow(source.caches, pool, 9)
            images = ViewImages(source.dataset, GENTLE, 5, (16,), VIEWS, source.dataset.rows())
            sides.append(Side(images, TargetReader(window, wanted, BLOCK)))  # type: ignore[arg-type]
        plan = BatchPlan(ROWS, 0, 0)
        images, targets = read(sides, plan, pool)
    draws = torch.Generator().manual_seed(4)
    return Batch(plan, images, targets, torch.rand(6, 2, generator=draws), torch.rand(6, 4, generator=draws))


def by_hand(
    world: World, model: Distiller, batch: Batch
) -> tuple[torch.Tensor, list[list[int]], dict[str, list[float]]]:
    """The loss, image by image; which teachers (by number) each image keeps; and every teacher's losses."""
    x = normalize(batch.images[16], model.config.mean, model.config.std)
    found = model.ladder(*model.student(x, model.ladder.rungs.blocks, batch.drop_path_BU))
    kept_losses, keeps, each = [], [], {t: list[float]() for t in TEACHERS}
    parts = list(sources(world).values())
    for place, row in enumerate(ROWS.tolist()):
        source, own = parts[row >> 40], row & ((1 << 40) - 1)
        losses: dict[str, torch.Tensor] = {}
        for teacher, cache in source.caches.items():
            terms = []
            for token in ("cls", "patch"):
                stored = cache.read_block(0, token, own // BLOCK).values[own % BLOCK]  # type: ignore[arg-type]
                target = torch.from_numpy(stored).float()
                target = model.common(teacher, (2, 2)).target(target[None])[0] if token == "patch" else target
                p = found[token][teacher][place]  # type: ignore[index]
                cosine = 1 - F.cosine_similarity(p, target, dim=-1)
                terms.append(0.5 * cosine.mean() + 0.5 * F.smooth_l1_loss(p, target))
            losses[teacher] = (terms[0] + terms[1]) / 2
            each[teacher].append(losses[teacher].item())
        hardest = max(losses, key=lambda t: losses[t].item())
        kept = [t for t in losses if t == hardest or batch.drop_teacher_BT[place, [*TEACHERS].index(t)] >= 0.5]
        keeps.append([[*TEACHERS].index(t) for t in kept])
        kept_losses += [losses[t] for t in kept]
    return torch.stack(kept_losses).mean(), keeps, each


def test_loss_gradient_and_means_are_those_of_each_rows_own_teachers(world: World, batch: Batch) -> None:
    student = STUDENT.model_copy(update={"loss": LossConfig(standardize="none")})
    model = Distiller(student, definition(world, student).teachers, torch.device("cpu"))
    other = copy.deepcopy(model)
    expected, keeps, each = by_hand(world, other, batch)
    expected.backward()
    losses, keep_BT, total = model(batch)
    total.backward()
    assert [row.nonzero()[:, 0].tolist() for row in keep_BT] == keeps
    assert any(len(row) == 1 for row in keeps)
    torch.testing.assert_close(total, expected)
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)
    found = measures(losses, keep_BT, total)
    for i, teacher in enumerate(TEACHERS):
        assert float(found[f"{teacher}/loss"]) == pytest.approx(np.mean(each[teacher]), rel=1e-4)
        assert float(found[f"{teacher}/kept"]) == pytest.approx(sum(i in row for row in keeps) / len(each[teacher]))
        assert losses.images(f"{teacher}/loss") == len(each[teacher])
    assert losses.loss_BT[[0, 2, 5], 0].tolist() == [0, 0, 0]


def test_running_moments_are_those_of_the_rows_that_a_teacher_has(world: World, batch: Batch) -> None:
    student = STUDENT.model_copy(update={"loss": LossConfig(standardize="ema")})
    model = Distiller(student, definition(world, student).teachers, torch.device("cpu"))
    model(batch)
    assert model.running is not None
    model.running.update(1.0)
    cache = sources(world)["train"].caches["alpha"]
    own = ROWS[ALPHAS] - (1 << 40)
    values = np.stack([cache.read_block(0, "cls", r // BLOCK).values[r % BLOCK] for r in own.tolist()])
    state = model.running.state()["alpha"]["cls"]
    np.testing.assert_allclose(state["mean"].numpy(), values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state["std"].numpy(), values.std(0, ddof=1), rtol=1e-3, atol=1e-5)


def test_what_is_measured_of_targets_weighs_datasets_by_what_is_seen_of_them(world: World) -> None:
    """Of a quarter of one dataset as many rows as that, however few there are in all; of one without a teacher, none."""
    shares = {"more": 1.0, "train": 0.25}
    training = [Rows(replace(s, share=shares[n]), s.dataset.rows()) for n, s in sources(world).items()]
    taken = {t: [len(values) for values in sample(t, "cls", training)] for t in TEACHERS}
    counts = [len(rows.rows_N) for rows in training]
    assert sum(taken["alpha"]) == counts[1]
    assert sum(taken["beta"][:3]) == counts[0] == 21
    assert sum(taken["beta"][3:]) == pytest.approx(counts[1] / 4, abs=1)


def test_a_micro_batch_without_a_teacher_changes_nothing(world: World, tmp_path: Path) -> None:
    """Statistics, steps, weights and means are those of whole batches; rows need validity for their own teachers."""
    runs = []
    for name, settings in (("whole", {}), ("parts", {"micro_batch": 1})):
        run = World(Path(shutil.copytree(world.folder, tmp_path / name, symlinks=True)))
        reporter = StoppingReporter(None)
        job = StudentJob("main", definition(run, STUDENT), tuple(sources(run).values()), (run.source(name="val"),))
        context = Context(reporter, reporter.stop)
        given: Any = {"log_every": 1} | settings
        assert not distill([job], context, workdir=run.folder, settings=DistillConfig(**given), device="cpu")
        runs.append((read_metrics(LocalStore(student_folder(run))), student_folder(run)))
    (whole, folder), (parts, _) = runs
    assert len(whole) == len(parts) > 9
    for mine, theirs in zip(whole, parts, strict=True):
        same = {name for name in mine if name.rpartition("/")[2] in ("loss", "kept", "cosine", "smooth_l1")}
        assert {name: theirs[name] for name in same} == pytest.approx({name: mine[name] for name in same}, rel=2e-2)
    manifest = StudentManifest.from_bytes((folder / "manifest.json").read_bytes(), "manifest")
    # One row of train is not usable for beta; alpha does not know `more`.
    assert manifest.rows == 21 + len(sources(world)["train"].dataset.rows()) - 1
    assert manifest.definition.teachers[0].features is None
    assert set(manifest.statistics) == {"alpha", "beta"}
    (train,) = manifest.definition.mixed
    without = train.model_copy(update={"features": {"beta": train.features["beta"]}})
    other = manifest.definition.model_copy(update={"mixed": (without,)})
    assert describe(other, manifest.definition) == "mixed.train.features.alpha digest changed"


def test_balances_and_shares_without_any_target(world: World, batch: Batch) -> None:
    alpha, beta = ("alpha",), ("beta",)
    own = LossConfig(standardize="none", balance="own_data", own={"more": beta, "train": alpha})
    terms = [Term(token="cls", kind="mse", teachers=alpha), Term(token="patch", kind="gram", teachers=beta)]
    whole = LossConfig(standardize="none", balance="sum", terms=tuple(terms))
    there = [[float(place in ALPHAS), 1.0] for place in range(len(ROWS))]
    for loss, expected in ((own, [[a, 1 - a] for a, _ in there]), (whole, there)):
        student = STUDENT.model_copy(update={"loss": loss, "dataset": dict.fromkeys(TAUGHT, 1.0)})
        model = Distiller(student, definition(world, student).teachers, torch.device("cpu"))
        losses, keep_BT, total = model(batch)
        assert keep_BT.tolist() == expected
        torch.testing.assert_close(total, (losses.loss_BT * keep_BT).sum() / len(ROWS))
        assert model(batch, training=False)[1].tolist() == there
    # Without patches nobody has a target for an image of the first dataset.
    nothing = replace(batch, targets={pair: t for pair, t in batch.targets.items() if pair == ("beta", "cls")})
    losses, keep_BT, total = model(nothing)
    total.backward()
    assert total.item() == keep_BT.sum().item() == 0
    assert set(measures(losses, keep_BT, total)) == {"loss"}
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    ("teachers", "more", "words", "place"),
    [
        ({"a": {"datasets": ["x"]}}, {}, "no teacher teaches on 'y'", ("students", "main", "dataset")),
        ({"a": {}, "b": {"datasets": ["z"]}}, {"teachers": ["a", "b"]}, "b teaches on none", ("students", "main", "teachers")),
        ({"a": {"datasets": ["q"]}}, {}, "no dataset is named 'q'", ("teachers", "a", "datasets")),
        ({"a": {"datasets": ["x"]}, "b": {}}, {"loss": {"balance": "own_data", "own": {"x": ["b"], "y": ["b", "a"]}}},
         "a does not teach on 'y'", ("students", "main", "loss", "own", "y")),
        ({"a": {"datasets": ["x", "y"]}}, {}, "no teacher teaches on 'z'", ("distill", "validation")),
    ],
)  # fmt: skip
def test_teachers_and_datasets_without_each_other_are_refused(
    teachers: Any, more: Any, words: str, place: tuple[str, ...]
) -> None:
    body = {
        "samples": {"datasets": {name: {"source": name} for name in "xyz"}},
        "teachers": teachers,
        "students": {"main": {"dataset": {"x": 1.0, "y": 0.5}} | more},
        "distill": {"validation": "z"},
    }
    with pytest.raises(ValidationError) as caught:
        Config.model_validate_json(json.dumps(body))
    assert any(words in p["msg"] and p["loc"][: len(place)] == place for p in caught.value.errors())


def test_a_student_learns_from_those_that_teach_on_its_datasets() -> None:
    teachers = {"a": {}, "b": {"datasets": ("y",)}, "c": {"encoder": "student:first", "datasets": ("y",)}}
    students = {"first": {"dataset": "x"}, "second": {"dataset": {"x": 1.0, "y": 1.0}}}
    datasets = {name: {"source": name} for name in "xy"}
    # The first student would wait for itself if it had to learn from the third teacher.
    config = Config.model_validate({"samples": {"datasets": datasets}, "teachers": teachers, "students": students})
    assert [config.teachers_of(name) for name in students] == [("a",), ("a", "b", "c")]
    assert [config.teaches("b", name) for name in "xy"] == [False, True]
    assert split(ROWS)[1][1].tolist() == ALPHAS
