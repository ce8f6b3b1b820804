"""Students of several datasets: places in a batch, order and draws, statistics, bits, and settings that are refused."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import encoder_definition
from distill_world import (
    BLOCK,
    STUDENT,
    TEACHERS,
    VIEWS,
    StoppingReporter,
    World,
    assert_same_student,
    make_cache,
    make_dataset,
    student_folder,
)
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from unic_pipe.pipeline.cache.needs import center_need, merge_needs, training_need
from unic_pipe.pipeline.cache.statistics import merge_statistics, mixed_statistics, standardization
from unic_pipe.pipeline.samples.draws import Purpose, uniforms
from unic_pipe.pipeline.samples.mixtures import Mixture, Part, dealt, epoch_steps, split, stream_places, without_place
from unic_pipe.pipeline.samples.order import epoch_order
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.students import student_definition
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import Config, DistillConfig, StudentConfig
from unic_pipe.schemas.recipes import CENTER, GENTLE
from unic_pipe.schemas.students import StudentDefinition, StudentManifest
from unic_pipe.stages.distill.data.batches import BatchPlan
from unic_pipe.stages.distill.data.feed import Feed
from unic_pipe.stages.distill.data.images import ViewImages
from unic_pipe.stages.distill.data.mixing import Side, read, request
from unic_pipe.stages.distill.data.rows import Rows
from unic_pipe.stages.distill.data.targets import PLAIN, BlockWindow, TargetReader
from unic_pipe.stages.distill.jobs import StudentJob
from unic_pipe.stages.distill.metrics import Meter, read_metrics
from unic_pipe.stages.distill.parallel.world import Context
from unic_pipe.stages.distill.run import distill
from unic_pipe.stages.report.details import loss_rows
from unic_pipe.stages.report.gather import training_curves

SHARES = {"more": 0.5, "train": 1.0}


def mixture(*rows: int, shares: tuple[float, ...] = (), batch: int = 24, streams: int = 4) -> Mixture:
    shares = shares or (1.0,) * len(rows)
    parts = [Part(f"{i:064x}", BLOCK, np.arange(n), s) for i, (n, s) in enumerate(zip(rows, shares, strict=True))]
    return Mixture(tuple(parts), seed=3, batch=batch, streams=streams, window=2)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=4), st.integers(1, 40))
def test_places_are_all_dealt_out_and_nobody_has_more_than_his_share(rows: list[int], places: int) -> None:
    given = stream_places(rows, places)
    assert sum(given) == places
    assert all(count >= int(places * n / sum(rows)) for count, n in zip(given, rows, strict=True))
    if all(given):
        steps = epoch_steps(rows, 2 * places, 2)
        assert all(steps * 2 * count <= n for count, n in zip(given, rows, strict=True))


def test_every_dataset_is_read_in_its_own_order_and_the_first_with_the_draws_it_has_alone() -> None:
    both = mixture(400, 160, shares=(1.0, 0.5))
    assert (both.places, both.steps) == ((5, 1), 20)
    order = both.order(2)
    for step in order.tolist():
        parts = split(np.array(step))
        assert [len(rows) for _, _, rows in parts] == [20, 4]
    alone = epoch_order(np.arange(400), BLOCK, seed=3, epoch=2, batch=20, streams=4, window=2)
    first = [split(batch)[0] for batch in order]
    np.testing.assert_array_equal([rows for _, _, rows in first], alone)
    # Every stream's columns hold places of both, in the same numbers.
    assert all((place.reshape(4, 5) // 6 == np.arange(4)[:, None]).all() for _, place, _ in first)
    rows = np.concatenate([np.arange(20), np.arange(20) + (1 << 40)])
    draws = both.uniforms(Purpose.DROP_PATH, 1, rows, 3)
    np.testing.assert_array_equal(draws[:20], uniforms(3, Purpose.DROP_PATH, 1, np.arange(20), 3))
    assert not np.isin(draws[20:], draws[:20]).any()


def test_one_dataset_is_a_mixture_with_the_same_bits() -> None:
    one = mixture(100)
    alone = epoch_order(np.arange(100), BLOCK, seed=3, epoch=1, batch=24, streams=4, window=2)
    np.testing.assert_array_equal(one.order(1), alone)
    short, long = StudentConfig(dataset="a"), StudentConfig(dataset={"a": 1.0})
    assert digest_of(short) == digest_of(long)
    assert list(StudentConfig(dataset={"b": 1.0, "a": 0.5}).datasets) == ["a", "b"]


@pytest.mark.parametrize(
    ("large", "small", "batch", "streams", "fitting"),
    [(1000, 30, 64, 8, [280, 1]), (100_000, 7, 512, 8, []), (9, 8, 4, 4, [12, 2])],
)
def test_a_batch_without_a_place_is_refused_with_numbers_that_work(
    large: int, small: int, batch: int, streams: int, fitting: list[int]
) -> None:
    """Seven rows have no place in eight streams, whatever the batch."""
    rows = {"big": float(large), "little": float(small)}
    error = without_place("main", rows, batch, streams)
    assert error is not None
    assert "little gives" in error.message
    words = (error.hint or "").replace(",", "").split()
    ways = {"students.main.optimizer.batch": (None, streams), "students.main.streams": (batch, None)}
    named = [(words[words.index(way) + 2], ways[way]) for way in ways if way in words]
    assert [int(number) for number, _ in named] == fitting
    for number, (same_batch, same_streams) in named:
        chosen = same_batch or int(number), same_streams or int(number)
        assert without_place("main", rows, *chosen) is None
        assert epoch_steps(list(rows.values()), *chosen)


def test_shares_that_whole_places_change_are_said() -> None:
    assert dealt({"a": 2**20}, {"a": 1.0}, 512, 8) is None
    assert dealt({"a": 2**20, "b": 2**20}, {"a": 1.0, "b": 0.25}, 320, 8) is None
    # b may give 30 rows, which is enough for 15 steps of 2; those of a would do for 16.
    words = dealt({"a": 100, "b": 100}, {"a": 1.0, "b": 0.3}, 8, 2)
    assert (
        words == "8 places of a batch: 6 for a (0.9 passes an epoch, 1 asked), 2 for b (0.3 passes an epoch, 0.3 asked)"
    )
    both = mixture(100, 100, shares=(1.0, 0.3), batch=8, streams=2)
    assert (both.places, both.steps * 6 / 100, both.steps * 2 / 100) == ((3, 1), 0.9, 0.3)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ({"a": 1.5, "b": 1.0}, "at most 1"),
        ({"a": 0.0, "b": 1.0}, "above 0"),
        ({"c": 1.0, "b": 1.0}, "'c'"),
        ({}, "no datasets"),
    ],
)
def test_mixtures_that_cannot_be_are_refused_with_their_place(dataset: dict[str, float], words: str) -> None:
    body = {"samples": {"datasets": {n: {"source": "x"} for n in "ab"}}, "students": {"main": {"dataset": dataset}}}
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(body)
    (problem,) = caught.value.errors()
    assert words in problem["msg"]
    assert problem["loc"][:3] == ("students", "main", "dataset")


@pytest.fixture(scope="module")
def mixed(template: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The working folder with another training set, under other codecs."""
    folder = tmp_path_factory.mktemp("mixed") / "work"
    shutil.copytree(template.folder, folder, symlinks=True)
    more, val2 = make_dataset(folder, "more", 21, 5), make_dataset(folder, "val2", 5, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TEACHERS["alpha"], "codec", "int8")
        patch.setitem(TEACHERS["beta"], "codec", "float16")
        for teacher in TEACHERS:
            make_cache(folder, more, teacher, GENTLE, VIEWS, None)
            make_cache(folder, val2, teacher, CENTER, 1, None)
    return World(folder)


