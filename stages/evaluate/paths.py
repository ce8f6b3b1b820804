"""The fast search for the linear probe: all values of C on one device, each started from its neighbours' solutions.

Shapes: N training samples, M test samples, A rotated columns, B values of C, K classes.

A range of C is searched from coarse to fine: one value a decade, two at a time from strong to weak regularisation,
started where the path so far leads; then the midpoints (in log C) beside every value within three standard errors of the best;
then three times the midpoints around the best, each started between its neighbours' weights, so that little is left to
fit. Search fits run in float32 and stop by the rule of the trial-by-trial protocol (`logistic.SEARCH_TOLERANCE`) or
within 1e-4 of the least objective; the fit of the chosen C on the whole training set runs in float64 from there, to
within 1e-9.
"""

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from unic_pipe.pipeline.process.threads import torch_threads, usable_cores
from unic_pipe.stages.evaluate.rotated import Rotation
from unic_pipe.stages.evaluate.scoring import middle_of_best, validation_split
from unic_pipe.stages.evaluate.softmax import Problem, Stop, fit

SEARCH_STOP, FINAL_STOP = Stop(gap=1e-4, gradient=1e-4, forcing=0.25), Stop(gap=1e-9)
_AT_ONCE, _FINE_LEVELS, _FINE_REACH = 2, 3, 2
_ROWS = 8192
_NUMBERS = 200_000_000
"""A batch's six arrays of logits hold at most so many numbers together (800 MB in float32)."""


@dataclass(frozen=True)
class Search:
    """Outcome of a search over C."""

    c: float
    validation_top1: float
    converged: bool
    """Whether every fit of the search met its stopping rule."""
    tried: tuple[tuple[float, float], ...]
    """(C, top-1 in validation), by C."""


