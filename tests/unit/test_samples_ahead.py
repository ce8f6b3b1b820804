"""Reading shards by position: windows over objects, and pieces joined into requests that are under way ahead of use."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unic_pipe.pipeline.samples import ahead
from unic_pipe.pipeline.samples.ahead import ReadAhead, ranges_of
from unic_pipe.pipeline.samples.ranges import LocalRanges, WindowRanges
from unic_pipe.pipeline.samples.shards import scan_tar
from unic_pipe.pipeline.samples.tars import walk

DATA = {name: np.random.default_rng(i).bytes(5000) for i, name in enumerate(("a.tar", "b.tar"))}

pieces = st.lists(
    st.tuples(st.sampled_from(sorted(DATA)), st.integers(0, 4999), st.integers(0, 900)), min_size=1, max_size=40
)


class Reader:
    """Reads `DATA`, and keeps the requests made and the most bytes that were waiting for their use."""

    def __init__(self):
        self.requests = []
        self.lock = threading.Lock()

    def __call__(self, shard, offset, size):
        with self.lock:
            self.requests.append((shard, offset, size))
        return DATA[shard][offset : offset + size]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(ahead, "GAP_BYTES", 100)
    monkeypatch.setattr(ahead, "RANGE_BYTES", 1500)
    monkeypatch.setattr(ahead, "AHEAD_BYTES", 3000)


@settings(max_examples=200, deadline=None)
@given(wanted=pieces, seed=st.integers(0, 9), threads=st.integers(1, 4))
def test_every_piece_is_read_whatever_the_order_and_the_threads(wanted, seed, threads):
    reader = Reader()
    window = ReadAhead(reader, wanted)
    order = np.random.default_rng(seed).permutation(len(wanted)) if seed else np.arange(len(wanted))
    with ThreadPoolExecutor(threads) as pool:
        taken = dict(zip(order.tolist(), pool.map(window.take, order.tolist()), strict=True))
    for i, (shard, offset, size) in enumerate(wanted):
        assert taken[i] == DATA[shard][offset : offset + size]
    assert len(reader.requests) == len(set(reader.requests)) == len(ranges_of(wanted))
    assert window.take(0) is None


def test_neighbours_share_a_request_up_to_its_size_and_gaps_part_them():
    row = [("a.tar", i * 500, 450) for i in range(6)]
    assert [(r.start, r.end) for r in ranges_of(row)] == [(0, 1450), (1500, 2950)]
    far = [("a.tar", 0, 100), ("a.tar", 201, 100), ("b.tar", 0, 100), ("a.tar", 3000, 1900)]
    assert [(r.shard, r.start, r.end) for r in ranges_of(far)] == [
        ("a.tar", 0, 100),
        ("a.tar", 201, 301),
        ("b.tar", 0, 100),
        ("a.tar", 3000, 4900),
    ]
    # In the order of use, not of the tar.
    assert [r.start for r in ranges_of([("a.tar", 4000, 10), ("a.tar", 0, 10)])] == [4000, 0]


def test_no_more_is_requested_than_may_wait():
    reader = Reader()
    wanted = [("a.tar", i * 500, 400) for i in range(10)]
    window = ReadAhead(reader, [(shard, offset, size) for shard, offset, size in wanted])
    for i, (_, offset, _) in enumerate(wanted):
        assert window.take(i) is not None
        with reader.lock:
            assert max(start + size for _, start, size in reader.requests) <= offset + 1400 + 3000 + 500
    assert len(reader.requests) == 4


def test_a_failed_request_is_left_to_the_caller():
    def broken(shard, offset, size):
        raise OSError(5, "Input/output error")

    window = ReadAhead(broken, [("a.tar", 0, 10), ("a.tar", 20, 10)])
    assert window.take(0) is None
    assert window.take(1) is None


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(-3, 600), st.integers(0, 1500)), max_size=30), window=st.integers(512, 2000)
)
def test_a_window_gives_what_the_file_holds_and_fetches_nothing_twice(steps, window):
    data, fetched, at = DATA["a.tar"], np.zeros(5000, int), 0

    def fetch(offset, size):
        assert size > 0
        fetched[offset : offset + size] += 1
        return data[offset : offset + size]

    ranges = WindowRanges(len(data), fetch, window)
    for skip, size in steps:
        at = min(at + max(0, skip), 5000)
        assert ranges.read(size, at) == data[at : at + size]
    assert fetched.max() <= 1


@pytest.mark.parametrize("window", [512, 700, 4096, 1 << 20])
def test_a_tar_through_a_window_of_any_size(tmp_path, picture, write_tar, window):
    members = [
        (f"{'d' * 120}/{i:03d}.{kind}", data) for i in range(5) for kind, data in (("png", picture(i)), ("cls", b"1"))
    ]
    path = write_tar(tmp_path / "x.tar", members)
    data, local = path.read_bytes(), LocalRanges(path)
    remote = WindowRanges(len(data), lambda offset, size: data[offset : offset + size], window)
    assert [(m, remote.read(m.size, m.offset)) for m in walk(remote, "x")] == [
        (m, local.read(m.size, m.offset)) for m in walk(local, "x")
    ]
    local.close()
    assert scan_tar(path, "x", None).num_rows == 5
