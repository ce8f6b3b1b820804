"""Weighted k-nearest-neighbour vote on L2-normalised features, by cosine similarity.

Shapes: N training samples, M test samples, D dimensions, K neighbours, C classes.
Protocol of UNIC and DINO: each of the k nearest training samples votes for its class with weight exp(similarity / .07).
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from unic_pipe.stages.evaluate.checks import Task
from unic_pipe.stages.evaluate.outcome import Outcome, Setting
from unic_pipe.stages.evaluate.scoring import class_scores

TEMPERATURE = 0.07
SHOWN_K = 20
"""The k that stands for the probe where one number is shown."""
_TEST_ROWS = 1024
_TRAIN_ROWS = 32_768
_VOTES = 4_000_000
"""A tile of similarities is at most 1024 x 32,768 float32 (128 MiB), a table of votes 4 million float32 (with its
ranking 64 MB). Training rows visit the device by tiles of 32,768; what stays there are the test features and K neighbours
of each, 12 bytes a neighbour: for ImageNet (50,000 x 768, K 200) 154 + 120 MB, whatever the number of training rows."""


def run(task: Task, setting: Setting) -> Outcome:
    """Score the test set by the vote of each sample's nearest training samples. Draws nothing."""
    k_values, samples = setting.config.k_values, len(task.train_ND)
    metrics, predicted_M = knn_probe(
        task.train_ND, task.train_labels_N, task.test_MD, task.test_labels_M, k_values, setting.device
    )
    above = [str(k) for k in k_values if k > samples]
    remarks = (f"k = {', '.join(above)}: only {samples:,} training samples, so all of them vote.",) if above else ()
    classes = class_scores(predicted_M, task.test_labels_M, task.test_classes_M, task.test_names)
    return Outcome({0: metrics}, task.sizes, remarks, classes)


def knn_probe(
    train_ND: NDArray[np.float32],
    train_labels_N: NDArray[np.int64],
    test_MD: NDArray[np.float32],
    test_labels_M: NDArray[np.int64],
    k_values: Sequence[int],
    device: str = "cpu",
) -> tuple[dict[str, float], NDArray[np.int64]]:
    """Fractions of test samples that are classified correctly: `top1_k<k>`, and `top5_k<k>` with 5 classes or more; and
    the labels (M,) predicted at k = 20, or at the smallest k.

    Training labels are 0 to C - 1; other test labels count as wrong. A k above N lets every training sample vote.
    Classes with equal votes rank by number, and the top five of a k below 5 has k places: both as in the official
    evaluation, so that numbers compare.
    """
    classes = int(train_labels_N.max()) + 1
    labels_N = torch.from_numpy(train_labels_N).to(device)
    labels_M = torch.from_numpy(test_labels_M).to(device)
    similarity_MK, index_MK = nearest(train_ND, test_MD, max(k_values), device)
    shown = SHOWN_K if SHOWN_K in k_values else min(k_values)
    predicted: list[torch.Tensor] = []
    hits = {k: torch.zeros(min(5, k, classes), dtype=torch.int64, device=device) for k in k_values}
    for rows in _slices(len(test_MD), max(1, _VOTES // classes)):
        voters_BK = labels_N[index_MK[rows]]
        weights_BK = (similarity_MK[rows] / TEMPERATURE).exp()
        for k, hits_R in hits.items():
            votes_BC = torch.zeros(len(voters_BK), classes, device=device)
            votes_BC.scatter_add_(1, voters_BK[:, :k], weights_BK[:, :k])
            ranking_BC = votes_BC.argsort(dim=1, descending=True, stable=True)
            hits_R += (ranking_BC[:, : len(hits_R)] == labels_M[rows, None]).sum(0)
            if k == shown:
                predicted.append(ranking_BC[:, 0].cpu())
    scores: dict[str, float] = {}
    for k, hits_R in hits.items():
        scores[f"top1_k{k}"] = int(hits_R[0]) / len(test_MD)
        if classes >= 5:
            scores[f"top5_k{k}"] = int(hits_R.sum()) / len(test_MD)
    return scores, torch.cat(predicted).numpy()


def nearest(
    train_ND: NDArray[np.float32], test_MD: NDArray[np.float32], k: int, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine similarities (M, K) float32, descending, and indices (M, K) int64 of the K = min(k, N) nearest.

    Training rows visit the device tile by tile while each test row keeps its best K so far.
    """
    test = _normalised(test_MD, device)
    top_MK = torch.empty(len(test_MD), 0, device=device)
    index_MK = torch.empty(len(test_MD), 0, dtype=torch.int64, device=device)
    for tile in _slices(len(train_ND), _TRAIN_ROWS):
        train = _normalised(train_ND[tile], device)
        tops, indices = [], []
        for rows in _slices(len(test_MD), _TEST_ROWS):
            similarity_BT, place_BT = (test[rows] @ train.T).topk(min(k, len(train)), dim=1)
            merged = torch.cat([top_MK[rows], similarity_BT], dim=1)
            places = torch.cat([index_MK[rows], place_BT + tile.start], dim=1)
            best, order = merged.topk(min(k, merged.shape[1]), dim=1)
            tops.append(best)
            indices.append(places.gather(1, order))
        top_MK, index_MK = torch.cat(tops), torch.cat(indices)
    return top_MK, index_MK


def _normalised(x_ND: NDArray[np.float32], device: str) -> torch.Tensor:
    return F.normalize(torch.from_numpy(np.ascontiguousarray(x_ND)).to(device), dim=1)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
