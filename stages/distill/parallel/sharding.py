"""How a model's gradients are summed over processes: copies on all (DDP), or shares of one (FSDP2).

Checkpoints hold whole tensors either way, so that they resume on any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from unic_pipe.stages.distill.parallel.batch_norm import share_statistics
from unic_pipe.stages.distill.parallel.world import World

SHARD_ABOVE = 1_000_000_000
"""Parameters of student and ladder from which `shard: auto` shares them out."""


class Parallel:
    """A model as a training step calls it."""

    def __init__(
        self, model: nn.Module, parts: Sequence[nn.Module], world: World, shard: Literal["auto", "always", "never"]
    ) -> None:
        """The model must hold its weights already: the first process's are everybody's.

        `parts`: modules that are gathered when they are needed, where the model is shared out.

        Raises:
            UserError: a layer takes statistics over the images of one process only.
        """
        self.model, self.world = model, world
        parameters = sum(p.numel() for p in model.parameters())
        self.sharded = world.size > 1 and (shard == "always" or (shard == "auto" and parameters > SHARD_ABOVE))
        self.call: nn.Module = model
        if world.size > 1:
            share_statistics(model, world.sum)
        if self.sharded:
            _shard(model, parts)
        elif world.size > 1:
            # A ViT's final norm gets no gradient, and the patch ladder none from views without patches.
            self.call = nn.parallel.DistributedDataParallel(
                _Step(model), find_unused_parameters=True, gradient_as_bucket_view=True
            )
            # Running statistics are those of the global batch on every process already. (As an argument of the
            # constructor it has had two names.)
            self.call.broadcast_buffers = False
        self.parameters = list(model.parameters())
        """What is trained. To go through a model's modules for it takes a hundredth of a small network's step."""

    def syncing(self, last: bool) -> AbstractContextManager[object]:
        """Gradients are summed over processes in the last micro-batch of a step alone."""
        if self.sharded:
            self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
            return nullcontext()
        if isinstance(self.call, nn.parallel.DistributedDataParallel) and not last:
            return self.call.no_sync()
        return nullcontext()

    @contextmanager
    def reading(self, last: bool) -> Iterator[None]:
        """Gradients may be read before the backward pass of a micro-batch: nothing is summed up, or forgotten, by that."""
        if not self.sharded:
            yield
            return
        self.model.set_requires_gradient_sync(False)  # type: ignore[operator]
        self.model.set_is_last_backward(False)  # type: ignore[operator]
        yield
        self.model.set_is_last_backward(True)  # type: ignore[operator]
        self.model.set_requires_gradient_sync(last)  # type: ignore[operator]

    @torch.no_grad()
    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply all gradients by a scalar tensor on their device."""
        gradients = [local(p.grad) for p in self.parameters if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)


class _Step(nn.Module):
    """A model with a parameter that nothing uses: where all are used, DDP warns on every process that none is unused."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # DDP puts types apart: the buckets of the others, and with them the order of sums, stay what they are.
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64, device=next(model.parameters()).device))

    def forward(self, *inputs: Any, **more: Any) -> Any:
        """What the model returns."""
        return self.model(*inputs, **more)


def local(x: Tensor) -> Tensor:
    """The part of a tensor that this process holds; memory is shared."""
    return x.to_local() if isinstance(x, DTensor) else x.detach()


def locals_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The parts that this process holds."""
    return [local(x) for x in tensors]


def whole(value: Any, keep: bool) -> Any:
    """A state with every shared-out tensor gathered; all processes call this, and those that do not `keep` drop it."""
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if keep else None
    if isinstance(value, dict):
        return {key: whole(item, keep) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [whole(item, keep) for item in value]
    return value


def shared_as(full: Tensor, like: Tensor) -> Tensor:
    """A whole tensor shared out as another one is; every process must have it."""
    if not isinstance(like, DTensor):
        return full
    placed: Tensor = distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return placed


def optimizer_state_as(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's whole state, shared out as its parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        number: {
            name: shared_as(x, parameters[number]) if x.shape == parameters[number].shape and name != "step" else x
            for name, x in known.items()
        }
        for number, known in state["state"].items()
    }
    return {**state, "state": moments}


def _shard(model: nn.Module, parts: Sequence[nn.Module]) -> None:
    """Every part is gathered when it is needed, and the rest for a step."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for part in parts:
        fully_shard(part, mesh=mesh)
    # A validation swaps weights: what stayed gathered over its end would be the others.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