class FastProbe:
    """Logistic regression on one training set: `search` over C, `fit` with one C, `predict`.

    It is given the training set and nothing else. Runs on `device`; on one without float64 (mps), on the CPU.
    """

    def __init__(self, x_ND: NDArray[np.float32], labels_N: NDArray[np.int64], device: str = "cpu") -> None:
        self._device = "cpu" if device.startswith("mps") else device
        self._classes = int(labels_N.max()) + 1
        self._labels_N, self._x_ND = labels_N, x_ND
        with torch_threads(usable_cores()):
            self._rotation = Rotation.of(x_ND, self._device)
        self._start_A1K: torch.Tensor | None = None
        self._weights_AK: torch.Tensor | None = None

    def search(
        self, fraction: float, seed: int, c_range: tuple[float, float], c_values: Sequence[float] | None = None
    ) -> Search:
        """Choose C by top-1 accuracy on a part of the training set, from `c_values` or anywhere in `c_range`.

        Of equally good values the middle one wins (`middle_of_best`).
        """
        held_N = validation_split(self._labels_N, fraction, seed)
        with torch_threads(usable_cores()):
            path = _Path(self._problem(~held_N, torch.float32), self._side(held_N, torch.float32))
            if c_values is not None:
                path.add(sorted(set(c_values)))
            else:
                _refine(path, c_range)
        best = path.best()
        self._start_A1K = path.weights[best].double()[:, None]
        tried = tuple(sorted(path.top1.items()))
        return Search(best, path.top1[best], path.converged, tried)

    def fit(self, c: float) -> bool:
        """Fit the whole training set with `c`, from the search's solution if there was one; whether it converged."""
        with torch_threads(usable_cores()):
            problem = self._problem(np.ones(len(self._labels_N), dtype=bool), torch.float64)
            start = problem.zeros(1) if self._start_A1K is None else self._start_A1K
            found = fit(problem, torch.tensor([c], dtype=torch.float64, device=self._device), start, FINAL_STOP)
        self._weights_AK = found.weights_ABK[:, 0]
        return bool(found.converged_B)

    @property
    def scale(self) -> float:
        """Root mean square of the centred training features: C * scale^2 does not depend on their unit."""
        return self._rotation.scale

    def scores(self, x_MD: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits (M, K), up to a constant for each sample."""
        assert self._weights_AK is not None
        with torch_threads(usable_cores()):
            logits_MK = self._rotation.apply(x_MD, torch.float64) @ self._weights_AK
        scores: NDArray[np.float64] = logits_MK.cpu().numpy()
        return scores

    def predict(self, x_MD: NDArray[np.float32]) -> NDArray[np.int64]:
        """Predicted labels (M,)."""
        return np.concatenate([self.scores(x_MD[at : at + _ROWS]).argmax(1) for at in range(0, len(x_MD), _ROWS)])

    def _side(self, rows_N: NDArray[np.bool_], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.from_numpy(self._labels_N[rows_N]).to(self._device)
        return self._rotation.apply(self._x_ND[rows_N], dtype), labels

    def _problem(self, rows_N: NDArray[np.bool_], dtype: torch.dtype) -> Problem:
        z_NA, labels_N = self._side(rows_N, dtype)
        return Problem(z_NA, labels_N, self._classes, self._rotation)


class _Path:
    """Solutions by C, each with its top-1 accuracy on the validation side."""

    def __init__(self, problem: Problem, held: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._problem, self._held = problem, held
        self.weights: dict[float, torch.Tensor] = {}
        self.top1: dict[float, float] = {}
        self.converged = True
        self._batch = max(1, _NUMBERS // (6 * len(problem.z_NA) * problem.classes))

    def add(self, c_values: Sequence[float]) -> None:
        """Fit these values (ascending) in as few batches as memory allows."""
        new = [c for c in c_values if c not in self.weights]
        for first in range(0, len(new), self._batch):
            some = new[first : first + self._batch]
            start_ABK = torch.stack([self._start(c) for c in some], dim=1)
            c_B = torch.tensor(some, dtype=torch.float64, device=start_ABK.device)
            found = fit(self._problem, c_B, start_ABK, SEARCH_STOP)
            self.converged &= bool(found.converged_B.all())
            rows_MA, labels_M = self._held
            for place, c in enumerate(some):
                self.weights[c] = found.weights_ABK[:, place].clone()
                right_M = (rows_MA @ self.weights[c]).argmax(1) == labels_M
                self.top1[c] = int(right_M.sum()) / len(labels_M)

    def best(self) -> float:
        """The value with the best accuracy, of several the middle one."""
        return middle_of_best({(c,): top1 for c, top1 in self.top1.items()})[0]

    def promising(self) -> set[float]:
        """Values whose accuracy is within three standard errors of the best one's."""
        best = max(self.top1.values())
        error = math.sqrt(best * (1 - best) / len(self._held[1]))
        return {c for c, top1 in self.top1.items() if top1 >= best - 3 * error}

    def _start(self, c: float) -> torch.Tensor:
        """Weights (A, K): between the neighbours' in log C; beyond the last, half a step further along the path."""
        below = sorted(k for k in self.weights if k < c)
        above = min((k for k in self.weights if k > c), default=None)
        if below and above is not None:
            part = math.log(c / below[-1]) / math.log(above / below[-1])
            return torch.lerp(self.weights[below[-1]], self.weights[above], part)
        if len(below) >= 2:
            # Half, because weights grow ever more slowly, and too far is worse than too near.
            part = 0.5 * min(math.log(c / below[-1]) / math.log(below[-1] / below[-2]), 1.5)
            return torch.lerp(self.weights[below[-2]], self.weights[below[-1]], 1 + part)
        nearest = below[-1] if below else above
        return self._problem.zeros(1)[:, 0] if nearest is None else self.weights[nearest]


def _refine(path: _Path, c_range: tuple[float, float]) -> None:
    """Search a range from coarse to fine."""
    low, high = map(math.log10, c_range)
    steps = max(1, round(high - low))
    decades = [10 ** (low + (high - low) * i / steps) for i in range(steps + 1)]
    for first in range(0, len(decades), _AT_ONCE):
        path.add(decades[first : first + _AT_ONCE])
    path.add(_midpoints(sorted(path.top1), path.promising()))
    for _ in range(_FINE_LEVELS):
        c_values = sorted(path.top1)
        best = c_values.index(path.best())
        near = c_values[max(0, best - _FINE_REACH) : best + _FINE_REACH + 1]
        path.add(_midpoints(near, set(near)))


def _midpoints(c_values: Sequence[float], beside: Collection[float]) -> list[float]:
    """Midpoints, in log C, of the intervals with an end in `beside`."""
    return [math.sqrt(a * b) for a, b in itertools.pairwise(c_values) if a in beside or b in beside]
