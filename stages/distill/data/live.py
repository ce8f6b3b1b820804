"""Teachers in the training loop: the reference that training from a cache is compared with.

The targets come from running the frozen teachers on the same views at each teacher's input size. They are standardized
by the statistics of the cache, so that nothing else differs.

Shapes: B images, P patch tokens, D dimensions, S image side in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import methodcaller

import numpy as np
import torch
from torch import Tensor

from unic_pipe.pipeline.encoders.encoder import Encoder
from unic_pipe.pipeline.encoders.readouts import Tokens
from unic_pipe.schemas.features import ComputeDefinition
from unic_pipe.stages.distill.data.targets import Pair, RawTargets, Wanted, folded, rotations


@dataclass(frozen=True)
class LiveTeacher:
    """A loaded teacher, and the settings with which its features were extracted (all but the threads are kept to)."""

    encoder: Encoder
    compute: ComputeDefinition

    @property
    def size(self) -> int:
        """Image side in pixels."""
        return self.encoder.definition.image_size

    def tokens(self, x_B3SS: Tensor) -> Tokens:
        """Tokens of uint8 images on the teacher's device, in the cache's batches."""
        starts = range(0, len(x_B3SS), self.compute.batch)
        batches = [self.encoder.encode_on_device(x_B3SS[s : s + self.compute.batch], self.compute) for s in starts]
        return Tokens(torch.cat([b.cls for b in batches]), torch.cat([b.patch for b in batches]))


def live_targets(
    teachers: Mapping[str, LiveTeacher], images: Mapping[int, Tensor], wanted: Wanted
) -> dict[Pair, RawTargets]:
    """Targets of a batch from its images by size, in the form in which a cache gives them."""
    tokens = {name: teachers[name].tokens(images[teachers[name].size]) for name in {teacher for teacher, _ in wanted}}
    targets: dict[Pair, RawTargets] = {}
    for (teacher, token), standards in wanted.items():
        values = tokens[teacher].of(token)
        to_device = methodcaller("to", values.device)
        affines = {name: folded(np.ones((1, 1)), np.zeros((1, 1)), standard) for name, standard in standards.items()}
        block_B = torch.zeros(len(values), dtype=torch.int64)
        targets[teacher, token] = RawTargets(values, block_B, affines, rotations(standards)).each(to_device)
    return targets