def definition(world: World) -> StudentDefinition:
    sources = {name: world.source(name=name) for name in SHARES}
    features = {n: {t: c.definition for t, c in s.caches.items()} for n, s in sources.items()}
    more, train = (sources[name].dataset for name in SHARES)
    student = STUDENT.model_copy(update={"dataset": SHARES})
    body = {"samples": {"datasets": {n: {"source": "x"} for n in SHARES}}, "teachers": {t: {} for t in TEACHERS}}
    config = Config.model_validate(body | {"students": {"main": student}})
    others = [(train.manifest, features["train"], train.blocks)]
    return student_definition(config, "main", more.manifest, features["more"], more.blocks, VIEWS, mixed=others)


def train(world: World, stop_after: int | None = None, **settings: object) -> bool:
    reporter = StoppingReporter(stop_after)
    sources = tuple(replace(world.source(name=name), share=share) for name, share in SHARES.items())
    job = StudentJob("main", definition(world), sources, (world.source(name="val"), world.source(name="val2")))
    failed = distill(
        [job],
        Context(reporter, reporter.stop),
        workdir=world.folder,
        settings=DistillConfig(**({"log_every": 2} | settings)),  # type: ignore[arg-type]
        device="cpu",
    )
    assert not failed
    return any(world.folder.glob("students/*/export/manifest.json"))


