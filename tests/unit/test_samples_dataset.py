"""Reading rows: the bytes that were indexed or an error, from threads, forks and pickles; and its speed at scale."""

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unic_pipe.pipeline.samples import Dataset, index_dataset, open_dataset
from unic_pipe.pipeline.samples import dataset as dataset_module
from unic_pipe.pipeline.samples.table import (
    ROW_SCHEMA,
    hashes_of,
    labels_digest,
    labels_of,
    one_array,
    rows_digest,
    to_parquet,
)
from unic_pipe.pipeline.storage import fast_hash
from unic_pipe.schemas.config import DatasetConfig, SamplesConfig
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.samples import DatasetManifest, Segment, ShardEntry


@pytest.fixture
def indexed(shards):
    work = shards("t", range(3))
    config = DatasetConfig(source="data/t-*.tar")
    return index_dataset(work, "t", config, SamplesConfig(datasets={"t": config}, block_rows=4))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(dataset_module, "_WAIT_S", 0.001)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.integers(0, 5), place=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_a_flipped_byte_in_a_tar_is_never_data(indexed, row, place, bit):
    path = indexed.roots[0] / indexed.shard(row)
    good = indexed.read(row)
    segment = indexed.segments[0]
    at = int(segment.offsets[row]) + int(place * int(segment.sizes[row]))
    original = path.read_bytes()
    data = bytearray(original)
    data[at] ^= 1 << bit
    path.write_bytes(data)
    try:
        with pytest.raises(StageError, match="is not the data that was indexed") as caught:
            indexed.read(row)
    finally:
        path.write_bytes(original)
    message = caught.value.message
    assert "data/t-0000.tar" in message
    assert f"byte {int(segment.offsets[row]):,}" in message
    assert repr(indexed.key(row)) in message
    assert indexed.read(row) == good


def test_a_shortened_shard_and_swapped_shards(indexed):
    folder = indexed.roots[0] / "data"
    os.truncate(folder / "t-0001.tar", 600)
    with pytest.raises(StageError, match="is not the data"):
        indexed.read(7)
    os.rename(folder / "t-0000.tar", folder / "x")
    os.rename(folder / "t-0002.tar", folder / "t-0000.tar")
    os.rename(folder / "x", folder / "t-0002.tar")
    fresh = open_dataset(indexed.store, indexed.roots)
    for row in (0, 5, 12, 17):
        with pytest.raises(StageError, match="is not the data"):
            fresh.read(row)


def test_io_errors_are_retried_then_stop(indexed, monkeypatch):
    expected = indexed.read(0)
    real, calls = os.pread, []

    def flaky(*args):
        calls.append(1)
        if len(calls) < 3:
            raise OSError(5, "Input/output error")
        return real(*args)

    monkeypatch.setattr(os, "pread", flaky)
    assert indexed.read(0) == expected
    calls.clear()
    monkeypatch.setattr(
        os, "pread", lambda *args: calls.append(1) or (_ for _ in ()).throw(OSError(5, "Input/output error"))
    )
    with pytest.raises(StageError, match="Input/output error"):
        indexed.read(0)
    assert len(calls) == 3


def test_a_missing_shard_says_where_it_was_looked_for(indexed, tmp_path):
    elsewhere = open_dataset(indexed.store, [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UserError, match=r"data/t-0000.tar is not there \(looked in .*/a, .*/b\)"):
        elsewhere.read(0)


def test_threads_and_many_shards_share_few_descriptors(indexed, monkeypatch):
    from unic_pipe.pipeline.samples import descriptors

    monkeypatch.setattr(descriptors, "MOST_OPEN", 1)
    expected = [indexed.read(row) for row in range(18)]
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    wrong = []

    def work(seed):
        for row in np.random.default_rng(seed).integers(0, 18, 300).tolist():
            wrong.extend([row] if indexed.read(row) != expected[row] else [])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


def read_in_child(dataset, row, queue):
    queue.put((dataset.read(row), dataset.key(row)))


def test_a_forked_process_reads_the_same(indexed):
    context = multiprocessing.get_context("fork")
    expected = indexed.read(9)
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(indexed, 9, queue))
    child.start()
    assert queue.get(timeout=60) == (expected, indexed.key(9))
    child.join()


