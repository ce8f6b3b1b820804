"""klt and auto from extraction to a student: the wanted ratio, the same bytes whoever works, training and resume.

Legend: N rows, P tokens, D dimensions.
"""

from __future__ import annotations

import io
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unic_pipe.pipeline.cache.calibration import read_document
from unic_pipe.pipeline.cache.coefficients import Calibrated
from unic_pipe.pipeline.cache.fitting import Sample, axes_of, fit_step
from unic_pipe.pipeline.cache.losses import gaussian_bits, read_losses
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.cache.verify import verify_folder
from unic_pipe.pipeline.workspace.status import extraction_needs
from unic_pipe.schemas.features import ComputeDefinition
from unic_pipe.stages.report import cache as report

KLT = ("cache.codec=klt", "cache.snr_db=15")
AUTO = ("cache.codec=auto", "cache.snr_db=15")
TEACHERS = ("lite0", "lite1")


@pytest.fixture(scope="module")
def klt_template(raw_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Features of both teachers under klt, extracted by threads of one process."""
    folder = tmp_path_factory.mktemp("klt") / "work"
    shutil.copytree(raw_template.folder, folder, symlinks=True)
    work = type(raw_template)(folder)
    assert all(extraction.complete for extraction in work.extract(*KLT).values())
    return work


@pytest.fixture
def klt(klt_template: Any, tmp_path: Any) -> Any:
    shutil.copytree(klt_template.folder, tmp_path / "work", symlinks=True)
    return type(klt_template)(tmp_path / "work")


def features(work: Any, teacher: str, token: str, views: tuple[int, ...] = (0,)) -> np.ndarray:
    cache = FeatureCache.open(work.features(f"train-{teacher}"))
    return np.concatenate(
        [cache.read_block(v, token, b).values for v in views for b in sorted(cache.records(v, token))]
    )


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("token", ["cls", "patch"])
def test_extracted_features_are_at_least_as_good_as_asked(
    klt_template: Any, extracted_template: Any, teacher: str, token: str
) -> None:
    """Most of these few rows gave the axes, so that they come back better than others would."""
    original, stored = features(extracted_template, teacher, token), features(klt_template, teacher, token)
    assert original.shape == stored.shape
    sample = Sample.of(original)
    assert 14.5 < sample.snr_db(sample.values_NPD, stored.reshape(sample.values_NPD.shape)) < 30


@pytest.fixture(scope="module")
def lite0_features(tools: Any) -> dict[str, np.ndarray]:
    """EfficientNet-Lite0 with its ImageNet weights on 1,024 scanned digits."""
    from unic_pipe.pipeline.encoders import load_encoder

    encoder = load_encoder("efficientnet-lite0")
    images = [Image.open(io.BytesIO(data)) for name, data in tools.digit_members(0, 1024) if name.endswith(".png")]
    pixels = np.stack([np.asarray(image.resize((64, 64))) for image in images]).transpose(0, 3, 1, 2)
    compute = ComputeDefinition(dtype="float32", batch=64, threads=2)
    parts = [encoder.encode(torch.from_numpy(pixels[i : i + 64].copy()), compute) for i in range(0, 1024, 64)]
    return {
        "cls": torch.cat([part.cls for part in parts]).numpy(),
        "patch": torch.cat([part.patch for part in parts]).numpy(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("token", ["cls", "patch"])
@pytest.mark.parametrize("transform", [True, False], ids=["klt", "scalar"])
def test_real_tokens_that_were_never_seen_come_back_at_the_wanted_ratio(
    lite0_features: dict[str, np.ndarray], token: Any, transform: bool
) -> None:
    values = lite0_features[token][np.random.default_rng(0).permutation(1024)]
    seen, new = Sample.of(values[:768]), values[768:]
    places = axes_of(seen, values.shape[1:], transform)
    for wanted in (20.0, 10.0):
        codec = Calibrated(token, fit_step(places, seen, wanted), len(new), None)
        parts = codec.encode(new, np.ones(len(new), bool))
        back = codec.decode(parts, len(new), codec.escape(parts, new)).values()
        shape = (len(new), -1, values.shape[-1])
        assert seen.snr_db(new.reshape(shape), back.reshape(shape)) == pytest.approx(wanted, abs=0.5)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_the_losses_beside_the_manifest_are_those_of_all_rows(
    klt_template: Any, extracted_template: Any, teacher: str
) -> None:
    """Units compare a few rows when they are committed; float16 features stand for the originals here."""
    losses = read_losses(FeatureCache.open(klt_template.features(f"train-{teacher}")).folder)
    assert losses is not None
    assert [row.token for row in losses.tokens] == ["cls", "patch"]
    for row in losses.tokens:
        original, stored = (features(work, teacher, row.token, (0, 1)) for work in (extracted_template, klt_template))
        sample = Sample.of(original)
        assert row.codec == "klt"
        assert row.snr_db == pytest.approx(
            sample.snr_db(sample.values_NPD, stored.reshape(sample.values_NPD.shape)), abs=1
        )
        folder = klt_template.features(f"train-{teacher}")
        shards = [f for path in folder.glob(f"view-*/{row.token}/c") for f in path.rglob("*") if f.is_file()]
        assert row.bytes == sum(f.stat().st_size for f in shards)
        assert row.cosine_min < row.cosine_mean < 1
        assert 0 < row.gaussian_rd_bits < 16


def test_a_few_rows_take_the_variances_of_the_calibration(klt_template: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The axes of four rows would leave nothing to the others, and R(D) would be that of so many components."""
    monkeypatch.setattr(report, "BLOCKS", 1)
    monkeypatch.setattr(report, "ROWS_OF_BLOCK", 4)
    inventory = klt_template.inventory(*KLT)
    cache = FeatureCache.open(klt_template.features("train-lite0"))
    [need] = [n for n in extraction_needs(inventory, ("lite0",)) if n.digest == cache.digest]
    dataset = inventory.dataset(need.dataset).dataset
    assert dataset is not None
    found = report.compare(dataset, cache, need, inventory.teacher("lite0"), "cpu")
    assert found is not None
    row, calibration = report.loss_of(found, "cls"), read_document(cache.folder, "cls")
    assert calibration is not None
    assert row.gaussian_rd_bits == pytest.approx(gaussian_bits(calibration.variances, row.snr_db))


def test_lost_or_damaged_losses_are_derived_again(klt: Any) -> None:
    path = klt.features("train-lite0") / "losses.json"
    whole = path.read_bytes()
    path.unlink()
    klt.extract(*KLT)
    assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b"snr_db", b"snr_dB"))
    assert [problem.path for problem in verify_folder(path.parent, klt.dataset())[0]] == ["losses.json"]
    klt.extract(*KLT)
    assert path.read_bytes() == whole


