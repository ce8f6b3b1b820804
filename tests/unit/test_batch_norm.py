"""BatchNorm over processes is BatchNorm over their whole batch; its running statistics are weights to averages, and can
be frozen.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distill_world import STUDENT, World, student_folder
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d, EvoNorm2dB0
from torch import Tensor, nn
from torch.distributed import HashStore, PrefixStore, ProcessGroupGloo  # type: ignore[attr-defined]

from unic_pipe.pipeline.students.build import build_student
from unic_pipe.schemas.config import OptimizerConfig
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.stages.distill.data.batches import Batch
from unic_pipe.stages.distill.model.average import WeightAverage
from unic_pipe.stages.distill.parallel.batch_norm import GlobalBatchNorm, running_statistics, share_statistics
from unic_pipe.stages.distill.training import Training

CNN = STUDENT.model_copy(
    update={
        "architecture": "test_efficientnet",
        "model_args": {},
        "image_size": 32,
        "optimizer": OptimizerConfig(epochs=2, batch=8, lr=0.03, warmup_epochs=0),
    }
)
SIZE = 3
"""Members, each a thread with a process group of its own: they talk to each other as processes do."""


@pytest.fixture(scope="module")
def totals() -> list[Callable[[Tensor], Tensor]]:
    """What adds up over all members, for each of them."""
    store = HashStore()

    def join(rank: int) -> Callable[[Tensor], Tensor]:
        group = ProcessGroupGloo(PrefixStore("group", store), rank, SIZE)

        def total(x: Tensor) -> Tensor:
            x = x.detach().clone()
            group.allreduce([x], dist.AllreduceOptions()).wait()
            return x

        return total

    with ThreadPoolExecutor(SIZE) as pool:
        return list(pool.map(join, range(SIZE)))


def network() -> nn.Module:
    """Layers of torch and timm, of both momenta, of maps and of vectors, with and without weights."""
    torch.manual_seed(0)
    found = nn.Sequential(
        BatchNormAct2d(5, act_layer=nn.PReLU),
        nn.Conv2d(5, 4, 3),
        nn.BatchNorm2d(4, momentum=None),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(4, affine=False),
    )
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.uniform_(-1, 1)
    return found


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.05)]
)
def test_statistics_and_gradients_are_those_of_the_whole_batch(
    totals: list[Callable[[Tensor], Tensor]], dtype: torch.dtype, tolerance: float
) -> None:
    mixed = dtype == torch.bfloat16
    net = network().to(torch.float32 if mixed else dtype)
    x, weights = torch.randn(9, 5, 6, 6) * 3 + 7, torch.randn(9, 4).to(dtype)

    def train(model: nn.Module, x: Tensor, weights: Tensor) -> list[Tensor]:
        """Gradients of two steps, outputs of the last, and outputs in evaluation mode."""
        x = x.detach().to(dtype, copy=True).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            for _ in range(2):
                y = model(x)
                assert y.dtype == dtype
                (y * weights).sum().backward()
            assert x.grad is not None
            return [x.grad, y.detach(), model.eval()(x).detach()]

    def member(rank: int) -> tuple[nn.Module, list[Tensor]]:
        model = deepcopy(net)
        share_statistics(model, totals[rank])
        return model, train(model, x.chunk(SIZE)[rank], weights.chunk(SIZE)[rank])

    plain = deepcopy(net)
    expected = train(plain, x, weights)
    with ThreadPoolExecutor(SIZE) as pool:
        models, found = zip(*pool.map(member, range(SIZE)), strict=True)
    for mine, theirs in zip(zip(*found, strict=True), expected, strict=True):
        torch.testing.assert_close(torch.cat(mine), theirs, rtol=tolerance, atol=tolerance)
    largest = max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
    for parameter, *mine in zip(plain.parameters(), *(m.parameters() for m in models), strict=True):
        assert parameter.grad is not None
        gradient = torch.stack([p.grad for p in mine]).sum(0)
        torch.testing.assert_close(gradient, parameter.grad, rtol=tolerance, atol=tolerance * largest)
    state = plain.state_dict()
    for model in models:
        assert list(model.state_dict()) == list(state), "exports are timm's"
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=min(tolerance, 1e-5), atol=min(tolerance, 1e-5))
            assert torch.equal(value, models[0].state_dict()[name]), "the same bits on every process"
    assert int(state["2.num_batches_tracked"]) == 2


def test_a_layer_with_statistics_of_its_own_is_refused() -> None:
    with pytest.raises(UserError, match="EvoNorm2dB0"):
        share_statistics(nn.Sequential(EvoNorm2dB0(4)), lambda x: x)
    # A norm that looks at one image at a time keeps none.
    share_statistics(nn.Sequential(nn.InstanceNorm2d(4), nn.GroupNorm(2, 4)), lambda x: x)


def test_averages_follow_running_statistics() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Linear(2, 2))
    average = WeightAverage([net, nn.Linear(2, 1)], 0.75)
    assert len(average.state()) == 4 + 2 + 2
    mean, variance = running_statistics(net)
    expected = torch.zeros(2), torch.ones(2)
    for _ in range(2):
        net[0](torch.randn(4, 2, 2, 2) + 5)
        average.update()
        expected = expected[0] * 0.75 + mean / 4, expected[1] * 0.75 + variance / 4
    now = mean.clone()
    with average.in_place():
        torch.testing.assert_close((mean, variance), expected)
        assert int(net.state_dict()["0.num_batches_tracked"]) == 2
    assert torch.equal(mean, now)
    share_statistics(net, lambda x: x)
    assert isinstance(net[0], GlobalBatchNorm)
    assert [s is t for s, t in zip(running_statistics(net), average._weights[4:6], strict=True)] == [True, True]


def test_frozen_layers_stay_as_they_are_and_batches_can_be_taken_in_parts(template: World, tmp_path: Path) -> None:
    frozen, states = CNN.model_copy(update={"batch_norm": "frozen"}), []
    for name, micro in (("whole", None), ("parts", 3)):
        shutil.copytree(template.folder, tmp_path / name, symlinks=True)
        world = World(tmp_path / name)
        assert world.distill(frozen, validation=True, micro_batch=micro)
        states.append(load_file(student_folder(world) / "export/model.safetensors"))
    assert states[0].keys() == states[1].keys() == build_student(CNN).state().keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=2e-5)
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(value, build_student(CNN).state()[name]), name
    assert not torch.equal(states[0]["bn1.weight"], torch.ones(16)), "its weights are trained"


def test_statistics_that_are_not_finite_stop_a_training(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else shows them: training normalises by the batch."""
    learn = Training.learn

    def overflow(self: Training, batch: Batch) -> None:
        learn(self, batch)
        running_statistics(self.model)[1].fill_(math.inf)

    monkeypatch.setattr(Training, "learn", overflow)
    with pytest.raises(StageError, match="weights not finite at step 4"):
        world.distill(CNN, log_every=1)
    assert not list(world.folder.glob("students/*/checkpoints/*.pt"))
