"""`unic-pipe report cache`: what is said agrees with what lies on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from unic_pipe.cli.main import app
from unic_pipe.pipeline.cache.losses import gaussian_bits
from unic_pipe.pipeline.cache.reader import FeatureCache

FIELDS = {
    "teacher",
    "token",
    "codec",
    "bits_per_value",
    "bytes",
    "snr_db",
    "cosine_mean",
    "cosine_min",
    "gaussian_rd_bits",
}


def test_gaussian_bits_are_those_of_the_textbook() -> None:
    """One component: log2(SNR) / 2. Two, of which one lies under the water: only the other costs bits."""
    assert gaussian_bits([4.0], 20.0) == pytest.approx(3.3219, abs=1e-3)
    assert gaussian_bits([1.0, 1.0, 1.0], 6.0206) == pytest.approx(1.0, abs=1e-4)
    # Distortion .5 of mean 1: the small one costs nothing and keeps its variance, the other has 2 * .5 - .1 = .9.
    assert gaussian_bits([1.9, 0.1], 3.0103) == pytest.approx(0.5390 / 2, abs=1e-3)
    assert gaussian_bits([1.0, 2.0], 0.0) == 0.0


@pytest.mark.slow
def test_report_of_a_calibrated_cache(raw: Any) -> None:
    overrides = ["cache.codec=auto", "cache.snr_db=15", "distill.validation=null"]
    raw.extract(*overrides, teachers=["lite1"])
    options = [x for override in [*overrides, "teachers={lite1: {encoder: efficientnet-lite1, image_size: 32}}"]
               for x in ("--set", override)]  # fmt: skip
    ended = CliRunner().invoke(app, ["report", "cache", "--json", "--config", str(raw.folder), *options])
    assert ended.exit_code == 0, ended.output
    body = json.loads(ended.stdout)
    cache = FeatureCache.open(raw.features("train-lite1"))
    assert [row["token"] for row in body["rows"]] == ["cls", "patch"]
    for row in body["rows"]:
        assert row.keys() >= FIELDS
        shards = [
            f
            for folder in Path(cache.location).glob(f"view-*/{row['token']}*/c")
            for f in folder.rglob("*")
            if f.is_file()
        ]
        assert row["bytes"] == sum(f.stat().st_size for f in shards)
        assert row["snr_db"] == pytest.approx(15, abs=2)
        assert 0.9 < row["cosine_mean"] < 1
        assert -1 <= row["cosine_min"] <= row["cosine_mean"]
    assert {p["codec"] for p in body["curves"][0]["points"]} == {"float16", "int8", "scalar", "klt", "Gaussian R(D)"}
    page = (raw.folder / "runs/cache-report.html").read_text()
    assert page.count("<svg") == 2
    assert "bits per value" in page
