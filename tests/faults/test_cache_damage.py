"""A feature folder under kills, damage and races: what is wrong is named, never read, and made again alone.

Legend: N rows of a block, P tokens, D dimensions.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import bad_rows, encoder_definition, feature_definition, feature_manifest

from unic_pipe.pipeline.cache.commit import commit_unit, prepare_view
from unic_pipe.pipeline.cache.layout import folded_key, record_key, statistics_key
from unic_pipe.pipeline.cache.ledger import write_ledger
from unic_pipe.pipeline.cache.losses import write_losses
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.cache.statistics import merge_statistics
from unic_pipe.pipeline.cache.verify import verify_folder
from unic_pipe.pipeline.storage import LocalStore, sha256
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.errors import StageError, UnicPipeError
from unic_pipe.schemas.features import (
    FeatureManifest,
)
from unic_pipe.schemas.views import Probe, ProbesDocument, ViewParameters

CLS, PATCH, GRID, BLOCK_ROWS, BLOCKS = 3, 2, (2, 2), 4, 3
FLIPS = 500
"""Of a folder with loose records, and as many of one with folded records."""
END_ROW = BLOCKS * BLOCK_ROWS - 1
TOKENS = ("cls", "patch")


class Rows:
    """A dataset as verify sees it."""

    blocks = BLOCKS

    def block_digest(self, block: int) -> str:
        return hashlib.sha256(str(block).encode()).hexdigest()


DIGESTS = [Rows().block_digest(b) for b in range(BLOCKS)]


def manifest() -> FeatureManifest:
    return feature_manifest(feature_definition(encoder_definition(CLS, PATCH, GRID), BLOCK_ROWS, "int8"))


def features(token: str, block: int) -> np.ndarray:
    count = min(BLOCK_ROWS, END_ROW - block * BLOCK_ROWS)
    shape = (count, CLS) if token == "cls" else (count, GRID[0] * GRID[1], PATCH)
    return np.random.default_rng([token == "cls", block]).normal(size=shape).astype(np.float32)


def commit(folder: FeatureFolder, token: str, block: int, change: float = 0.0) -> None:
    values = features(token, block) + np.float32(change)
    valid_N = np.arange(len(values)) != (1 if block == 1 else 99)
    commit_unit(folder, 0, token, block, values, valid_N, bad_rows(valid_N), rows_digest=DIGESTS[block], batch=8)


def extract(path, fold: bool = True) -> list[tuple[str, int]]:
    """What the extract stage does, with given features: makes what is not covered, and says what that was."""
    folder = FeatureFolder(LocalStore(path))
    folder.create(manifest())
    made = []
    for token in TOKENS:
        prepare_view(folder, 0, token, END_ROW)
        for block in np.flatnonzero(~folder.covered(0, token, DIGESTS)).tolist():
            commit(folder, token, block)
            made.append((token, block))
        if fold:
            folder.fold(0, token)
    write_ledger(folder)
    write_losses(folder)
    keep_statistics(folder)
    return made


def keep_statistics(folder) -> None:
    """As earlier versions did."""
    document = merge_statistics(folder, [0], BLOCKS)
    folder.store.put(f"statistics/{digest_of(document)[:8]}.json", document.to_bytes())


def write_probe(path) -> None:
    store = LocalStore(path)
    store.put("probes/view-000-abcd.png", b"a picture")
    parameters = ViewParameters(0, 0, 8, 8, False, (), False, None, False)
    probe = Probe(key="k", parameters=parameters, file="probes/view-000-abcd.png", png=sha256(b"a picture"))
    document = ProbesDocument(recipe="0" * 64, seed=0, view=0, size=8, probes=(probe,))
    store.put("probes/view-000.json", document.to_bytes())


def contents(path) -> dict[str, bytes]:
    store = LocalStore(path)
    keys = [k for k in store.keys() if not k.startswith("damaged/")]  # noqa: SIM118
    return {key: store.get(key) for key in keys}


def check_reads(path) -> None:
    """Every block reads as what was committed, or raises an error for people; never anything else."""
    try:
        cache = FeatureCache.open(path)
    except UnicPipeError:
        return
    for token in TOKENS:
        for block in range(BLOCKS):
            try:
                got = cache.read_block(0, token, block, rows_digest=DIGESTS[block])
            except StageError as error:
                assert "unic-pipe" in str(error)  # noqa: PT017
                continue
            expected = features(token, block)
            assert got.values[got.valid] == pytest.approx(expected[got.valid], abs=0.05)


@pytest.fixture(scope="module", params=["loose", "folded"])
def finished(request, tmp_path_factory):
    """A finished folder that nobody may change, with its records loose or folded."""
    path = tmp_path_factory.mktemp("cache") / "features"
    assert len(extract(path, fold=request.param == "folded")) == len(TOKENS) * BLOCKS
    write_probe(path)
    return path


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "features", ignore=shutil.ignore_patterns(".tmp"))


def unit_of(key: str) -> tuple[str, int] | None:
    """(token, block) of a file that belongs to one unit."""
    parts = key.split("/")
    if parts[0] == "records" and len(parts) == 4:
        return parts[2], int(parts[3].split(".")[0])
    if parts[0].startswith("view-") and "c" in parts:
        return parts[1].removesuffix("_affine"), int(parts[3])
    return None


def test_a_whole_folder_has_no_problems(finished):
    problems, checked = verify_folder(finished, Rows(), read_only=True)
    assert problems == []
    assert checked == len(contents(finished))


def test_a_flipped_bit_in_any_file_is_named_and_repaired_alone(finished, tmp_path):
    """Random bytes of every file; then verify, extract, and the folder is what it was."""
    rng = np.random.default_rng(3)
    whole = contents(finished)
    path = shutil.copytree(finished, tmp_path / "features", ignore=shutil.ignore_patterns(".tmp"))
    for key, raw in whole.items():
        for position in {len(raw) - 1, *rng.integers(len(raw), size=1 if unit_of(key) else 2).tolist()}:
            damaged = bytearray(raw)
            damaged[position] ^= 1 << int(rng.integers(8))
            (path / key).write_bytes(damaged)
            check_reads(path)
            problems, _ = verify_folder(path, Rows(), read_only=True)
            assert problems, f"byte {position} of {key}"
            unit = unit_of(key)
            if unit is not None:
                assert {(p.token, p.block) for p in problems} == {unit}
            elif not key.startswith("records/"):
                assert [p.path for p in problems] == [key]
            assert verify_folder(path, Rows())[0] == problems
            made = extract(path, fold=(path / folded_key(0, "cls")).exists())
            if unit is not None:
                assert made == [unit], f"byte {position} of {key}"
            else:
                assert len(made) <= 1, f"byte {position} of {key}"
                assert {(p.token, p.block) for p in problems if p.block is not None} == set(made)
            if key.startswith("probes/"):
                write_probe(path)
            assert verify_folder(path, Rows(), read_only=True)[0] == []
            after = contents(path)
            assert after == whole, f"byte {position} of {key}: {[k for k in whole if whole[k] != after.get(k)]}"


def test_a_thousand_flipped_bits(finished, tmp_path):
    """Single random bits over all files: every one is found, and none is ever returned as data."""
    rng = np.random.default_rng(4)
    whole = contents(finished)
    path = shutil.copytree(finished, tmp_path / "features", ignore=shutil.ignore_patterns(".tmp"))
    keys = sorted(whole)
    missed = []
    for flip in range(FLIPS):
        key = keys[flip % len(keys)]
        damaged = bytearray(whole[key])
        place, bit = int(rng.integers(len(damaged))), int(rng.integers(8))
        damaged[place] ^= 1 << bit
        (path / key).write_bytes(damaged)
        check_reads(path)
        if not verify_folder(path, Rows(), read_only=True)[0]:
            missed.append((key, place, bit))
        (path / key).write_bytes(whole[key])
    assert missed == []
    assert verify_folder(path, Rows(), read_only=True)[0] == []


def test_a_damaged_table_costs_at_most_the_unit_that_was_hit(tmp_path):
    path = tmp_path / "features"
    extract(path)
    table = path / folded_key(0, "patch")
    raw = table.read_bytes()
    for position in range(0, len(raw), 31):
        table.write_bytes(raw[:position] + bytes([raw[position] ^ 0x10]) + raw[position + 1 :])
        folder = FeatureFolder(LocalStore(path))
        assert folder.covered(0, "patch", DIGESTS).sum() >= BLOCKS - 1
        problems, _ = verify_folder(path, read_only=True)
        assert [p.path for p in problems if p.path == folded_key(0, "patch") or p.block is not None]
    table.write_bytes(raw)
    assert verify_folder(path, Rows(), read_only=True)[0] == []


def test_missing_emptied_cut_and_swapped_shards(copy):
    shards = [copy / "view-000/patch/c" / str(b) / "0/0" for b in range(BLOCKS)]
    raws = [s.read_bytes() for s in shards]
    affine = copy / "view-000/patch_affine/c/0/0/0"
    cases = {
        "missing": lambda: shards[0].unlink(),
        "size": lambda: shards[0].write_bytes(b""),
        "cut": lambda: shards[0].write_bytes(raws[0][:-1]),
        "affine": lambda: affine.write_bytes((copy / "view-000/patch_affine/c/1/0/0").read_bytes()),
    }
    for name, harm in cases.items():
        harm()
        with pytest.raises(StageError, match=r"Damaged: .*dino, view 0, patch, block 0(.|\n)*unic-pipe verify"):
            FeatureCache.open(copy).read_block(0, "patch", 0)
        problems, _ = verify_folder(copy, Rows())
        assert [(p.token, p.block) for p in problems] == [("patch", 0)], name
        assert extract(copy) == [("patch", 0)]
    shards[0].write_bytes(raws[1])
    shards[1].write_bytes(raws[0])
    check_reads(copy)
    assert {p.block for p in verify_folder(copy, Rows())[0]} == {0, 1}
    assert extract(copy) == [("patch", 0), ("patch", 1)]
    assert [s.read_bytes() for s in shards] == raws


def test_an_edited_record_and_records_that_changed_places(tmp_path):
    path = tmp_path / "features"
    extract(path, fold=False)
    zero, two = path / record_key(0, "cls", 0), path / record_key(0, "cls", 2)
    zero.write_bytes(zero.read_bytes().replace(b'"batch": 8', b'"batch": 4'))
    a, b = two.read_bytes(), (path / record_key(0, "patch", 2)).read_bytes()
    two.write_bytes(b)
    (path / record_key(0, "patch", 2)).write_bytes(a)
    check_reads(path)
    problems, _ = verify_folder(path, Rows())
    assert {(p.token, p.block, p.kind) for p in problems} == {
        ("cls", 0, "record"), ("cls", 2, "record"), ("patch", 2, "record"),
    }  # fmt: skip
    assert sorted(p.name for p in (path / "damaged").rglob("*.json")) == ["000000.json", "000002.json", "000002.json"]
    assert extract(path) == [("cls", 0), ("cls", 2), ("patch", 2)]


def test_swapped_tables_are_not_believed(copy):
    if not (copy / folded_key(0, "cls")).exists():
        extract(copy)
    a, b = copy / folded_key(0, "cls"), copy / folded_key(0, "patch")
    raw_a, raw_b = a.read_bytes(), b.read_bytes()
    a.write_bytes(raw_b)
    b.write_bytes(raw_a)
    check_reads(copy)
    assert not FeatureFolder(LocalStore(copy)).covered(0, "cls", DIGESTS).any()
    assert {p.path for p in verify_folder(copy, Rows(), read_only=True)[0]} >= {folded_key(0, "cls")}


def test_read_only_changes_nothing(copy):
    (copy / "view-000/cls/c/1/0").write_bytes(b"?")
    (copy / "zarr.json").write_bytes(b"{}")
    (copy / "ledger.parquet").write_bytes(b"")
    before = contents(copy)
    assert len(verify_folder(copy, Rows(), read_only=True)[0]) == 3
    assert contents(copy) == before
    assert not (copy / "damaged").exists()


def test_a_missing_manifest_and_files_of_others(copy):
    (copy / "manifest.json").unlink()
    (copy / "notes.txt").write_text("mine")
    kinds = {p.path: p.kind for p in verify_folder(copy, Rows(), read_only=True)[0]}
    assert kinds == {"manifest.json": "missing", "notes.txt": "unexpected"}


def test_every_state_in_which_a_kill_can_leave_a_unit(tmp_path):
    """Files as they stand after each step of a commit: the unit is not finished, and running again finishes it."""
    whole = tmp_path / "whole"
    extract(whole)
    loose = tmp_path / "loose"
    extract(loose, fold=False)
    steps = ["view-000/cls/c/1/0", "view-000/cls_affine/c/1/0/0", statistics_key(0, "cls", 1)]
    for done in range(len(steps) + 1):
        path = shutil.copytree(loose, tmp_path / f"killed-{done}")
        for key in [*steps[done:], record_key(0, "cls", 1)]:
            (path / key).unlink()
        (path / ".tmp").mkdir(exist_ok=True)
        (path / ".tmp" / "elsewhere@1-0").write_bytes(b"half a sha")
        with pytest.raises(StageError, match="not extracted yet"):
            FeatureCache.open(path).read_block(0, "cls", 1)
        assert verify_folder(path, Rows(), read_only=True)[0] == []
        assert extract(path) == [("cls", 1)]
        assert contents(path) == contents(whole)
    stale = shutil.copytree(loose, tmp_path / "stale")
    folder = FeatureFolder(LocalStore(stale))
    old = (stale / "view-000/cls_affine/c/0/0/0").read_bytes()
    commit(folder, "cls", 0, change=1.0)
    (stale / "view-000/cls_affine/c/0/0/0").write_bytes(old)
    with pytest.raises(StageError, match="Damaged"):
        FeatureCache.open(stale).read_block(0, "cls", 0)
    verify_folder(stale, Rows())
    assert extract(stale) == [("cls", 0)]
    assert contents(stale) == contents(whole)


def test_every_state_in_which_a_kill_can_leave_a_fold(tmp_path):
    """The new table is there and any number of loose files are gone."""
    loose, whole = tmp_path / "loose", tmp_path / "whole"
    extract(loose, fold=False)
    extract(whole)
    files = [
        key for token in TOKENS for b in range(BLOCKS) for key in (statistics_key(0, token, b), record_key(0, token, b))
    ]
    for gone in range(0, len(files) + 1, 3):
        path = shutil.copytree(loose, tmp_path / f"killed-{gone}")
        for token in TOKENS:
            shutil.copy(whole / folded_key(0, token), path / folded_key(0, token))
        for key in files[:gone]:
            (path / key).unlink()
        assert verify_folder(path, Rows(), read_only=True)[0] == []
        keep_statistics(FeatureFolder(LocalStore(path)))
        assert extract(path) == []
        assert contents(path) == contents(whole)


WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import small_cache
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.storage import LocalStore
folder = FeatureFolder(LocalStore(Path(sys.argv[2])))
print("ready", flush=True)
sys.stdin.readline()
for turn in range(int(sys.argv[4])):
    for token in small_cache.TOKENS:
        for block in range(small_cache.BLOCKS):
            small_cache.commit(folder, token, block, float(sys.argv[3]))
        folder.fold(0, token)
"""


