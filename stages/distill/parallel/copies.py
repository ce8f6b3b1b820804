"""Micro-batches of a step that are learned from at once, on a CPU.

One after the other, the operations of a small network do not keep several cores busy: two threads of torch make a step of an
EfficientNet-Lite0 a fifth shorter, two halves of its batch at once two fifths. The sums are those of micro-batches that come one
after the other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from unic_pipe.pipeline.students.build import build_student
from unic_pipe.schemas.config import DistillConfig, StudentConfig
from unic_pipe.schemas.losses import MOVING
from unic_pipe.stages.distill.parallel.batch_norm import batch_norms

MOST, LEAST_IMAGES = 4, 8
"""At once, for each has gradients of its own; and images of each, for fewer take longer."""

Model = TypeVar("Model", bound=nn.Module)
Item = TypeVar("Item")
Found = TypeVar("Found")


def at_once(config: StudentConfig, threads: int, settings: DistillConfig) -> int:
    """How many micro-batches of a step of so many threads are learned from at once, in a training that begins now."""
    fitting = [n for n in range(2, min(MOST, threads) + 1) if config.optimizer.batch >= n * LEAST_IMAGES]
    if not fitting or settings.compile is not False or not _is_sum(config):
        return 1
    return max(fitting, key=lambda n: (n * (threads // n), n))  # the most threads are used


def _is_sum(config: StudentConfig) -> bool:
    """Whether what the parts of a batch teach adds up to what it teaches: nothing is normalised by the whole of it or
    remembered of it."""
    loss = config.loss
    if loss.needs_queue or any(loss.normaliser(token) in MOVING for token in loss.trained):
        return False
    if config.batch_norm == "frozen":
        return True
    with torch.device("meta"):
        return not batch_norms(build_student(config))


class Copies(Generic[Model]):
    """A model and copies of it, whose weights are the same memory: what a pass leaves in modules, and gradients, are apart."""

    def __init__(self, model: Model, count: int, threads: int) -> None:
        """`threads`: that torch takes for all of them together."""
        self.models = [model, *(_copy(model) for _ in range(count - 1))]
        self._parameters = [list(x.parameters()) for x in self.models]
        self._threads = threads // count
        self._pool = ThreadPoolExecutor(count)

    def apart(self, function: Callable[[], Found]) -> Found:
        """What a function gives that goes over many small tensors, with as many of torch's threads as one of the models has.
        With more it takes three times as long: they meet once for every tensor."""
        if len(self.models) == 1:
            return function()
        return self._pool.submit(self._call, function).result()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def each(self, function: Callable[[Model, Item], Found], items: Sequence[Item]) -> list[Found]:
        """What a function gives of models with items, at most one for each, all at once. The gradients that it leaves in
        the copies are then added to the model's, in the order of the items."""
        if len(self.models) == 1:
            return [function(self.models[0], item) for item in items]
        futures = [
            self._pool.submit(self._call, partial(function, model, item))
            for model, item in zip(self.models, items, strict=False)
        ]
        wait(futures)
        try:
            found = [future.result() for future in futures]
            self.apart(partial(self._add_gradients, len(items)))
        finally:
            for parameters in self._parameters[1:]:
                for x in parameters:
                    x.grad = None
        return found

    def _call(self, function: Callable[[], Found]) -> Found:
        torch.set_num_threads(self._threads)
        return function()

    def _add_gradients(self, used: int) -> None:
        first, *others = self._parameters[:used]
        for other in others:
            sums, more = [], []
            for x, y in zip(first, other, strict=True):
                if y.grad is not None:
                    x.grad = torch.zeros_like(y) if x.grad is None else x.grad
                    sums.append(x.grad)
                    more.append(y.grad)
            if sums:
                torch._foreach_add_(sums, more)


def _copy(model: Model) -> Model:
    constants = [x for value in vars(model).values() if isinstance(value, dict) for x in value.values()]
    shared: dict[int, object] = {id(x): x for x in (*constants, *model.buffers()) if isinstance(x, Tensor)}
    for x in model.parameters():
        shared[id(x)] = nn.Parameter(x.detach(), requires_grad=x.requires_grad)
    return copy.deepcopy(model, shared)
