"""A feature folder under kills and races: every state that a kill can leave, and processes that do the same work."""

from __future__ import annotations

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
from small_cache import (
    BLOCKS,
    DIGESTS,
    END_ROW,
    TOKENS,
    Rows,
    check_reads,
    commit,
    contents,
    extract,
    features,
    keep_statistics,
    manifest,
)

from unic_pipe.pipeline.cache.commit import prepare_view
from unic_pipe.pipeline.cache.layout import folded_key, record_key, statistics_key
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.cache.verify import verify_folder
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.errors import StageError


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
