"""Compiled forward passes: the same code for the same definition, whenever and by whomever it is compiled.

Nothing that could change a sum is chosen by measuring, and images come in batches of one size. So a process that has to
compile again (another machine of a cluster, a cache of compiled code that was emptied) writes the same bytes on the same
hardware (R9).

Shapes: B images, 3 channels, H x W pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import _dynamo as dynamo

from unic_pipe.schemas.errors import StageError

if TYPE_CHECKING:
    from unic_pipe.pipeline.encoders.readouts import Tokens

BACKEND = "inductor"
OPTIONS: dict[str, Any] = {"deterministic": True, "max_autotune": False, "coordinate_descent_tuning": False}
"""Whatever the environment says."""
ENCODERS = 1024
"""Of one process. Beyond its limit (8 for one piece of code) PyTorch would go on without compiling."""


_LOCK = threading.Lock()


class Compiled:
    """A forward pass that is compiled when it is first called."""

    def __init__(self, forward: Callable[[torch.Tensor], Tokens], name: str) -> None:
        """Args:
        forward: what is compiled.
        name: of the encoder, for people.
        """
        dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, ENCODERS)
        dynamo.config.accumulated_recompile_limit = max(dynamo.config.accumulated_recompile_limit, ENCODERS)
        options = OPTIONS if BACKEND == "inductor" else None
        self._call = torch.compile(forward, dynamic=False, backend=BACKEND, options=options)
        self._name = name
        self._ready: set[tuple[object, ...]] = set()

    def __call__(self, x_B3HW: torch.Tensor) -> Tokens:
        """The pass of a batch. Threads that come while it is compiled wait, so that it is done once.
        Raises StageError: it cannot be compiled here."""
        device = x_B3HW.device
        kind = x_B3HW.shape, x_B3HW.stride(), device, torch.is_autocast_enabled(device.type)
        with nullcontext() if kind in self._ready else _LOCK:
            try:
                tokens = self._call(x_B3HW)
            except dynamo.exc.TorchDynamoException as error:
                why = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0]
                raise StageError(
                    f"{self._name} cannot be compiled for {device}: {why}",
                    "Set compute.compile: false. On a CPU it needs a C++ compiler (g++), on a GPU Triton.",
                ) from error
        self._ready.add(kind)
        return tokens
