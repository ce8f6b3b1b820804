"""A feature folder from preparation to reading: commits, records, folding, coverage, statistics, the ledger.

Legend: N rows of a block, P tokens, D dimensions.
"""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from builders import bad_rows, encoder_definition, feature_definition, feature_manifest

from unic_pipe.pipeline.cache.commit import commit_unit, prepare_view
from unic_pipe.pipeline.cache.folded import Entry, folded_bytes
from unic_pipe.pipeline.cache.layout import folded_key, record_key
from unic_pipe.pipeline.cache.ledger import write_ledger
from unic_pipe.pipeline.cache.moments import Moments
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.cache.statistics import merge_statistics, standardization
from unic_pipe.pipeline.cache.verify import verify_folder
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.features import (
    FeatureManifest,
    FileEntry,
    TokenStatistics,
    UnitRecord,
)

CLS, PATCH, GRID, BLOCK_ROWS = 5, 4, (2, 3), 64
END_ROW = 2 * BLOCK_ROWS + 10


def manifest(codec: str = "float16", seed: int = 0) -> FeatureManifest:
    encoder = encoder_definition(CLS, PATCH, GRID, weights=f"random:{seed}")
    return feature_manifest(feature_definition(encoder, BLOCK_ROWS, codec))


def rows_digest(block: int) -> str:
    return hashlib.sha256(str(block).encode()).hexdigest()


ROWS = [rows_digest(b) for b in range(3)]