def test_a_fresh_process_reads_the_same_from_a_small_pickle(indexed, tmp_path):
    expected = indexed.read(9)
    pickled = pickle.dumps(indexed)
    assert len(pickled) < 2000
    program = "import pickle, sys; sys.stdout.buffer.write(pickle.loads(sys.stdin.buffer.read()).read(9))"
    root = str(Path(dataset_module.__file__).parents[2])
    out = subprocess.run([sys.executable, "-c", program], input=pickled, capture_output=True, check=True, cwd=root)
    assert out.stdout == expected


def test_a_damaged_index_is_noticed(indexed):
    path = indexed.store.root / "segment-000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    damaged = open_dataset(indexed.store, indexed.roots)
    with pytest.raises(StageError, match="the sample index is damaged"):
        damaged.read(0)
    assert damaged.damaged() == ("segment-000.parquet",)
    assert indexed.damaged() == ("segment-000.parquet",)
    with pytest.raises(UserError, match="no sample index there"):
        open_dataset(indexed.store.root / "nothing", [])


def test_block_digests_follow_keys_and_content():
    def digest(keys, hashes):
        array = pa.array(keys, pa.large_string())
        return rows_digest(array, np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 16))

    a, b = b"a" * 16, b"b" * 16
    base = digest(["x", "yz"], [a, b])
    assert base == digest(["x", "yz"], [a, b])
    others = [(["xy", "z"], [a, b]), (["yz", "x"], [a, b]), (["x", "yz"], [b, a]), (["x"], [a]), ([], [])]
    assert len({base, *(digest(*other) for other in others)}) == 6
    sliced = pa.array(["0", "x", "yz", "1"], pa.large_string()).slice(1, 2)
    assert rows_digest(sliced, np.frombuffer(a + b, np.uint8).reshape(-1, 16)) == base


def big_index(folder, rows):
    rng = np.random.default_rng(0)
    numbers = np.arange(rows)
    table = pa.Table.from_arrays(
        [
            pa.array(np.char.add("train-0000/", numbers.astype("U9"))).cast(pa.large_string()),
            pa.array(np.char.add("data/train-", (numbers // 8700).astype("U4"))).cast(pa.large_string()),
            pa.array(numbers * 110_000),
            pa.array(np.full(rows, 109_000)),
            fixed(rng, rows),
            pa.array((numbers % 1000).astype(np.int32)),
        ],
        schema=ROW_SCHEMA,
    )
    data = to_parquet(table.add_column(0, "row", pa.array(numbers)))
    folder.mkdir()
    (folder / "segment-000.parquet").write_bytes(data)
    segment = Segment(
        file="segment-000.parquet",
        first_row=0,
        rows=rows,
        rows_digest=rows_digest(one_array(table["key"]), hashes_of(one_array(table["xxh3"]))),
        labels_digest=labels_digest(labels_of(one_array(table["label"]))),
        file_digest=fast_hash(data),
        shards=tuple(ShardEntry(path=f"data/train-{i}", size=1, mtime_ns=1) for i in range(147)),
    )
    manifest = DatasetManifest(
        name="train",
        source="data/train-*.tar",
        layout="tars",
        block_rows=256,
        classes=None,
        labelled=True,
        permuted=False,
        segments=(segment,),
    )
    (folder / "manifest.json").write_bytes(manifest.to_bytes())


def fixed(rng, rows):
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), rows, [None, pa.py_buffer(rng.bytes(16 * rows))])


def test_an_index_of_imagenets_size_opens_fast(tmp_path):
    big_index(tmp_path / "big", 1_281_167)
    before = pa.total_allocated_bytes()
    started = time.perf_counter()
    dataset: Dataset = open_dataset(tmp_path / "big", [tmp_path])
    digests = {dataset.block_digest(b) for b in range(dataset.blocks)}
    labels, rows = dataset.labels(), dataset.rows()
    dataset.shard(1_281_166)
    elapsed = time.perf_counter() - started
    assert len(digests) == dataset.blocks == 5005
    assert labels.shape == rows.shape == (1_281_167,)
    assert dataset.key(1_281_166) == "train-0000/1281166"
    assert elapsed < 6, elapsed  # about 0.5 s on an idle machine
    assert pa.total_allocated_bytes() - before < 300 << 20
