"""A feature folder under damage: what is wrong is named, never read, and made again alone."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from small_cache import BLOCKS, DIGESTS, TOKENS, Rows, check_reads, contents, extract, write_probe

from unic_pipe.pipeline.cache.layout import folded_key, record_key
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.cache.verify import verify_folder
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.errors import StageError

FLIPS = 500
"""Of a folder with loose records, and as many of one with folded records."""


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
