"""Multinomial logistic regression for many regularisation strengths at once: preconditioned truncated Newton.

Shapes: N samples, A columns of `Rotation`, B values of C, K classes. All values of C share the data matrix, so each
product with it is one GEMM with B * K columns.

The objective is scikit-learn's `LogisticRegression` divided by C * N: mean cross-entropy + |W|^2 / (2 C N), intercepts
free. With two classes scikit-learn fits one logistic function of weights w; that is this problem with W = (-w/2, w/2)
and half of C, so the penalty doubles.

Newton's step of each problem is solved by conjugate gradients on exact Hessian-vector products (Z'(P * (ZV) - P (P . ZV))
/ N + penalty: two GEMMs), preconditioned with the Hessian's exact diagonal, and followed by a halving line search (Nocedal
and Wright, Numerical Optimization, section 7.1). Products of the directions with the data add up to that of the step, so
the line search costs none.
"""

from dataclasses import dataclass

import torch

from unic_pipe.stages.evaluate.rotated import Rotation

_ROWS = 8192
MAX_NEWTON, MAX_CG = 100, 250


@dataclass(frozen=True)
class Stop:
    """When a fit is done: either condition is enough; 0 switches one off."""

    gap: float
    """Estimated distance to the least objective (half the Newton decrement), relative to the objective."""
    gradient: float = 0.0
    """Largest component of the gradient, on features of unit root-mean-square deviation that are not rotated:
    scikit-learn's rule."""
    forcing: float = 0.1
    """Newton's equations are solved until their residual, in the preconditioner's norm, is this part of the first."""


class Problem:
    """Rotated features with labels, on one device."""

    def __init__(self, z_NA: torch.Tensor, labels_N: torch.Tensor, classes: int, rotation: Rotation) -> None:
        self.z_NA, self.labels_N, self.classes = z_NA, labels_N, classes
        self._penalised_A = torch.zeros(z_NA.shape[1], dtype=z_NA.dtype, device=z_NA.device)
        self._penalised_A[: rotation.intercept] = 1
        self._scale, self._intercept = rotation.scale, rotation.intercept
        self._axes_DR = (rotation.axes_DR * rotation.scale).to(z_NA)

    def penalty(self, c_B: torch.Tensor) -> torch.Tensor:
        """Penalties (A, B, 1) for inverse strengths `c_B` of the features as they came (float64)."""
        factor = 2.0 if self.classes == 2 else 1.0
        strength_B = factor / (c_B * self._scale**2 * len(self.z_NA))
        return self._penalised_A[:, None, None] * strength_B.to(self._penalised_A)[None, :, None]

    def zeros(self, count: int) -> torch.Tensor:
        """Weights (A, count, K) to start from."""
        return self.z_NA.new_zeros(self.z_NA.shape[1], count, self.classes)

    def logits(self, weights_ABK: torch.Tensor) -> torch.Tensor:
        """Z W (N, B, K)."""
        return (self.z_NA @ weights_ABK.flatten(1)).view(-1, *weights_ABK.shape[1:])

    def back(self, values_NBK: torch.Tensor) -> torch.Tensor:
        """Z' values / N (A, B, K)."""
        return (self.z_NA.T @ values_NBK.flatten(1)).view(-1, *values_NBK.shape[1:]) / len(self.z_NA)

    def diagonal(self, p_NBK: torch.Tensor) -> torch.Tensor:
        """Diagonal of the mean loss's Hessian (A, B, K)."""
        total = self.z_NA.new_zeros(self.z_NA.shape[1], p_NBK[0].numel())
        for start in range(0, len(self.z_NA), _ROWS):
            p = p_NBK[start : start + _ROWS].flatten(1)
            total.addmm_(self.z_NA[start : start + _ROWS].square().T, p - p * p)
        return (total / len(self.z_NA)).view(-1, *p_NBK.shape[1:])

    def largest(self, gradient_ABK: torch.Tensor) -> torch.Tensor:
        """Largest component (B,) of gradients in the features' own axes."""
        rotated_RX = gradient_ABK[: self._intercept].flatten(1)
        own_DBK = (self._axes_DR @ rotated_RX).view(-1, *gradient_ABK.shape[1:])
        return torch.maximum(own_DBK.abs().amax((0, 2)), gradient_ABK[self._intercept].abs().amax(1))

    def objective(self, logits_NBK: torch.Tensor, weights_ABK: torch.Tensor, penalty_AB1: torch.Tensor) -> torch.Tensor:
        """Objectives (B,), float64."""
        own_NB = logits_NBK.gather(2, self.labels_N[:, None, None].expand(-1, logits_NBK.shape[1], 1))[..., 0]
        loss_B = (logits_NBK.logsumexp(2) - own_NB).double().mean(0)
        return loss_B + 0.5 * (penalty_AB1 * weights_ABK.square()).double().sum((0, 2))


