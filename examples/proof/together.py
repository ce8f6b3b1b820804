"""The bar that UNIC is measured by: all teachers' features side by side. N training, M test samples, D dimensions."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unic_pipe import FeatureCache, open_dataset
from unic_pipe.stages.evaluate.features import read_features
from unic_pipe.stages.evaluate.knn import knn_probe
from unic_pipe.stages.evaluate.paths import FastProbe

C_VALUES, K, FRACTION = (1e-4, 1e-3, 1e-2, 0.1, 1.0), 20, 0.2


def concatenated(folder: Path, benchmark: str, teachers: tuple[str, ...]) -> dict[str, float]:
    """Linear and k-NN top-1 of the concatenation of these teachers' `cls` tokens, by metric.

    Each teacher's are centred and divided by their root mean squared norm in training first: k-NN would hear only the one
    with the largest features.
    """
    parts = [_scaled(folder, benchmark, teacher) for teacher in teachers]
    train_ND, test_MD = (np.concatenate([part[side] for part in parts], axis=1) for side in (0, 2))
    labels_N, labels_M = parts[0][1], parts[0][3]
    probe = FastProbe(train_ND, labels_N)
    probe.fit(probe.search(FRACTION, 0, (min(C_VALUES), max(C_VALUES)), C_VALUES).c)
    linear = float(np.mean(probe.predict(test_MD) == labels_M))
    nearest = knn_probe(train_ND, labels_N, test_MD, labels_M, [K])[0][f"top1_k{K}"]
    return {"top1": linear, f"top1_k{K}": nearest}


def _scaled(
    folder: Path, benchmark: str, teacher: str
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    train, test = (
        read_features(
            FeatureCache(folder / f"features/{benchmark}-{part}-{teacher}-center"),
            open_dataset(folder / f"samples/{benchmark}-{part}", [folder]),
        )
        for part in ("train", "test")
    )
    mean_D = train.x_ND.mean(axis=0)
    norm = float(np.sqrt(np.square(train.x_ND - mean_D).sum(axis=1).mean()))
    return (train.x_ND - mean_D) / norm, train.labels_N, (test.x_ND - mean_D) / norm, test.labels_N
