"""Calibrations under races and damage: one wins, a flipped bit is named, never read, and repaired to the same bytes.

Legend: N rows of a block, P tokens, D dimensions.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from builders import encoder_definition, feature_definition, feature_manifest

from unic_pipe.pipeline.cache.calibration import Proposal, bound_codec, ensure_calibration, propose, read_document
from unic_pipe.pipeline.cache.commit import commit_unit, prepare_view
from unic_pipe.pipeline.cache.fitting import Sample, fit
from unic_pipe.pipeline.cache.layout import calibration_key, escape_key
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.cache.verify import verify_folder
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.features import (
    CalibrationDocument,
    CodecDefinition,
    CodecTrial,
    FeatureManifest,
)
from unic_pipe.schemas.recipes import UNIC

GRID, D, BLOCK_ROWS, BLOCKS = (2, 2), 8, 64, 2
TOKENS = ("cls", "patch")
SHAPES = {"cls": (D,), "patch": (4, D)}
DIGESTS = [hashlib.sha256(str(block).encode()).hexdigest() for block in range(BLOCKS)]


def manifest() -> FeatureManifest:
    klt = CodecDefinition(name="klt", snr_db=15.0)
    return feature_manifest(feature_definition(encoder_definition(D, D, GRID), BLOCK_ROWS, klt, recipe=UNIC))


def features(token: str, seed: int, rows: int = BLOCK_ROWS) -> np.ndarray:
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(D, D))
    return (np.random.default_rng(seed).normal(size=(rows, *SHAPES[token])) @ mixing).astype(np.float32)


def proposal(token: str, seed: int = 100) -> Proposal:
    transform = fit(Sample.of(features(token, seed, 256)), SHAPES[token], 15.0, transform=True)
    document = CalibrationDocument(
        definition=manifest().digest, token=token, codec="klt", step=transform.step, rounding=transform.rounding,
        rows=256, rows_digest="0" * 64, trials=(CodecTrial(codec="klt", bits_per_value=2.0, snr_db=15.0),),
    )  # fmt: skip
    return propose(document, transform)


def block_values(folder: FeatureFolder, token: str, block: int) -> np.ndarray:
    """Features of a block; one value of the first with patches needs the escape table."""
    values = features(token, block)
    if (token, block) == ("patch", 0):
        transform = bound_codec(folder, token).transform
        spatial = np.ones((1, 1)) if transform.spatial_PP is None else transform.spatial_PP
        direction = np.outer(spatial[0], transform.basis_DD[0]) * transform.scale_D
        values[3] += (40_000 * transform.step * direction).reshape(values[3].shape).astype(np.float32)
    return values


def extract(path: Path, seed: int = 100) -> list[tuple[str, int]]:
    """What the extract stage does: calibrate, then make what is not covered."""
    folder = FeatureFolder(LocalStore(path))
    folder.create(manifest())
    made = []
    for token in TOKENS:
        ensure_calibration(folder, token, lambda token=token: proposal(token, seed))
        prepare_view(folder, 0, token, BLOCKS * BLOCK_ROWS)
        for block in np.flatnonzero(~folder.covered(0, token, DIGESTS)).tolist():
            values = block_values(folder, token, block)
            commit_unit(
                folder, 0, token, block, values, np.ones(len(values), bool), rows_digest=DIGESTS[block], batch=8
            )
            made.append((token, block))
        folder.fold(0, token)
    return made


def contents(path: Path) -> dict[str, bytes]:
    store = LocalStore(path)
    return {key: store.get(key) for key in store.keys() if not key.startswith("damaged/")}  # noqa: SIM118


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "features"
    assert len(extract(path)) == len(TOKENS) * BLOCKS
    return path


@pytest.fixture(scope="module")
def expected(finished):
    cache = FeatureCache.open(finished)
    return {(t, b): cache.read_block(0, t, b).values for t in TOKENS for b in range(BLOCKS)}


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "features", ignore=shutil.ignore_patterns(".tmp"))


def assert_reads_are_true(path: Path, expected) -> int:
    """Every block reads as before, or raises an error for people; how many raised."""
    refused = 0
    for (token, block), values in expected.items():
        try:
            got = FeatureCache.open(path).read_block(0, token, block)
        except StageError as error:
            assert "unic-pipe" in str(error)  # noqa: PT017
            refused += 1
            continue
        assert np.array_equal(got.values, values)
    return refused


def test_a_whole_cache_reads_back_within_the_ratio(finished):
    assert verify_folder(finished, read_only=True)[0] == []
    cache = FeatureCache.open(finished)
    assert (finished / escape_key(0, "patch", 0)).is_file()
    assert not (finished / escape_key(0, "patch", 1)).exists()
    for token in TOKENS:
        assert {r.calibration for r in cache.records(0, token).values()} == {
            digest_of(read_document(cache.folder, token))
        }
        values, back = features(token, 1), cache.read_block(0, token, 1).values
        error = np.square(values - back).mean(axis=0) / np.square(values).mean(axis=0)
        assert -10 * np.log10(error.mean()) == pytest.approx(15, abs=1)


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_is_named_and_repaired_to_the_same_bytes(finished, copy, expected):
    rng = np.random.default_rng(3)
    whole = contents(finished)
    for key, raw in whole.items():
        for position in {len(raw) - 1, int(rng.integers(len(raw)))}:
            damaged = bytearray(raw)
            damaged[position] ^= 1 << int(rng.integers(8))
            (copy / key).write_bytes(damaged)
            refused = assert_reads_are_true(copy, expected)
            if key.endswith(("cls.json", "patch.json")) or "_escape" in key:
                assert refused
            problems = verify_folder(copy, read_only=True)[0]
            assert problems, f"byte {position} of {key}"
            if key.startswith("calibration/"):
                assert [p.path for p in problems] == [key]
            verify_folder(copy)
            made = extract(copy)
            assert len(made) <= 1
            assert made == [] or not key.startswith("calibration/")
            assert verify_folder(copy, read_only=True)[0] == []
            assert contents(copy) == whole, f"byte {position} of {key}"


def test_damaged_arrays_are_never_read_by_a_new_process(copy):
    """This process has them in memory; another one must refuse them."""
    document = read_document(FeatureFolder(LocalStore(copy)), "patch")
    for entry in document.files:
        if not entry.path.endswith("zarr.json"):
            raw = bytearray((copy / entry.path).read_bytes())
            raw[len(raw) // 2] ^= 4
            (copy / entry.path).write_bytes(raw)
    script = (
        "import sys; from unic_pipe.pipeline.cache.reader import FeatureCache; from unic_pipe.schemas.errors import StageError\n"
        "cache = FeatureCache.open(sys.argv[1])\n"
        "cache.read_block(0, 'cls', 0)\n"
        "try: cache.read_block(0, 'patch', 0)\n"
        "except StageError as e: print(e)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(copy)], capture_output=True, text=True, check=True)
    assert "Damaged" in ended.stdout
    assert "unic-pipe verify" in ended.stdout


def test_a_calibration_of_other_hardware_makes_its_units_again(copy):
    """The document is lost, and what is made now differs: nothing is read with the wrong axes."""
    (copy / calibration_key("patch")).unlink()
    with pytest.raises(StageError, match="missing"):
        FeatureCache.open(copy).read_block(0, "patch", 1)
    assert [p.path for p in verify_folder(copy, read_only=True)[0]] == [calibration_key("patch")]
    assert extract(copy, seed=200) == [("patch", 0), ("patch", 1)]
    assert verify_folder(copy, read_only=True)[0] == []
    back = FeatureCache.open(copy).read_block(0, "patch", 1).values
    assert back == pytest.approx(features("patch", 1), abs=4)


def test_a_lost_calibration_of_an_earlier_version_is_made_again_and_its_units_stay(copy, expected):
    """Which wrote no `shared_bits`."""
    (copy / calibration_key("patch")).unlink()

    def now():
        made = proposal("patch", 100)
        trials = tuple(trial.model_copy(update={"shared_bits": 0.25}) for trial in made.document.trials)
        return Proposal(made.document.model_copy(update={"trials": trials}), made.contents)

    folder = FeatureFolder(LocalStore(copy))
    assert ensure_calibration(folder, "patch", now)
    assert read_document(folder, "patch").trials[0].shared_bits == 0.25
    assert extract(copy) == []
    assert verify_folder(copy, read_only=True)[0] == []
    assert assert_reads_are_true(copy, expected) == 0


def test_arrays_that_differ_from_the_document_replace_it_whole(copy):
    document = read_document(FeatureFolder(LocalStore(copy)), "patch")
    (copy / document.files[1].path).write_bytes(b"damaged")
    assert extract(copy, seed=200) == [("patch", 0), ("patch", 1)]
    assert read_document(FeatureFolder(LocalStore(copy)), "patch") == proposal("patch", 200).document
    verify_folder(copy)
    assert [p.path for p in verify_folder(copy, read_only=True)[0] if p.kind != "unexpected"] == []


RACER = """
import importlib.util, sys, time
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parents[1]))
spec = importlib.util.spec_from_file_location("shared", sys.argv[1])
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
path, seed, start = Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
folder = shared.FeatureFolder(shared.LocalStore(path))
folder.create(shared.manifest())
ready = shared.proposal("patch", seed)
time.sleep(max(0, start - time.time()))
shared.ensure_calibration(folder, "patch", lambda: ready)
shared.prepare_view(folder, 0, "patch", 128)
values = shared.features("patch", 1)
shared.commit_unit(folder, 0, "patch", 1, values, shared.np.ones(64, bool), rows_digest=shared.DIGESTS[1], batch=8)
print(shared.bound_codec(folder, "patch").calibration)
"""


@pytest.mark.slow
def test_the_loser_of_a_race_adopts_the_winners_calibration(tmp_path):
    for attempt in range(2):
        path, start = tmp_path / str(attempt), str(time.time() + 12)
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", RACER, __file__, str(path), str(seed), start], stdout=subprocess.PIPE, text=True
            )
            for seed in (100, 200)
        ]
        digests = {racer.communicate(timeout=120)[0].strip() for racer in racers}
        assert [racer.returncode for racer in racers] == [0, 0]
        assert len(digests) == 1
        assert digests <= {digest_of(proposal("patch", seed).document) for seed in (100, 200)}
        assert verify_folder(path, read_only=True)[0] == []
        assert FeatureCache.open(path).read_block(0, "patch", 1).values == pytest.approx(features("patch", 1), abs=4)