def start(path, change: float, turns: int) -> subprocess.Popen:
    arguments = [sys.executable, "-c", WORKER, str(Path(__file__).parents[1]), str(path), str(change), str(turns)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(workers) -> None:
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()


def test_two_processes_that_do_the_same_work(tmp_path):
    extract(tmp_path / "whole")
    path = tmp_path / "shared"
    folder = FeatureFolder(LocalStore(path))
    folder.create(manifest())
    for token in TOKENS:
        prepare_view(folder, 0, token, END_ROW)
    workers = [start(path, 0.0, 3), start(path, 0.0, 3)]
    go(workers)
    assert [w.wait(60) for w in workers] == [0, 0]
    assert extract(path) == []
    assert contents(path) == contents(tmp_path / "whole")


def test_two_processes_that_disagree_leave_no_unit_that_lies(tmp_path):
    """Other hardware may give other bytes: whatever wins, shard and record belong together or the damage shows."""
    path = tmp_path / "shared"
    extract(path)
    workers = [start(path, 0.0, 4), start(path, 1.0, 4)]
    go(workers)
    # Either may give up where the other keeps changing what it wrote.
    assert all(w.wait(60) in (0, 1) for w in workers)
    verify_folder(path, Rows())
    extract(path)
    assert verify_folder(path, Rows(), read_only=True)[0] == []
    cache = FeatureCache.open(path)
    for token in TOKENS:
        for block in range(BLOCKS):
            got = cache.read_block(0, token, block)
            shift = got.values[got.valid] - features(token, block)[got.valid]
            assert np.allclose(shift, 0, atol=0.05) or np.allclose(shift, 1, atol=0.05)


def test_killed_at_random_moments_nothing_is_lost(tmp_path):
    extract(tmp_path / "whole")
    path = tmp_path / "killed"
    folder = FeatureFolder(LocalStore(path))
    folder.create(manifest())
    for token in TOKENS:
        prepare_view(folder, 0, token, END_ROW)
    rng = np.random.default_rng(5)
    for _ in range(4):
        worker = start(path, 0.0, 50)
        go([worker])
        time.sleep(float(rng.uniform(0.005, 0.3)))
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(60)
        check_reads(path)
        assert verify_folder(path, Rows(), read_only=True)[0] == []
    folder.store.sweep()
    extract(path)
    assert contents(path) == contents(tmp_path / "whole")


def test_the_folded_table_stays_readable_by_others_while_it_is_folded(tmp_path):
    path = tmp_path / "features"
    extract(path)
    worker = start(path, 0.0, 5)
    go([worker])
    folder = FeatureFolder(LocalStore(path))
    while worker.poll() is None:
        assert folder.covered(0, "cls", DIGESTS).all()
        assert pq.read_table(path / folded_key(0, "cls")).num_rows == BLOCKS
    assert worker.returncode == 0
