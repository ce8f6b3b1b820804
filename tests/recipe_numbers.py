"""Comparing with the golden numbers of recipes, by the tolerances of their README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def tensor(array: np.ndarray, grad: bool = False) -> Tensor:
    """A leaf of its own."""
    return torch.from_numpy(np.array(array)).requires_grad_(grad)


def close(found: Tensor | float, expected: Any, atol: float = 1e-6) -> None:
    """Float32 numbers: rtol 1e-5, atol 1e-6."""
    value = found.detach().numpy() if isinstance(found, Tensor) else found
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=atol)


def close_gradient(x: Tensor, expected: np.ndarray) -> None:
    """Gradients: 2e-5 of their norm."""
    assert x.grad is not None
    assert np.linalg.norm(x.grad.numpy() - expected) <= 2e-5 * np.linalg.norm(expected)


def under(numbers: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """What has names below `prefix/`."""
    return {key.removeprefix(f"{prefix}/"): value for key, value in numbers.items() if key.startswith(f"{prefix}/")}


def loaded(module: nn.Module, state: Mapping[str, np.ndarray]) -> nn.Module:
    """The module with exactly these weights."""
    module.load_state_dict({key: tensor(value) for key, value in state.items()}, strict=True)
    return module