@dataclass(frozen=True)
class Fit:
    """Solutions for B values of C."""

    weights_ABK: torch.Tensor
    converged_B: torch.Tensor
    """bool: whether `Stop` was met."""


def fit(problem: Problem, c_B: torch.Tensor, start_ABK: torch.Tensor, stop: Stop) -> Fit:
    """Fit all of `c_B` (float64, on the problem's device) together, from `start_ABK`; finished ones leave the batch."""
    weights_ABK, penalty_AB1 = start_ABK.clone(), problem.penalty(c_B)
    done_B = torch.zeros_like(c_B, dtype=torch.bool)
    stalled_B = done_B.clone()
    for _ in range(MAX_NEWTON):
        at = (~done_B & ~stalled_B).nonzero()[:, 0]
        if not len(at):
            break
        w, penalty = weights_ABK[:, at], penalty_AB1[:, at]
        weights_ABK[:, at], done_B[at], stalled = _newton(problem, w, penalty, stop)
        stalled_B[at] = stalled & ~done_B[at]
    return Fit(weights_ABK, done_B)


def _newton(
    problem: Problem, w: torch.Tensor, penalty: torch.Tensor, stop: Stop
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One Newton step of each problem of a batch: the weights, which are done, and which are stalled. Those whose gradient
    is small enough stay where they are."""
    logits = problem.logits(w)
    before = problem.objective(logits, w, penalty)
    p = logits.softmax(2)
    gradient = _gradient(problem, p, w, penalty)
    small = problem.largest(gradient) <= stop.gradient
    if bool(small.all()):
        return w, small, small
    move, moved, decrement = _conjugate(problem, p, gradient, penalty, small, stop.forcing)
    length = torch.where(small, 0.0, 1.0).to(before)
    slack = (1e-6 if w.dtype == torch.float32 else 1e-14) * before.abs()
    objective, worse = before, small
    for _ in range(20):
        scaled = length.to(w)[None, :, None]
        objective = problem.objective(logits + scaled * moved, w + scaled * move, penalty)
        worse = ~(objective <= before - 1e-4 * length * decrement + slack)
        if not bool(worse.any()):
            break
        length = torch.where(worse, length / 2, length)
    length = torch.where(worse, 0.0, length)
    gap = decrement / 2 <= stop.gap * before
    # Nothing left to gain in this precision.
    stalled = (worse | (before - objective <= slack / 100)) & ~small
    return w + length.to(w)[None, :, None] * move, small | gap, stalled


def _gradient(problem: Problem, p: torch.Tensor, w: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    own = problem.labels_N[:, None, None].expand(-1, p.shape[1], 1)
    return problem.back(p.scatter_add(2, own, torch.full_like(own, -1, dtype=p.dtype))) + penalty * w


def _conjugate(
    problem: Problem,
    p: torch.Tensor,
    gradient: torch.Tensor,
    penalty: torch.Tensor,
    skip: torch.Tensor,
    forcing: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Newton's step by preconditioned conjugate gradients: the step, its product with the data, and the decrement."""
    inverse = 1 / (problem.diagonal(p) + penalty).clamp_min(1e-12)
    step, moved = torch.zeros_like(gradient), torch.zeros_like(p)
    residual = -gradient
    direction = inverse * residual
    rho = _dot(residual, direction)
    target, running = forcing**2 * rho, ~skip & (rho > 0)
    for _ in range(MAX_CG):
        along = problem.logits(direction)
        curved = p * along
        curved -= p * curved.sum(2, keepdim=True)
        image = problem.back(curved) + penalty * direction
        length = torch.where(running, rho / _dot(direction, image).clamp_min(1e-300), 0.0).to(p)[None, :, None]
        step += length * direction
        moved += length * along
        residual -= length * image
        scaled = inverse * residual
        following = _dot(residual, scaled)
        running &= following > target
        if not bool(running.any()):
            break
        direction = scaled + torch.where(running, following / rho, 0.0).to(p)[None, :, None] * direction
        rho = following
    return step, moved, -_dot(gradient, step)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).double().sum((0, 2))
