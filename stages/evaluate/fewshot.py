"""Few-shot classification: probes fitted on a handful of training samples of each class, several draws averaged.

Shapes: N training samples, M test samples, D dimensions, K classes, S samples of a draw.
Two classifiers: the nearest class centroid (mean of the L2-normalised features, by cosine similarity), and logistic
regression on raw features at C = 1 for features of unit root-mean-square deviation. With one sample a class nothing is
left to choose C on, so it is fixed.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from unic_pipe.stages.evaluate.checks import Task
from unic_pipe.stages.evaluate.outcome import Outcome, Setting
from unic_pipe.stages.evaluate.paths import FastProbe

_ROWS = 8192


def run(task: Task, setting: Setting) -> Outcome:
    """A few samples of each class, drawn several times; a draw counts as a seed. `top1`: logistic, most shots."""
    config = setting.config
    scores = few_shot(
        task.train_ND, task.train_labels_N, task.test_MD, task.test_labels_M,
        shots=config.shots, draws=config.draws, seed=config.seeds[0], device=setting.device,
    )  # fmt: skip
    most = max(config.shots)
    short = int((np.bincount(task.train_labels_N) < most).sum())
    remarks = (f"{short} classes have fewer than {most} training samples: all of them are used.",) if short else ()
    per_draw = {i: {"top1": s[f"top1_logistic_{most}shot"], **s} for i, s in enumerate(scores)}
    return Outcome(per_draw, {**task.sizes, "draws": config.draws, "shots": most}, remarks)


def draw(labels_N: NDArray[np.int64], shots: int, seed: int, number: int) -> NDArray[np.int64]:
    """Rows (S,) of a draw: `shots` of each class at random, all of a smaller class; a function of the arguments alone."""
    generator = np.random.default_rng([seed, shots, number])
    rows = [generator.permutation(np.flatnonzero(labels_N == label))[:shots] for label in np.unique(labels_N)]
    return np.concatenate(rows)


def few_shot(
    train_ND: NDArray[np.float32],
    train_labels_N: NDArray[np.int64],
    test_MD: NDArray[np.float32],
    test_labels_M: NDArray[np.int64],
    *,
    shots: Sequence[int],
    draws: int,
    seed: int,
    device: str = "cpu",
) -> list[dict[str, float]]:
    """Top-1 accuracies of each draw: `top1_centroid_<shots>shot`, `top1_logistic_<shots>shot`.

    Training labels are 0 to K - 1; other test labels count as wrong.
    """
    scores: list[dict[str, float]] = []
    for number in range(draws):
        metrics: dict[str, float] = {}
        for count in shots:
            rows = draw(train_labels_N, count, seed, number)
            x_SD, labels_S = train_ND[rows], train_labels_N[rows]
            probe = FastProbe(x_SD, labels_S, device)
            probe.fit(1 / probe.scale**2)
            for name, predicted_M in (
                ("centroid", nearest_centroid(x_SD, labels_S, test_MD)),
                ("logistic", probe.predict(test_MD)),
            ):
                metrics[f"top1_{name}_{count}shot"] = float(np.mean(predicted_M == test_labels_M))
        scores.append(metrics)
    return scores


def nearest_centroid(
    x_SD: NDArray[np.float32], labels_S: NDArray[np.int64], test_MD: NDArray[np.float32]
) -> NDArray[np.int64]:
    """The class (M,) whose centroid is most similar; of equal ones the first."""
    rows_SD, labels = F.normalize(torch.from_numpy(x_SD), dim=1), torch.from_numpy(labels_S)
    sums_KD = torch.zeros(int(labels.max()) + 1, x_SD.shape[1]).index_add_(0, labels, rows_SD)
    centroids_KD = F.normalize(sums_KD, dim=1)
    found = [
        (F.normalize(torch.from_numpy(test_MD[at : at + _ROWS]), dim=1) @ centroids_KD.T).argmax(1)
        for at in range(0, len(test_MD), _ROWS)
    ]
    predicted: NDArray[np.int64] = torch.cat(found).numpy()
    return predicted