def copied(world: World, folder: Path) -> World:
    shutil.copytree(world.folder, folder, symlinks=True)
    return World(folder)


def test_rows_of_several_codecs_are_decoded_each_by_its_own(mixed: World) -> None:
    sources = [mixed.source(name=name) for name in SHARES]
    rows = np.array([30 + (1 << 40), 2, 9, 1 << 40, 20, 12 + (1 << 40)])
    plan = BatchPlan(rows, 1, 0)
    with ThreadPoolExecutor(2) as pool:
        wanted = {(t, k): {"": PLAIN} for t in TEACHERS for k in ("cls", "patch")}
        sides = [
            Side(
                ViewImages(s.dataset, GENTLE, 5, (12,), VIEWS, s.dataset.rows()),
                TargetReader(BlockWindow(s.caches, pool, 9), wanted, BLOCK),  # type: ignore[arg-type]
            )
            for s in sources
        ]
        request(sides, plan)
        images, targets = read(sides, plan, pool)
        codecs = {s.caches["alpha"].definition.codec.name for s in sources}
        assert codecs == {"int8", "float16"}
        for place, row in enumerate(rows.tolist()):
            source, own = sources[row >> 40], row & ((1 << 40) - 1)
            alone = sides[row >> 40].images.batch(np.array([own]), 1, pool)
            assert (images[12][place] == alone[12][0]).all()
            for teacher, token in wanted:
                expected = source.caches[teacher].read_block(1, token, own // BLOCK).values[own % BLOCK]  # type: ignore[arg-type]
                found = targets[teacher, token].decode()[place].numpy()  # type: ignore[index]
                np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_statistics_are_those_of_all_tokens_weighed_by_their_shares(mixed: World) -> None:
    caches = [mixed.source(name=name).caches["alpha"] for name in SHARES]
    documents = [merge_statistics(c.folder, range(VIEWS), blocks) for c, blocks in zip(caches, (3, 5), strict=True)]
    merged = mixed_statistics(documents, (0.5, 1.0))
    assert merged.units not in {d.units for d in documents}
    assert mixed_statistics(documents[:1], (0.5,)) == documents[0]
    values = [
        np.concatenate([c.read_block(v, "patch", b).values.reshape(-1, 5) for v in range(VIEWS) for b in range(n)])
        for c, n in zip(caches, (3, 5), strict=True)
    ]
    weights = np.repeat([0.5, 1.0], [len(x) for x in values])
    together = np.concatenate(values)
    mean = np.average(together, axis=0, weights=weights)
    std = np.sqrt(np.average((together - mean) ** 2, axis=0, weights=weights))
    assert merged.patch is not None
    found_mean, found_std = standardization(merged.patch)
    # Statistics are of the features before they were stored.
    np.testing.assert_allclose(found_mean, mean, rtol=1e-3)
    np.testing.assert_allclose(found_std, std, rtol=1e-2)


@pytest.fixture(scope="module")
def uninterrupted(mixed: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    world = copied(mixed, tmp_path_factory.mktemp("uninterrupted") / "work")
    assert train(world)
    return world


def test_stopped_in_the_middle_of_an_epoch_and_resumed(mixed: World, uninterrupted: World, tmp_path: Path) -> None:
    world = copied(mixed, tmp_path / "work")
    assert not train(world, stop_after=2)
    assert not train(world, stop_after=3)
    assert train(world)
    assert_same_student(world, uninterrupted)


def test_the_validation_loss_is_said_of_each_dataset_and_of_all(uninterrupted: World) -> None:
    rows = [r for r in read_metrics(LocalStore(student_folder(uninterrupted))) if "val/loss" in r]
    assert [r["epoch"] for r in rows] == [1, 2, 3]
    for row in rows:
        assert row["val/loss"] == pytest.approx((11 * row["val@val/loss"] + 5 * row["val@val2/loss"]) / 16, rel=1e-5)
        assert row["val@val/loss"] != row["val@val2/loss"]
    manifest = StudentManifest.from_bytes((student_folder(uninterrupted) / "manifest.json").read_bytes(), "manifest")
    table = loss_rows((training_curves(manifest, student_folder(uninterrupted), "main"),))
    shown = {what: cells[1] for _, what, cells in table if what.startswith("on ")}
    assert shown == {f"on {name}": f"{rows[-1][f'val@{name}/loss']:.4f}" for name in ("val", "val2")}


def test_validation_sets_count_as_their_weights_say() -> None:
    a, b = Meter(), Meter()
    a.add({"loss": torch.tensor(4.0), "alpha/loss": torch.tensor(1.0)}, weight=90)
    b.add({"loss": torch.tensor(1.0)}, weight=10)
    assert Meter.together({"a": a, "b": b}).means() == pytest.approx({"loss": 3.7, "alpha/loss": 1.0})
    weighted = Meter.together({"a": a, "b": b}, {"a": 1.0, "b": 2.0}).means("val/")
    assert weighted == pytest.approx({"val/loss": 2.0, "val/alpha/loss": 1.0})
    assert DistillConfig(validation={"a": 1.0, "b": 2.0}).validations == ("a", "b")


def test_a_set_of_training_and_of_validation_has_a_name_and_pictures_for_each(mixed: World) -> None:
    """Both under centre crops; the seed of the views tells them apart, and the pictures that are kept of some rows."""
    dataset, encoder = mixed.source(name="val2").dataset, encoder_definition(6, 5, (3, 3), image_size=12)
    body = {"samples": {"datasets": {"val2": {"source": "x"}}}, "views": {"recipe": "center"}, "teachers": {"t": {}}}
    config = Config.model_validate(body)
    needs = [training_need(config, dataset.manifest, "t", encoder)]
    needs.append(center_need(config, dataset.manifest, "t", encoder, ("cls", "patch")))
    assert len(merge_needs(needs)) == 1
    seeded = Config.model_validate({**body, "views": {"recipe": "center", "seed": 3}})
    names = {need.pointer for need in (training_need(seeded, dataset.manifest, "t", encoder), *needs)}
    assert names == {"val2-t-center", "val2-t-center-3"}

    rows = Rows(mixed.source(name="val2"), dataset.rows())
    few = replace(rows, rows_N=rows.rows_N[1:])
    with ThreadPoolExecutor(1) as pool:
        feed = Feed((few,), (rows,), definition(mixed), pool, torch.device("cpu"), {})
        for _ in range(2):
            found = [feed._view_images(r, {12}, 1).batch(few.rows_N, 0, pool)[12] for r in (few, rows)]
            assert torch.equal(*found)
