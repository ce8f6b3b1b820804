"""Draws and sample order: pure functions that decide what a resumed or distributed training sees."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unic_pipe.pipeline.samples.draws import Purpose, permutation, uniforms
from unic_pipe.pipeline.samples.mixtures import Mixture, Part
from unic_pipe.pipeline.samples.order import epoch_order, epoch_view, sorted_nearby
from unic_pipe.stages.distill.data.batches import training_plans


def test_draws_do_not_depend_on_the_split() -> None:
    rows = np.arange(1000, dtype=np.int64)
    whole = uniforms(3, Purpose.DROP_PATH, 5, rows, 4)
    parts = np.concatenate([uniforms(3, Purpose.DROP_PATH, 5, part, 4) for part in np.split(rows, [17, 500])])
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_array_equal(whole[:, :2], uniforms(3, Purpose.DROP_PATH, 5, rows, 2))


def test_draws_are_uniform_and_uncorrelated() -> None:
    draws = uniforms(0, Purpose.DROP_TEACHER, 0, np.arange(50_000, dtype=np.int64), 8)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    expected = draws.size / 100
    assert ((counts - expected) ** 2 / expected).sum() < 160  # chi-square with 99 degrees of freedom: p = 1e-4
    sigma = 1 / np.sqrt(len(draws))
    between_lanes = np.corrcoef(draws.T) - np.eye(8)
    assert np.abs(between_lanes).max() < 5 * sigma
    neighbours = [np.corrcoef(draws[:-1, lane], draws[1:, lane])[0, 1] for lane in range(8)]
    assert np.abs(neighbours).max() < 5 * sigma


@pytest.mark.parametrize("change", [{"seed": 1}, {"purpose": Purpose.DROP_PATH}, {"epoch": 1}, {"seed": -1}])
def test_every_part_of_the_key_matters(change: dict[str, int]) -> None:
    key = {"seed": 0, "purpose": Purpose.ROW_ORDER, "epoch": 0}
    rows = np.arange(20_000, dtype=np.int64)
    one = uniforms(rows_N=rows, lanes=1, **key)[:, 0]  # type: ignore[arg-type]
    other = uniforms(rows_N=rows, lanes=1, **(key | change))[:, 0]  # type: ignore[arg-type]
    assert not np.isin(one, other).any()
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(len(rows))


def test_seed_and_epoch_do_not_stand_in_for_each_other() -> None:
    rows = np.arange(100, dtype=np.int64)
    drawn = {uniforms(seed, Purpose.ROW_ORDER, epoch, rows, 1).tobytes() for seed in range(20) for epoch in range(20)}
    assert len(drawn) == 400


@st.composite
def datasets(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Usable rows of blocks of equal size, some of them short or empty."""
    block_rows = draw(st.integers(1, 12))
    bits = draw(st.lists(st.booleans(), min_size=1, max_size=200))
    return np.flatnonzero(bits).astype(np.int64), block_rows


@settings(deadline=None, max_examples=150)
@given(datasets(), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000), st.integers(0, 50))
def test_order(data: tuple[np.ndarray, int], streams: int, per: int, window: int, seed: int, epoch: int) -> None:
    rows, block_rows = data
    batch = streams * per
    order = epoch_order(rows, block_rows, seed=seed, epoch=epoch, batch=batch, streams=streams, window=window)
    assert order.shape == (len(rows) // batch, batch)
    assert order.dtype == np.int64
    assert len(np.unique(order)) == order.size
    assert np.isin(order, rows).all()
    for stream in np.split(order, streams, axis=1):
        _check_window(stream.reshape(-1), block_rows, window)


def test_the_order_is_what_it_was() -> None:
    """Students on disk depend on it: the digest is that of the first release."""
    rows = np.delete(np.arange(300_000, dtype=np.int64), np.arange(5, 300_000, 97))
    order = epoch_order(rows, 256, seed=7, epoch=3, batch=512, streams=8, window=8)
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16] == "afdb51c75e02e10f"


