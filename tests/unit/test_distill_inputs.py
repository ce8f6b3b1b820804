"""What training reads: targets, grids, windows of blocks, usable rows, images; and inputs that are refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from distill_world import BAD_ROW, BLOCK, TEACHERS, VIEWS, World, commit_block
from PIL import Image
from torch.nn import functional as F

from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.cache.statistics import merge_statistics, standardization
from unic_pipe.pipeline.samples.images import decode_image
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.views.render import render_view
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.recipes import GENTLE
from unic_pipe.stages.distill.data.images import ViewImages
from unic_pipe.stages.distill.data.rows import usable_rows
from unic_pipe.stages.distill.data.targets import PLAIN, BlockWindow, GridResampler, TargetReader, standard_of


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
