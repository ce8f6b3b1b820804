"""Indexing tars: identity, growth, order, labels, restarts."""

import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from indexing import Told, index, refused, state, tree

from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.samples import find_dataset, open_dataset
from unic_pipe.pipeline.samples import scan as scan_module
from unic_pipe.pipeline.samples.keys import ORDER_SEED, named, random_order
from unic_pipe.pipeline.samples.packed import Packed
from unic_pipe.pipeline.samples.segments import make_segment
from unic_pipe.pipeline.samples.table import hashes_of, make_rows, one_array, rows_digest, to_parquet
from unic_pipe.pipeline.storage import LocalStore, fast_hash, pointers
from unic_pipe.pipeline.storage import local as local_store
from unic_pipe.schemas.samples import INDEX_COLUMNS


def test_an_index_names_every_image(shards, picture):
    work = shards("t", [0, 1])
    dataset = index(work)
    assert dataset.store.name == f"t-{dataset.digest[:8]}"
    assert find_dataset(LocalStore(work / "samples"), "t") == dataset.store
    assert os.readlink(work / "samples" / "t") == dataset.store.name
    assert dataset.rows().tolist() == list(range(12))
    assert dataset.blocks == 3
    for row in range(12):
        assert dataset.read(row) == picture(1000 * (row // 6) + row % 6)
        assert dataset.key(row) == f"t-{row // 6:04d}/{row % 6:04d}"
    assert dataset.labels().tolist() == [(i * 7 + n) % 3 for n in (0, 1) for i in range(6)]
    table = pq.read_table(dataset.store.root / "segment-000.parquet")
    assert tuple(table.column_names) == INDEX_COLUMNS
    assert table["row"].to_pylist() == list(range(12))
    assert dataset.manifest.labelled
    assert not dataset.manifest.permuted
    assert state(dataset) == ("fresh", "")


def test_the_same_data_give_the_same_bytes(shards, tmp_path):
    work = shards("t", [0, 1])
    first = index(work)
    before = tree(first.store.root)
    shutil.rmtree(work / "samples")
    again = index(work)
    assert again.store.name == first.store.name
    assert tree(again.store.root) == before


def test_unchanged_data_are_not_read_again(shards, monkeypatch):
    work = shards("t", [0])
    first = index(work)
    before = tree(first.store.root)
    monkeypatch.setattr(scan_module, "scan_tar", None)
    assert index(work).digest == first.digest
    assert tree(first.store.root) == before


def test_copied_data_stay_the_same_data(shards, tmp_path):
    work = shards("t", [0, 1])
    dataset = index(work)
    for tar in (work / "data").iterdir():
        os.utime(tar, (1, 1))
    assert state(dataset)[0] == "fresh"
    assert index(work).digest == dataset.digest


def test_growth_keeps_rows_and_starts_a_block(shards, picture):
    work = shards("t", [0])
    old = index(work)
    before = [(old.key(r), old.block_digest(r // 4)) for r in range(6)]
    labels = old.labels().tolist()
    first_segment = (old.store.root / "segment-000.parquet").read_bytes()
    shards("t", [1, 2])
    assert state(old) == ("partial", "2 new tars since indexing")
    new = index(work)
    assert new.store == old.store
    assert new.digest == old.digest
    assert (new.store.root / "segment-000.parquet").read_bytes() == first_segment
    assert [(new.key(r), new.block_digest(r // 4)) for r in range(6)] == before
    assert new.rows().tolist() == [*range(6), *range(8, 20)]
    assert new.labels()[:6].tolist() == labels
    assert [new.block_range(b) for b in range(new.blocks)] == [(0, 4), (4, 2), (8, 4), (12, 4), (16, 4)]
    assert new.manifest.rows == 18
    assert new.read(8) == picture(1000)
    with pytest.raises(IndexError):
        new.read(6)
    keys = [new.key(r) for r in new.rows()]
    assert len(set(keys)) == 18
    assert keys[6] == "t-0001/0000"
    assert state(new)[0] == "fresh"


def test_a_shard_that_sorts_first_is_still_added_last(shards):
    work = shards("t", [5])
    old = index(work)
    shards("t", [1])
    new = index(work)
    assert [new.key(r) for r in range(6)] == [old.key(r) for r in range(6)]


def test_a_longer_range_grows_too(shards):
    work = shards("t", range(4))
    old = index(work, "data/t-{0000..0002}.tar")
    new = index(work, "data/t-{0000..0003}.tar")
    assert new.digest == old.digest
    assert len(new.manifest.segments) == 2
    assert new.manifest.source == "data/t-{0000..0003}.tar"


def test_clashing_keys(shards, write_tar, picture, tmp_path):
    write_tar(tmp_path / "data/t-0.tar", [("a.png", picture(1))])
    assert index(tmp_path).key(0) == "a"
    write_tar(tmp_path / "data/t-1.tar", [("a.png", picture(2)), ("b.png", picture(3))])
    grown = index(tmp_path)
    assert [grown.key(r) for r in grown.rows()] == ["a", "t-1/a", "t-1/b"]
    write_tar(tmp_path / "data/x/t-1.tar", [("a.png", picture(4))])
    write_tar(tmp_path / "data/y/t-1.tar", [("a.png", picture(5))])
    two = index(tmp_path, "data/*/t-1.tar", "two")
    assert [two.key(r) for r in two.rows()] == ["data/x/t-1/a", "data/y/t-1/a"]


def test_dropping_or_reordering_a_sample_is_other_data(tmp_path, write_tar, picture):
    members = [(f"{i}.png", picture(i)) for i in range(5)]
    path = write_tar(tmp_path / "data/t-0.tar", members)
    first, written = index(tmp_path), path.stat()
    write_tar(path, [*members[:2], *members[3:]])
    os.truncate(path, os.path.getsize(path) + 10_240)
    assert state(first)[0] == "stale"
    assert "changed size" in refused(tmp_path)
    write_tar(path, [members[1], members[0], *members[2:]])
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert (path.stat().st_size, state(first)) == (written.st_size, ("fresh", ""))
    for row in range(2):  # size and time are the same: the hash is what stops it
        with pytest.raises(Exception, match="is not the data that was indexed"):
            first.read(row)
    assert first.read(4) == picture(4)
    renamed = index(tmp_path, name="u")
    assert renamed.digest != first.digest


def test_class_sorted_tars_are_put_in_random_order(tmp_path, write_tar, picture):
    for n in range(3):
        members = [m for i in range(20) for m in ((f"{n}-{i}.png", picture(100 * n + i)), (f"{n}-{i}.cls", b"%d" % n))]
        write_tar(tmp_path / f"data/t-{n}.tar", members)
    told = Told()
    dataset = index(tmp_path, progress=told)
    assert dataset.manifest.permuted
    assert "random" in told.lines[0]
    labels = dataset.labels()
    assert len(set(labels[:20].tolist())) == 3
    for row in range(60):
        n, i = dataset.key(row).split("-")
        assert labels[row] == int(n)
        assert dataset.read(row) == picture(100 * int(n) + int(i))


def test_labels_may_change_without_new_identity(tmp_path, write_tar, picture):
    members = [
        m
        for i in range(6)
        for m in ((f"{i}.png", picture(i)), (f"{i}.cls", b"%d" % (i % 2)), (f"{i}.json", b'{"c": %d}' % (i % 3)))
    ]
    write_tar(tmp_path / "data/t-0.tar", members)
    old = index(tmp_path)
    assert state(old, label_field="c") == ("stale", "labels changed")
    new = index(tmp_path, label_field="c")
    assert new.store == old.store
    assert new.digest == old.digest
    assert new.labels().tolist() == [0, 1, 2, 0, 1, 2]
    assert old.labels().tolist() == [0, 1, 0, 1, 0, 1]  # readers of the old manifest keep their file
    assert new.block_digest(0) == old.block_digest(0)


def test_unlabelled_and_partly_labelled(tmp_path, write_tar, picture):
    write_tar(tmp_path / "data/t-0.tar", [("a.png", picture(1)), ("b.png", picture(2)), ("b.cls", b"4")])
    told = Told()
    dataset = index(tmp_path, progress=told)
    assert not dataset.manifest.labelled
    assert dataset.labels().tolist() == [-1, 4]
    assert told.lines == ["dataset t: 1 of 2 rows have no label."]


def test_a_killed_indexing_goes_on(shards, monkeypatch):
    work = shards("t", range(4), rows=3)
    monkeypatch.setattr(scan_module, "_KEEP_FROM_BYTES", 0)
    damaged = work / "data/t-0003.tar"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:1000])
    assert "cut" in refused(work)
    assert not (work / "samples").exists()
    damaged.write_bytes(whole)
    real, scanned = scan_module.scan_tar, []
    monkeypatch.setattr(scan_module, "scan_tar", lambda path, *rest: scanned.append(path.name) or real(path, *rest))
    dataset = index(work)
    assert scanned == ["t-0003.tar"]
    assert dataset.manifest.rows == 12
    assert not list((work / "runs").rglob("*.rows"))


def test_a_polite_stop_keeps_finished_tars(shards, monkeypatch):
    work = shards("t", range(40), rows=2)
    monkeypatch.setattr(scan_module, "_KEEP_FROM_BYTES", 0)
    real, scanned, stop = scan_module.scan_tar, [], Stop()

    def counting(path, *rest):
        scanned.append(path.name)
        if len(scanned) == 3:
            stop.request()
        return real(path, *rest)

    monkeypatch.setattr(scan_module, "scan_tar", counting)
    with pytest.raises(scan_module.IndexingStopped, match="of 40 pieces"):
        index(work, stop=stop)
    before = set(scanned)
    scanned.clear()
    assert index(work).manifest.rows == 80
    assert sorted(scanned) == sorted({f"t-{n:04d}.tar" for n in range(40)} - before)
    assert scanned


def test_dying_between_any_two_writes_leaves_the_old_or_the_new_index(shards, monkeypatch):
    work = shards("t", [0])
    old = index(work)
    before = tree(old.store.root)
    shards("t", [1])
    reached = 0
    for survive in range(10):
        calls = []

        def dying(path, limit=survive, calls=calls, real=local_store.sync_folder):
            calls.append(path)
            if len(calls) > limit:
                raise KeyboardInterrupt
            real(path)

        with monkeypatch.context() as patch:
            patch.setattr(local_store, "sync_folder", dying)
            patch.setattr(pointers, "sync_folder", dying)
            try:
                index(work)
            except KeyboardInterrupt:
                found = open_dataset(find_dataset(LocalStore(work / "samples"), "t"), old.roots)
                assert found.manifest.rows in (6, 12)
                assert len([found.read(int(r)) for r in found.rows()]) == found.manifest.rows
                assert all(
                    (old.store.root / name).read_bytes() == data for name, data in before.items() if "seg" in name
                )
                reached += 1
                continue
        break
    assert reached >= 2
    assert index(work).manifest.rows == 12
    whole = tree(work / "samples" / "t")
    shutil.rmtree(work / "samples")
    (work / "data/t-0001.tar").rename(work / "aside.tar")
    index(work)
    (work / "aside.tar").rename(work / "data/t-0001.tar")
    index(work)
    assert tree(work / "samples" / "t") == whole


def test_rows_join_by_number_after_growth(shards, picture):
    work = shards("t", [0])
    index(work)
    shards("t", [1])
    dataset = index(work)
    labels = dict(zip(dataset.rows().tolist(), dataset.labels().tolist(), strict=True))
    for block in range(dataset.blocks):
        first, count = dataset.block_range(block)
        for offset, key in enumerate(dataset.block_keys(block)):
            n, i = map(int, key.removeprefix("t-").split("/")) if "/" in key else (0, int(key))
            assert dataset.read(first + offset) == picture(1000 * n + i)
            assert labels[first + offset] == (i * 7 + n) % 3
        assert count == len(dataset.block_keys(block))
    assert np.all(np.diff(dataset.rows()) > 0)


def test_rows_that_are_written_a_group_at_a_time_give_the_whole_tables_bytes(tmp_path, monkeypatch):
    """In the order of their tars, and in a random order, which is that of the keys' hashes."""
    monkeypatch.setattr("unic_pipe.pipeline.samples.keys.GROUP_ROWS", 7)
    monkeypatch.setattr("unic_pipe.pipeline.samples.segments.GROUP_ROWS", 7)
    monkeypatch.setattr("unic_pipe.pipeline.samples.table.GROUP_ROWS", 7)
    tables = [
        make_rows(
            [f"{n}-{k}" for k in range(n)],
            [f"{n}.tar"] * n,
            range(n),
            range(n),
            [bytes([n, *range(15)])] * n,
            [n % 3] * n,
        )
        for n in (5, 1, 11, 3)
    ]
    whole = pa.concat_tables(tables)
    hashes = [xxhash.xxh3_64_intdigest(key.encode(), seed=ORDER_SEED) for key in whole["key"].to_pylist()]
    mixed = whole.take(np.argsort(np.array(hashes, np.uint64), kind="stable"))
    in_order = named(map(Packed, tables), lambda table: one_array(table["key"]))
    for expected, rows in ((whole, in_order), (mixed, random_order(lambda: tables, 20))):
        segment = make_segment(rows, [], 4, (), tmp_path / "segment")
        numbered = expected.add_column(0, pa.field("row", pa.int64(), nullable=False), pa.array(range(20), pa.int64()))
        assert (tmp_path / "segment").read_bytes() == to_parquet(numbered.select(INDEX_COLUMNS))
        assert segment.file_digest == fast_hash((tmp_path / "segment").read_bytes())
        assert segment.rows_digest == rows_digest(one_array(expected["key"]), hashes_of(one_array(expected["xxh3"])))


def test_kept_digests_of_blocks_are_those_of_the_rows_or_not_used(shards):
    dataset = index(shards("t", [0, 1]))
    kept = dataset.store.root / f"{dataset.manifest.segments[0].file}.blocks"
    content = kept.read_bytes()

    def digests():
        again = open_dataset(dataset.store, dataset.roots)
        return [again.block_digest(block) for block in range(again.blocks)]

    known = digests()
    assert bytes.fromhex("".join(known)) == content[48:]
    for other in (content[:-1], content[:60] + bytes([content[60] ^ 1]) + content[61:], b""):
        kept.write_bytes(other)
        assert digests() == known
    kept.unlink()
    assert digests() == known
