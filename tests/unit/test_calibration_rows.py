"""`cache.calibration_rows`: more rows give axes that fit other images better, and nothing changes for who does not ask.

Legend: N rows, P tokens, D dimensions.
"""

from __future__ import annotations

import numpy as np
import pytest
from builders import encoder_definition, feature_definition

from unic_pipe.pipeline.cache.arrays import encode_part
from unic_pipe.pipeline.cache.coefficients import Calibrated
from unic_pipe.pipeline.cache.fitting import Sample, fit, with_all_rows
from unic_pipe.pipeline.cache.needs import FeatureNeed, codec_definition
from unic_pipe.pipeline.extraction.calibrate import calibration_count, calibration_of, usable_features
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import CacheConfig
from unic_pipe.schemas.features import CodecDefinition
from unic_pipe.schemas.recipes import CENTER, UNIC

D = 48


def tokens(rows: int, seed: int) -> np.ndarray:
    """Gaussian, with variances that fall like those of real tokens along axes that are not the dimensions."""
    turned_DD = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0] * np.arange(1, D + 1)[:, None] ** -0.9
    return (np.random.default_rng(seed).normal(size=(rows, D)) @ turned_DD).astype(np.float32)


def unseen(codec: Calibrated) -> tuple[float, float]:
    """Bits per value and SNR in dB on a block of other rows."""
    values, block = tokens(512, 9), codec.arrays[0].shard[1]
    parts = [codec.encode(values[i : i + block], np.ones(block, bool)) for i in range(0, 512, block)]
    bits = 8 * sum(len(encode_part(codec.arrays[0], part)) for (part,) in parts) / values.size
    back = np.concatenate([codec.decode(part, block).values() for part in parts])
    sample = Sample.of(values)
    return bits, sample.snr_db(sample.values_NPD, back.reshape(sample.values_NPD.shape))


def test_axes_of_more_rows_and_of_all_of_them_take_fewer_bits_at_the_same_ratio() -> None:
    found = {}
    for rows in (64, 768):
        sample = Sample.of(tokens(rows, 1))
        transform = fit(sample, (D,), 15.0, True)
        for name, each in (("some", transform), ("all", with_all_rows(transform, sample))):
            assert (each.step, each.rounding) == (transform.step, transform.rounding)
            found[rows, name] = unseen(Calibrated("cls", each, 256, None))
    bits = {key: value for key, (value, _) in found.items()}
    assert bits[64, "all"] < 0.98 * bits[64, "some"]
    assert max(bits[768, "all"], bits[768, "some"]) < 0.95 * bits[64, "all"]
    assert found[64, "all"][1] == pytest.approx(found[64, "some"][1], abs=0.1)
    assert found[768, "all"][1] == pytest.approx(15, abs=0.2)


def test_dimensions_themselves_are_axes_of_any_rows() -> None:
    sample = Sample.of(tokens(64, 1))
    transform = fit(sample, (D,), 15.0, False)
    assert with_all_rows(transform, sample) is transform


def test_the_axes_are_those_of_all_rows_and_the_trials_those_of_rows_that_did_not_give_them() -> None:
    values = tokens(256, 1)
    sample = Sample.of(values)
    fitted = fit(sample, (D,), 15.0, True)
    trials = []
    for rows, wanted in ((None, fitted), (256, with_all_rows(fitted, sample))):
        asked = CodecDefinition(name="klt", snr_db=15.0, rows=rows)
        need = FeatureNeed("train", "dino", feature_definition(encoder_definition(D, D, (1, 1)), 64, asked), {"cls": 1})
        proposal = calibration_of(need, "cls", np.arange(256), values, 256)
        [basis] = [raw for key, raw in proposal.contents.items() if key.endswith("basis/c/0/0")]
        assert wanted.basis_DD is not None
        assert basis[:-4] == wanted.basis_DD.tobytes()  # a checksum follows
        trials.append(proposal.document.trials)
    assert trials[0] == trials[1]


@pytest.mark.parametrize(
    ("images", "asked", "count"),
    [(100, None, 100), (1_000, None, 256), (4_000, None, 1_000), (10**6, None, 2_048),
     (100, 8_192, 100), (4_000, 8_192, 4_000), (10**6, 8_192, 8_192), (10**6, 256, 256)],
)  # fmt: skip
def test_how_many_rows_calibrate(images: int, asked: int | None, count: int) -> None:
    assert calibration_count(images, CodecDefinition(name="klt", snr_db=15.0, rows=asked)) == count


def test_only_who_asks_gets_another_definition() -> None:
    plain, more = CacheConfig(codec="klt"), CacheConfig(codec="klt", calibration_rows=4096)
    assert digest_of(codec_definition(plain, UNIC)) == digest_of(CodecDefinition(name="klt", snr_db=15.0))
    assert codec_definition(more, UNIC) == CodecDefinition(name="klt", snr_db=15.0, rows=4096)
    assert digest_of(codec_definition(more, UNIC)) != digest_of(codec_definition(plain, UNIC))
    # Where nothing is calibrated, nothing changes.
    assert codec_definition(more, CENTER) == codec_definition(plain, CENTER)
    int8 = CacheConfig(codec="int8", calibration_rows=4096)
    assert codec_definition(int8, UNIC) == CodecDefinition(name="int8")


def test_rows_without_patches_are_usable() -> None:
    need = FeatureNeed(
        "train", "dino", feature_definition(encoder_definition(2, 3, (1, 2)), 64, "float16"), {"cls": 1, "patch": 1}
    )
    first = {"cls": np.zeros((3, 2), np.float32), "patch": np.zeros((3, 2, 3), np.float32)}
    first["patch"][1, 0, 2] = np.inf
    second = {"cls": np.array([[1, 1], [np.nan, 1], [2, 2]], np.float32)}
    found = usable_features([first, second], need, 6)
    assert found["cls"].tolist() == [[0, 0], [0, 0], [1, 1], [2, 2]]
    assert found["patch"].shape == (2, 2, 3)
