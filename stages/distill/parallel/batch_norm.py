"""BatchNorm over processes: in training, mean and variance are those of the global batch (`torch.nn.SyncBatchNorm` takes
no tensors of a CPU, and knows no layers of timm).

With xhat = (x - mean) / sqrt(var + eps) and y = weight · xhat + bias, the gradient is (Ioffe and Szegedy, arXiv
1502.03167, section 3): dx = weight / sqrt(var + eps) · (dy - mean(dy) - xhat · mean(dy · xhat)), means over the batch.

Shapes: C channels; x is (B, C, …) or (B, C), whose other dimensions are what statistics are taken over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from unic_pipe.schemas.errors import UserError

Total = Callable[[Tensor], Tensor]
"""Adds up over all processes, in a new tensor (`World.sum`)."""

_FORWARDS = (_BatchNorm.forward, BatchNormAct2d.forward)
"""What is known to normalise and then apply the children in their order."""


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The layers that normalise by statistics of the batch in training, and by running ones after it."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) or getattr(m, "running_var", None) is not None]


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Their running means and variances, (C,) each: the buffers that training changes, but for counts of batches."""
    return [s_C for layer in batch_norms(model) for s_C in layer.buffers(recurse=False) if s_C.is_floating_point()]


def share_statistics(model: nn.Module, total: Total) -> None:
    """Let every BatchNorm of a model take its statistics over all processes; parameters, buffers and names stay.

    Raises:
        UserError: a layer keeps statistics in a way of its own.
    """
    local = set(batch_norms(model))
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child not in local:
                continue
            if not isinstance(child, _BatchNorm) or type(child).forward not in _FORWARDS:
                raise UserError(
                    f"Layer {type(child).__name__} of the student takes statistics over the images of one process only.",
                    "Train this student in one process, or choose another norm_layer (students.NAME.model_args).",
                )
            setattr(parent, name, GlobalBatchNorm(child, total))


class GlobalBatchNorm(_BatchNorm):
    """A BatchNorm layer (of timm: with its activation) whose statistics in training are those of all processes."""

    def __init__(self, local: _BatchNorm, total: Total) -> None:
        """Takes over the parameters, buffers and children of `local`, under their names."""
        super().__init__(
            local.num_features, local.eps, local.momentum, local.affine, local.track_running_stats, device="meta"
        )
        self.total = total
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(local, name))
        for name, child in local.named_children():
            setattr(self, name, child)
        self.train(local.training)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # processes talk in the middle of it
    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, of the shape and type of `x`; in training, running statistics follow."""
        if self.training:
            y = self._normalize(x)
        else:
            untracked = self.running_mean is None
            y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, untracked, 0.0, self.eps)
        for child in self.children():
            y = child(y)
        return y

    def _normalize(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            count, mean_C, var_C = _moments(x, self.total)
            if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
                new = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), new)
                self.running_var.lerp_((var_C * count / (count - 1)).to(self.running_var.dtype), new)
            mean_C, var_C = (s_C.to(_precise(x)) for s_C in (mean_C, var_C))
        weight_C = self.weight if self.weight is not None else torch.ones_like(mean_C)
        bias_C = self.bias if self.bias is not None else torch.zeros_like(mean_C)
        y: Tensor = _Normalize.apply(x, weight_C, bias_C, mean_C, var_C, count, self.eps, self.total)
        return y


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _moments(x: Tensor, total: Total) -> tuple[Tensor, Tensor, Tensor]:
    """Number of values a channel, mean (C,) and biased variance (C,) over all processes, float64."""
    dims = [d for d in range(x.ndim) if d != 1]
    var_C, mean_C = (s_C.double() for s_C in torch.var_mean(x.to(_precise(x)), dims, correction=0))
    own_C = torch.full_like(mean_C, x.numel() / x.shape[1])
    count_C, first_C, second_C = total(torch.stack([own_C, own_C * mean_C, own_C * (var_C + mean_C**2)]))
    mean_C = first_C / count_C
    return count_C[0], mean_C, (second_C / count_C - mean_C**2).clamp(min=0)


class _Normalize(torch.autograd.Function):
    """weight · (x - mean) / sqrt(var + eps) + bias, where mean and variance are those of all processes' x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        mean_C: Tensor,
        var_C: Tensor,
        count: Tensor,
        eps: float,
        total: Total,
    ) -> Tensor:
        ctx.save_for_backward(x, weight_C, mean_C, var_C, count)
        ctx.eps, ctx.total = eps, total
        return F.batch_norm(x, mean_C, var_C, weight_C, bias_C, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_C, var_C, count = ctx.saved_tensors
        # As if mean and variance were constants: gradients of weight and bias are sums over this process's images.
        dx, dweight_C, dbias_C = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight_C, mean_C, var_C, None, None, False, ctx.eps, [True, True, True]
        )
        mean_dyx_C, mean_dy_C = ctx.total(torch.stack([dweight_C, dbias_C]).double()) / count
        invstd_C = (var_C.double() + ctx.eps).rsqrt()
        slope_C = -weight_C * invstd_C**2 * mean_dyx_C
        shift_C = -weight_C * invstd_C * mean_dy_C - slope_C * mean_C
        slope, shift = (s_C.to(_precise(x)).view(-1, *[1] * (x.ndim - 2)) for s_C in (slope_C, shift_C))
        return (dx + torch.addcmul(shift, x, slope)).to(x.dtype), dweight_C, dbias_C, None, None, None, None, None
