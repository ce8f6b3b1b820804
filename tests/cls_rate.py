"""Where the bits of cls tokens go under `klt`: axes, quantiser, entropy coder, against Gaussian R(D).

Of a float16 feature folder or an array (N, D) in an `.npy` file; without one, of Gaussian tokens of 192 dimensions whose
covariance is known. Rows in random order: the last 768 are written in blocks of 256, the codec is calibrated on others.

    .venv/bin/python tests/cls_rate.py [FOLDER | FILE.npy] [--rows 256,512,2048] [--snr-db 15]

    bits        per value, as written (entropy coder, its headers and checksums)
    entropy     of the same integers, each component by itself: what an ideal coder without contexts would take
    R(D), here  of Gaussian components with the variances of the written rows along the codec's axes, at the same ratio
    R(D), best  the same along axes of all rows that are not written

entropy - R(D), here is what scalar quantisation costs; R(D), here - R(D), best what axes of few rows cost.

Legend: N rows, D dimensions, K components.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from unic_pipe.pipeline.cache.arrays import encode_part
from unic_pipe.pipeline.cache.coefficients import Calibrated, Transform
from unic_pipe.pipeline.cache.fitting import Sample, axes_of, fit, with_all_rows
from unic_pipe.pipeline.cache.losses import gaussian_bits
from unic_pipe.pipeline.cache.reader import FeatureCache

WRITTEN, BLOCK, DIMS, DECAY, ROWS = 768, 256, 192, 0.9, 8192


def made_up() -> np.ndarray:
    """Gaussian tokens; standard deviations along random axes fall as rank to the power of -`DECAY`."""
    rng = np.random.default_rng(0)
    turned_DD = np.linalg.qr(rng.normal(size=(DIMS, DIMS)))[0] * np.arange(1, DIMS + 1)[:, None] ** -DECAY
    return (rng.normal(size=(ROWS, DIMS)) @ turned_DD).astype(np.float32)


def tokens(source: Path | None) -> np.ndarray:
    """cls tokens of view 0, (N, D) float32."""
    if source is None:
        return made_up()
    if source.suffix == ".npy":
        return np.load(source).astype(np.float32)
    cache = FeatureCache.open(source)
    blocks = (cache.read_block(0, "cls", block) for block in sorted(cache.records(0, "cls")))
    return np.concatenate([block.values[block.valid] for block in blocks])


def entropy(q_KN: np.ndarray) -> float:
    """Bits per value of integers whose distribution is known for every component."""
    counts = [np.unique(q_N, return_counts=True)[1] / q_KN.shape[1] for q_N in q_KN]
    return float(-sum((p * np.log2(p)).sum() for p in counts) / len(q_KN))


def row(transform: Transform, best: Transform, new_ND: np.ndarray) -> str:
    """One line of the table."""
    codec = Calibrated("cls", transform, BLOCK, None)
    parts = [codec.encode(new_ND[i : i + BLOCK], np.ones(BLOCK, bool)) for i in range(0, len(new_ND), BLOCK)]
    bits = 8 * sum(len(encode_part(codec.arrays[0], part)) for (part,) in parts) / new_ND.size
    sample = Sample.of(new_ND)
    back = np.concatenate([codec.decode(part, BLOCK).values() for part in parts])
    snr_db = sample.snr_db(sample.values_NPD, back.reshape(sample.values_NPD.shape))
    here, least = (
        gaussian_bits(each.forward(new_ND).square().mean(dim=0, dtype=torch.float64).numpy(), snr_db)
        for each in (transform, best)
    )
    ideal = entropy(np.concatenate([part for (part,) in parts], axis=1))
    return f"{bits:6.3f} {snr_db:6.2f} {ideal:8.3f} {here:10.3f} {least:10.3f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", nargs="?", type=Path)
    parser.add_argument("--rows", default="256,512,2048", help="calibrating rows, separated by commas")
    parser.add_argument("--snr-db", type=float, default=15.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    values_ND = tokens(given.source)
    values_ND = values_ND[np.random.default_rng(1).permutation(len(values_ND))]
    new_ND, others_ND = values_ND[-WRITTEN:], values_ND[:-WRITTEN]
    shape = values_ND.shape[1:]
    everything = Sample.of(others_ND)
    best = with_all_rows(axes_of(everything, shape, True), everything)
    print(f"{len(values_ND)} rows, {shape[0]} dimensions\n  rows axes of   bits     dB  entropy R(D), here R(D), best")
    for count in sorted({min(int(n), len(others_ND)) for n in given.rows.split(",")}):
        sample = Sample.of(others_ND[:count])
        fitted = fit(sample, shape, given.snr_db, True)
        for name, transform in (("3/4", fitted), ("all", with_all_rows(fitted, sample))):
            print(f"{count:6} {name:7} {row(transform, best, new_ND)}", flush=True)


if __name__ == "__main__":
    main()