@pytest.mark.parametrize(("rows", "step", "spread"), [(100_000, 1000, 8.0), (150_000, 1, 3.0), (70_000, 7, 0.0)])
def test_keys_almost_in_order_are_sorted_as_by_numpy(rows: int, step: int, spread: float) -> None:
    """Also with more buckets than 16 bits count, and with equal keys."""
    keys = np.arange(rows) // step + np.round(spread * np.random.default_rng(0).random(rows), 3)
    np.testing.assert_array_equal(sorted_nearby(keys), np.argsort(keys, kind="stable"))


def _check_window(rows: np.ndarray, block_rows: int, window: int) -> None:
    """No more than `window` blocks are begun and not finished at any row."""
    blocks = rows // block_rows
    live = np.zeros(len(rows) + 1, dtype=int)
    for block in np.unique(blocks):
        where = np.flatnonzero(blocks == block)
        live[where[0] : where[-1] + 1] += 1
    assert live.max(initial=0) <= window


def test_every_world_size_sees_the_same_batches_and_whole_streams() -> None:
    rows = np.arange(1000, dtype=np.int64)
    order = epoch_order(rows, 50, seed=0, epoch=0, batch=32, streams=8, window=2)
    for world in (1, 2, 4, 8):
        ranks = np.split(order, world, axis=1)
        streams_of_rank = [{tuple(np.unique(s // 50)) for s in np.split(r, 8 // world, axis=1)} for r in ranks]
        assert sum(len(s) for s in streams_of_rank) == 8
        np.testing.assert_array_equal(np.concatenate(ranks, axis=1), order)


def test_epochs_differ_in_order_and_in_the_rows_left_out() -> None:
    rows = np.arange(1000, dtype=np.int64)
    orders = [epoch_order(rows, 10, seed=0, epoch=e, batch=300, streams=2, window=4) for e in range(20)]
    left_out = [frozenset(set(rows.tolist()) - set(order.reshape(-1).tolist())) for order in orders]
    assert len(set(left_out)) > 15
    assert set().union(*(set(order.reshape(-1).tolist()) for order in orders)) == set(rows.tolist())


def test_a_window_over_everything_mixes_blocks_in_every_batch() -> None:
    rows = np.arange(1024, dtype=np.int64)
    order = epoch_order(rows, 256, seed=0, epoch=0, batch=32, streams=1, window=64)
    assert min(len(np.unique(batch // 256)) for batch in order) >= 2


def test_large_datasets_are_quick() -> None:
    rows = np.arange(1_281_167, dtype=np.int64)
    started = time.process_time()
    order = epoch_order(rows, 256, seed=0, epoch=3, batch=512, streams=8, window=8)
    assert time.process_time() - started < 5
    assert order.shape == (2502, 512)
    assert len(np.unique(order)) == order.size


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(0, 5))
def test_views_take_turns(seed: int, views: int, cycle: int) -> None:
    taken = [epoch_view(seed, cycle * views + i, views) for i in range(views)]
    assert sorted(taken) == list(range(views))


def test_permutation_is_one() -> None:
    assert sorted(permutation(1, Purpose.BLOCK_ORDER, 2, 100).tolist()) == list(range(100))
    assert permutation(1, Purpose.BLOCK_ORDER, 2, 0).tolist() == []


@pytest.mark.parametrize("start", [0, 1, 6, 7, 8, 20])
def test_plans_continue_where_they_were_left(start: int) -> None:
    rows = np.arange(60, dtype=np.int64)
    mixture = Mixture((Part("ab" * 32, 10, rows),), seed=1, batch=8, streams=2, window=2)
    whole = list(training_plans(mixture, start=0, epochs=3, views=2))
    rest = list(training_plans(mixture, start=start, epochs=3, views=2))
    assert len(whole) == 21
    assert len(rest) == 21 - start
    for one, other in zip(whole[start:], rest, strict=True):
        np.testing.assert_array_equal(one.rows_B, other.rows_B)
        assert (one.view, one.epoch) == (other.view, other.epoch)