def features(view: int, token: str, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and validity of a unit: dimension 0 constant, one invalid row in block 1, block 2 partial."""
    count = min(BLOCK_ROWS, END_ROW - block * BLOCK_ROWS)
    shape = (count, CLS) if token == "cls" else (count, GRID[0] * GRID[1], PATCH)
    rng = np.random.default_rng([view, token == "cls", block])
    values = rng.normal(2, 3, shape).astype(np.float32)
    values[..., 0] = 0.25
    valid_N = np.ones(count, bool)
    if block == 1:
        valid_N[7] = False
        values[7] = np.nan
    return values, valid_N


def commit(folder: FeatureFolder, view: int, token: str, block: int) -> UnitRecord:
    values, valid_N = features(view, token, block)
    return commit_unit(folder, view, token, block, values, valid_N, bad_rows(valid_N), rows_digest=ROWS[block], batch=8)


def new_folder(path, codec: str = "float16") -> FeatureFolder:
    folder = FeatureFolder(LocalStore(path))
    folder.create(manifest(codec))
    for token in ("cls", "patch"):
        prepare_view(folder, 0, token, END_ROW)
    return folder


def full_folder(path, codec: str = "float16", order=(0, 1, 2), fold: bool = True) -> FeatureFolder:
    folder = new_folder(path, codec)
    for token in ("cls", "patch"):
        for block in order:
            commit(folder, 0, token, block)
        if fold:
            folder.fold(0, token)
    write_ledger(folder)
    return folder


def contents(path) -> dict[str, bytes]:
    store = LocalStore(path)
    return {key: store.get(key) for key in store.keys()}  # noqa: SIM118


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_what_was_committed_is_read_back(tmp_path, codec):
    full_folder(tmp_path / "f", codec)
    cache = FeatureCache.open(tmp_path / "f")
    for token in ("cls", "patch"):
        for block in range(3):
            values, valid_N = features(0, token, block)
            got = cache.read_block(0, token, block, rows_digest=ROWS[block])
            assert np.array_equal(got.valid, valid_N)
            assert np.array_equal(cache.valid(0, token, block), valid_N)
            assert np.isnan(got.values[~valid_N]).all()
            assert got.values[valid_N] == pytest.approx(values[valid_N], abs=0.05)
            assert (got.values[valid_N][..., 0] == 0.25).all()
            raw = cache.read_block_raw(0, token, block)
            folded = raw.stored.astype(np.float32) * raw.scale_D + raw.offset_D
            assert folded[valid_N] == pytest.approx(got.values[valid_N], rel=1e-6)


def test_plain_zarr_reads_the_same_features(tmp_path):
    for codec in ("float16", "int8"):
        full_folder(tmp_path / codec, codec)
        cache = FeatureCache.open(tmp_path / codec)
        group = zarr.open_group(tmp_path / codec, mode="r")
        about = group.attrs["unic_pipe"]
        assert (about["digest"], about["codec"]["name"]) == (cache.digest, codec)
        for token in ("cls", "patch"):
            array = group["view-000"][token]
            assert array.shape[0] == END_ROW
            values = array[:].astype(np.float32)
            if codec == "int8":
                affine = group["view-000"][f"{token}_affine"][:]
                block = np.arange(END_ROW) // about["block_rows"]
                ones = (1,) * (values.ndim - 2)
                scale, offset = (affine[block, i].reshape(END_ROW, *ones, -1) for i in (0, 1))
                values = np.where(array[:] == -128, np.nan, values * scale + offset)
            ours = np.concatenate([cache.read_block(0, token, b).values for b in range(3)])
            assert np.array_equal(values, ours, equal_nan=True)


def test_the_order_of_work_and_of_folding_changes_no_byte(tmp_path):
    full_folder(tmp_path / "a")
    folder = new_folder(tmp_path / "b")
    for block in (2, 0, 1):
        for token in ("patch", "cls"):
            commit(folder, 0, token, block)
            folder.fold(0, token)
    commit(folder, 0, "cls", 1)
    folder.fold(0, "cls")
    write_ledger(folder)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_coverage_asks_for_the_right_rows_and_definition(tmp_path):
    folder = full_folder(tmp_path / "f", fold=False)
    assert folder.covered(0, "cls", ROWS).tolist() == [True] * 3
    assert folder.covered(0, "cls", [ROWS[0], "f" * 64, ROWS[2]]).tolist() == [True, False, True]
    assert folder.covered(1, "cls", ROWS).tolist() == [False] * 3
    folder.fold(0, "cls")
    assert folder.covered(0, "cls", [*ROWS, "a" * 64]).tolist() == [True, True, True, False]
    other = manifest(seed=1)
    folder.store.put("manifest.json", other.to_bytes())
    assert not FeatureFolder(folder.store).covered(0, "cls", ROWS).any()


def test_folding_keeps_every_field_and_the_statistics(tmp_path):
    folder = full_folder(tmp_path / "f", fold=False)
    before = folder.records(0, "patch")
    statistics = folder.statistics(0, "patch", before)
    folder.fold(0, "patch")
    assert not folder.loose_blocks(0, "patch")
    assert not folder.loose_blocks(0, "patch", ".stats")
    again = FeatureFolder(folder.store)
    assert again.records(0, "patch") == before
    assert again.statistics(0, "patch", before) == statistics
    table = pq.read_table(tmp_path / "f" / folded_key(0, "patch"))
    assert table.column("block").to_pylist() == [0, 1, 2]
    assert table.column("bad").to_pylist() == [0, 1, 0]


def test_a_commit_is_idempotent_and_a_changed_one_replaces_the_unit(tmp_path):
    folder = full_folder(tmp_path / "f")
    before = contents(tmp_path / "f")
    first = folder.record(0, "cls", 1)
    assert commit(folder, 0, "cls", 1) == first
    folder.fold(0, "cls")
    assert contents(tmp_path / "f") == before
    values, valid_N = features(0, "cls", 1)
    commit_unit(folder, 0, "cls", 1, values + 1, valid_N, rows_digest=ROWS[1], batch=8)
    folder.fold(0, "cls")
    got = FeatureCache.open(tmp_path / "f").read_block(0, "cls", 1)
    assert got.values[valid_N] == pytest.approx(values[valid_N] + 1, abs=0.05)
    assert verify_folder(tmp_path / "f")[0] == []


def test_growing_a_dataset_keeps_shards_and_never_shrinks_arrays(tmp_path):
    folder = full_folder(tmp_path / "f")
    before = contents(tmp_path / "f")
    for token in ("cls", "patch"):
        prepare_view(folder, 0, token, END_ROW)
    assert contents(tmp_path / "f") == before
    for token in ("cls", "patch"):
        prepare_view(folder, 0, token, 4 * BLOCK_ROWS)
        prepare_view(folder, 0, token, END_ROW)
    after = contents(tmp_path / "f")
    changed = {key for key in after if after[key] != before.get(key)}
    assert changed == {"view-000/cls/zarr.json", "view-000/patch/zarr.json"}
    array = zarr.open_group(tmp_path / "f", mode="r")["view-000"]["cls"]
    assert array.shape == (4 * BLOCK_ROWS, CLS)
    assert np.isnan(array[END_ROW:]).all()
    assert verify_folder(tmp_path / "f")[0] == []


def test_what_is_not_there_yet_says_so(tmp_path):
    folder = new_folder(tmp_path / "train-dino-00000000")
    commit(folder, 0, "cls", 0)
    cache = FeatureCache.open(tmp_path / "train-dino-00000000")
    with pytest.raises(StageError, match=r"not extracted yet: view 0, patch, block 7.*\n.*unic-pipe extract"):
        cache.read_block(0, "patch", 7)
    commit(folder, 0, "cls", 1)
    assert cache.read_block(0, "cls", 1).values.shape == (BLOCK_ROWS, CLS)
    with pytest.raises(StageError, match="other samples"):
        cache.read_block(0, "cls", 1, rows_digest=ROWS[0])
    with pytest.raises(UserError, match=r"No feature folder(.|\n)*train-dino-00000000"):
        FeatureCache.open(tmp_path / "train-dni")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match="no manifest"):
        FeatureCache.open(tmp_path / "empty")


def test_a_folder_of_another_definition_is_refused(tmp_path):
    folder = new_folder(tmp_path / "f")
    assert folder.create(manifest()) == manifest()
    with pytest.raises(StageError, match="another definition"):
        FeatureFolder(folder.store).create(manifest(seed=1))


def test_wrong_values_are_programming_errors(tmp_path):
    folder = new_folder(tmp_path / "f")
    values, valid_N = features(0, "cls", 1)
    for wrong, mask in (
        (values[:, :-1], valid_N),
        (values.astype(np.float64), valid_N),
        (values, valid_N[:-1]),
        (values, np.ones_like(valid_N)),
        (np.repeat(values, 2, axis=0), np.repeat(valid_N, 2)),
    ):
        with pytest.raises(ValueError, match=r"."):
            commit_unit(folder, 0, "cls", 1, wrong, mask, rows_digest=ROWS[1], batch=8)
    assert folder.record(0, "cls", 1) is None


def test_values_beyond_float16_name_the_unit(tmp_path):
    folder = new_folder(tmp_path / "f")
    values, valid_N = features(0, "cls", 0)
    values[3, 2] = 7e4
    with pytest.raises(StageError, match="dino, view 0, cls, block 0") as caught:
        commit_unit(folder, 0, "cls", 0, values, valid_N, rows_digest=ROWS[0], batch=8)
    assert "int8" in caught.value.hint


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_statistics_are_those_of_the_stored_values(tmp_path, codec):
    folder = full_folder(tmp_path / "a", codec)
    document = merge_statistics(folder, [0], 3)
    cache = FeatureCache.open(tmp_path / "a")
    for token, found in (("cls", document.cls), ("patch", document.patch)):
        blocks = [cache.read_block(0, token, b) for b in range(3)]
        rows = np.concatenate([b.values[b.valid] for b in blocks]).astype(np.float64)
        x_MD = rows.reshape(-1, rows.shape[-1])
        assert found.count == len(x_MD)
        assert np.allclose(found.mean, x_MD.mean(axis=0), rtol=1e-13)
        assert np.allclose(found.m2, ((x_MD - x_MD.mean(axis=0)) ** 2).sum(axis=0), rtol=1e-12, atol=0)
        assert found.m2[0] == 0
    other = full_folder(tmp_path / "b", codec, order=(2, 1, 0), fold=False)
    assert merge_statistics(other, [0], 3) == document
    assert merge_statistics(folder, [0], 2, tokens=["cls"]).patch is None
    with pytest.raises(StageError, match="not extracted yet"):
        merge_statistics(folder, [0], 4)


def test_standardization_has_floors():
    m2 = tuple(float(v) for v in (0.0, 4 * 0.001**2, 4.0, 16.0, 16.0))
    mean_D, std_D = standardization(TokenStatistics(count=4, mean=(1.0,) * 5, m2=m2))
    assert mean_D.tolist() == [1.0] * 5
    assert std_D == pytest.approx([0.01, 0.01, 1.0, 2.0, 2.0])
    assert standardization(TokenStatistics(count=4, mean=(0.0,), m2=(0.0,)))[1].tolist() == [1e-6]
    with pytest.raises(UserError):
        standardization(TokenStatistics(count=0, mean=(0.0,), m2=(0.0,)))


def test_the_ledger_lists_every_unusable_row(tmp_path):
    full_folder(tmp_path / "f")
    rows = pq.read_table(tmp_path / "f" / "ledger.parquet").to_pylist()
    expected = {"key": "k7", "row": BLOCK_ROWS + 7, "view": 0, "reason": "undecodable: cut off"}
    assert rows == [expected | {"token": "cls"}, expected | {"token": "patch"}]


def test_a_cache_pickles_and_works_in_a_fresh_process(tmp_path):
    full_folder(tmp_path / "f", "int8")
    cache = FeatureCache.open(tmp_path / "f")
    assert "dino" in repr(cache)
    assert "3 blocks" in repr(cache)
    (tmp_path / "cache.pickle").write_bytes(pickle.dumps(cache))
    code = (
        "import pickle, sys; from pathlib import Path\n"
        "cache = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "assert 'torch' not in sys.modules\n"
        "print(repr(float(cache.read_block(0, 'patch', 2).values.sum())))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cache.pickle")], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == repr(float(cache.read_block(0, "patch", 2).values.sum()))


def test_planning_imports_neither_torch_nor_zarr():
    code = "import sys, unic_pipe.pipeline.cache.records; assert not {'torch', 'zarr', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_coverage_of_five_thousand_blocks_is_quick(tmp_path):
    folder = new_folder(tmp_path / "f")
    digest, dims = folder.required_manifest().digest, 768
    rows = [rows_digest(b) for b in range(5000)]
    statistics = Moments(1, np.arange(dims, dtype=float), np.ones(dims)).to_bytes()
    planes = [(view, token) for view in (0, 1) for token in ("cls", "patch")]
    for view, token in planes:
        entries = {}
        for block in range(5000):
            stats = FileEntry(path=f"{block}.stats", size=len(statistics), xxh3="0" * 32)
            record = UnitRecord(
                definition=digest, view=view, token=token, block=block, rows=rows[block], valid="f" * 16, count=64,
                files=(stats,), batch=8,
            )  # fmt: skip
            entries[block] = Entry(record.to_bytes(), statistics)
        (tmp_path / "f" / folded_key(view, token)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / folded_key(view, token)).write_bytes(folded_bytes(entries))
    folder = FeatureFolder(folder.store)
    best = min(_seconds(lambda: [FeatureFolder(folder.store).covered(v, t, rows) for v, t in planes]) for _ in range(3))
    assert all(folder.covered(v, t, rows).all() for v, t in planes)
    assert best < 1.0, f"{best:.2f} s; 0.3 s on an idle machine"


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_records_in_another_place_are_not_believed(tmp_path):
    folder = full_folder(tmp_path / "f", fold=False)
    root = tmp_path / "f"
    zero, one = root / record_key(0, "cls", 0), root / record_key(0, "cls", 1)
    a, b = zero.read_bytes(), one.read_bytes()
    zero.write_bytes(b)
    one.write_bytes(a)
    assert FeatureFolder(folder.store).covered(0, "cls", ROWS).tolist() == [False, False, True]
