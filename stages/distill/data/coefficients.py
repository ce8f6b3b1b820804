"""Targets from calibrated codecs: integers travel to the training device, where they become targets in one go.

Codec and standardization are folded into one `Synthesis` per teacher, token type and standardization. It is made once, and
kept on the device: it is larger than a batch's integers.

Shapes: B rows of a batch, U coefficients that some row uses, P patch tokens, D dimensions, E escaped values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unic_pipe.pipeline.cache.coefficients import Coefficients
from unic_pipe.pipeline.cache.synthesis import Synthesis


@dataclass
class Unfolding:
    """One synthesis, on every device that asked for it."""

    cpu: Synthesis
    _moved: dict[torch.device, Synthesis] = field(default_factory=dict)

    def on(self, device: torch.device) -> Synthesis:
        """The synthesis on a device."""
        if device.type == "cpu":
            return self.cpu
        if device not in self._moved:
            self._moved[device] = self.cpu.to(device)
        return self._moved[device]


@dataclass(frozen=True)
class CoefficientTargets:
    """Stored integers of a batch, and what turns them into targets."""

    values: Tensor
    """(B, U) int16."""
    place_E2: Tensor
    """Row and coefficient of the values beyond 16 bits (int64)."""
    escaped_E: Tensor
    """What they are (float32)."""
    row_shape: tuple[int, ...]
    unfoldings: Mapping[str, Unfolding]
    """By name of the standardization."""

    def decode(self, standard: str = "") -> Tensor:
        """Targets by the standardization of that name, float32 (B, D) or (B, P, D)."""
        q_BU = self.values.float()
        if len(self.escaped_E):
            q_BU[self.place_E2[:, 0], self.place_E2[:, 1]] = self.escaped_E
        synthesis = self.unfoldings[standard].on(self.values.device)
        return synthesis(q_BU).view(-1, *self.row_shape)

    def each(self, change: Callable[[Tensor], Tensor]) -> CoefficientTargets:
        """The same with every tensor changed: moved, or pinned."""
        values, place_E2, escaped_E = map(change, (self.values, self.place_E2, self.escaped_E))
        return CoefficientTargets(values, place_E2, escaped_E, self.row_shape, self.unfoldings)


def gather_coefficients(
    blocks: Sequence[Coefficients],
    offset_B: NDArray[np.int64],
    which_B: NDArray[np.int64],
    unfoldings: Mapping[str, Unfolding],
) -> CoefficientTargets:
    """The rows `offset_B` of the blocks `which_B`; as many coefficients as the widest block uses."""
    values = np.zeros((len(offset_B), max(block.stored.shape[1] for block in blocks)), np.int16)
    places: list[tuple[int, int]] = []
    escaped: list[int] = []
    for i, block in enumerate(blocks):
        mine = np.flatnonzero(which_B == i)
        values[mine, : block.stored.shape[1]] = block.stored[offset_B[mine]]
        if len(block.escaped.row_E):
            for position in mine.tolist():
                found = np.flatnonzero(block.escaped.row_E == offset_B[position])
                places += [(position, int(k)) for k in block.escaped.coefficient_E[found]]
                escaped += block.escaped.value_E[found].tolist()
    return CoefficientTargets(
        values=torch.from_numpy(values),
        place_E2=torch.tensor(places, dtype=torch.int64).view(-1, 2),
        escaped_E=torch.tensor(escaped, dtype=torch.float32),
        row_shape=blocks[0].transform.row_shape,
        unfoldings=unfoldings,
    )