def test_what_measures_encoders_is_not_quantised(klt_template: Any) -> None:
    assert FeatureCache.open(klt_template.features("val-lite0-center")).definition.codec.name == "float16"
    assert FeatureCache.open(klt_template.features("train-lite0")).definition.codec.name == "klt"


def test_a_rerun_changes_nothing_and_verify_is_content(klt: Any) -> None:
    before, times = klt.content("features"), klt.times("features")
    assert all(extraction.done == 0 for extraction in klt.extract(*KLT).values())
    assert (klt.content("features"), klt.times("features")) == (before, times)
    for teacher in TEACHERS:
        assert verify_folder(klt.features(f"train-{teacher}"), klt.dataset())[0] == []


def test_another_ratio_is_another_artefact_beside_the_old(klt: Any) -> None:
    old = klt.features("train-lite1")
    klt.extract("cache.codec=klt", "cache.snr_db=10", teachers=["lite1"])
    new = klt.features("train-lite1")
    assert old != new
    assert old.is_dir()
    size = {path: sum(f.stat().st_size for f in (path / "view-000").rglob("c/*/*")) for path in (old, new)}
    assert size[new] < size[old]


@pytest.mark.slow
def test_a_worker_process_writes_the_same_bytes(raw: Any, klt_template: Any) -> None:
    raw.extract(*KLT, "distill.validation=null", workers=1)
    mine, theirs = raw.content("features"), klt_template.content("features")
    assert mine.items() <= theirs.items()


def test_more_rows_calibrate_cls_than_patches_and_again_to_the_same_bytes(
    raw: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patches are kept of the first batches only."""
    monkeypatch.setattr("unic_pipe.pipeline.extraction.calibrate.ROWS", {"cls": 8, "patch": 8})
    more = (*KLT, "cache.calibration_rows=256", "compute.batch=8", "views.count=1", "distill.validation=null")
    shutil.copytree(raw.folder, tmp_path / "again", symlinks=True)
    again = type(raw)(tmp_path / "again")
    for work in (raw, again):
        work.extract(*more, teachers=["lite1"])
    assert raw.content("features") == again.content("features")
    cache = FeatureCache.open(raw.features("train-lite1"))
    assert cache.definition.codec.rows == 256
    documents = [read_document(cache.folder, token) for token in ("cls", "patch")]
    usable = sum(record.count - len(record.bad) for record in cache.records(0, "cls").values())
    assert [document.rows for document in documents if document] == [usable, 8]
    losses = read_losses(cache.folder)
    assert losses is not None
    assert losses.tokens[0].snr_db > 14.5


def test_auto_says_what_it_chose_and_takes_the_fewest_bits(raw: Any) -> None:
    raw.extract(*AUTO, "distill.validation=null", teachers=["lite1"])
    cache = FeatureCache.open(raw.features("train-lite1"))
    for token in ("cls", "patch"):
        document = read_document(cache.folder, token)
        assert document is not None
        assert [t.codec for t in document.trials] == ["float16", "int8", "scalar", "klt"]
        enough = [t for t in document.trials if t.snr_db >= 14.9]
        assert document.codec == min(enough, key=lambda t: t.bits_per_value).codec
        assert any(f"{token} is stored by {document.codec} for 15 dB" in line for line in raw.said)


@pytest.mark.slow
@pytest.mark.parametrize("codec", [KLT, AUTO], ids=["klt", "auto"])
def test_a_student_learns_and_resumes_to_the_same_weights(klt: Any, tmp_path: Any, codec: tuple[str, ...]) -> None:
    if codec is AUTO:
        klt.extract(*AUTO)
    shutil.copytree(klt.folder, tmp_path / "again", symlinks=True)
    again = type(klt)(tmp_path / "again")
    klt.distill(*codec)
    again.distill(*codec, stop_at=100)
    again.distill(*codec)
    mine, theirs = again.content("students"), klt.content("students")
    weights = [name for name in theirs if name.endswith("model.safetensors")]
    assert weights
    assert [name for name in weights if mine[name] != theirs[name]] == []
