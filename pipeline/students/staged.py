"""Students that are any other network: rungs are the stages that timm tells apart, and last what is read after export.

Shapes: B images, S image side in pixels, P patch tokens, D channels, H x W rows and columns of a map, L rungs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from unic_pipe.pipeline.encoders.readouts import (
    arranged,
    features_of,
    grid_of,
    probing_images,
    read_tokens,
    readout_of,
)
from unic_pipe.pipeline.students.student import RungOutputs, Student


class StagedStudent(Student):
    """A timm network that gives tokens or a map.

    A stage's cls is the mean of its map, and its patch tokens are the map brought to the student's grid. The last rung is
    read from the model's features as `pipeline.encoders` reads the exported student, by its own head.
    """

    def __init__(self, encoder: Any, image_size: int, rungs: int | None = None) -> None:
        """`rungs`: how many there are, if what is read takes the place of the last stage instead of following it.

        Raises:
            UserError: the network gives neither tokens nor a map.
        """
        super().__init__(encoder)
        self._parts: dict[nn.Module, None] = {}
        x_13SS = probing_images(image_size, next(encoder.parameters()).device)
        encoder.eval()
        with torch.no_grad(), _called_directly(self._parts):
            features, maps_1DHW = self._run(x_13SS)
            self.readout = readout_of(encoder, features)
            last = read_tokens(encoder, features, self.readout)
        encoder.train()
        self.grid = grid_of(encoder, features)
        self.stages = len(maps_1DHW) if rungs is None else rungs - 1
        kept = maps_1DHW[: self.stages]
        widths = tuple(int(stage.shape[1]) for stage in kept)
        self.widths = {"cls": (*widths, int(last.cls.shape[-1])), "patch": (*widths, int(last.patch.shape[-1]))}
        self.resample = nn.ModuleList(MapResampler((x.shape[2], x.shape[3]), self.grid) for x in kept)
        self._other_sizes: dict[tuple[tuple[int, int], tuple[int, int]], MapResampler] = {}

    @property
    def parts(self) -> list[nn.Module]:
        """The modules that the network calls itself, not by way of others."""
        return list(self._parts)

    def rung_outputs(self, x_B3SS: Tensor, rungs: tuple[int, ...]) -> RungOutputs:
        """Outputs of stages, and what is read."""
        features, maps_BDHW = self._run(x_B3SS)
        grid = grid_of(self.encoder, features)
        cls_LBD, patch_LBPD = [], []
        for rung in rungs:
            if rung < self.stages:
                cls_LBD.append(maps_BDHW[rung].mean(dim=(2, 3)))
                patch_LBPD.append(self._resampled(rung, maps_BDHW[rung], grid))
            else:
                tokens = read_tokens(self.encoder, features, self.readout)
                cls_LBD.append(tokens.cls)
                patch_LBPD.append(tokens.patch)
        return RungOutputs(cls_LBD, patch_LBPD)

    def _resampled(self, rung: int, x_BDHW: Tensor, grid: tuple[int, int]) -> Tensor:
        """A stage's map as patch tokens on a grid; matrices for images of other sizes are made when those come."""
        shapes = (x_BDHW.shape[2], x_BDHW.shape[3]), grid
        own: Any = self.resample[rung]
        if own.shapes == shapes:
            return own(x_BDHW)  # type: ignore[no-any-return]
        if shapes not in self._other_sizes:
            self._other_sizes[shapes] = MapResampler(*shapes).to(x_BDHW.device)
        return self._other_sizes[shapes](x_BDHW)  # type: ignore[no-any-return]

    def _run(self, x_B3SS: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The model's features, and the maps of its stages where timm gives them."""
        if not hasattr(self.encoder, "forward_intermediates"):
            return features_of(self.encoder, x_B3SS), []
        features, maps_BDHW = self.encoder.forward_intermediates(x_B3SS, output_fmt="NCHW")
        return arranged(self.encoder, features), maps_BDHW


@contextmanager
def _called_directly(found: dict[nn.Module, None]) -> Iterator[None]:
    """Collect the modules with parameters that are called outside of any other module's call."""
    inside: list[nn.Module] = []

    def enter(module: nn.Module, _: object) -> None:
        if not inside and any(True for _ in module.parameters()):
            found[module] = None
        inside.append(module)

    def leave(module: nn.Module, _: object, __: object) -> None:
        inside.pop()

    with register_module_forward_pre_hook(enter), register_module_forward_hook(leave):
        yield


class MapResampler(nn.Module):
    """Brings maps to a grid: averaged where they shrink, bilinear where they grow; a matrix for rows, one for columns."""

    def __init__(self, source: tuple[int, int], grid: tuple[int, int]) -> None:
        super().__init__()
        self.shapes = source, grid
        # Matrix products, because the gradients of pooling and interpolation have no fixed order of sums on a GPU.
        for name, size, target in zip(("rows", "columns"), source, grid, strict=True):
            self.register_buffer(name, _weights(size, target), persistent=False)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Patch tokens (B, P, D)."""
        rows, columns = self.get_buffer("rows"), self.get_buffer("columns")
        return (rows @ x_BDHW @ columns.T).flatten(2).transpose(1, 2)


def _weights(size: int, target: int) -> Tensor:
    """(target, size): what every new place takes of the old ones."""
    basis = torch.eye(size)[:, None]
    if target > size:
        return F.interpolate(basis, size=target, mode="linear", align_corners=False)[:, 0].T.contiguous()
    return F.adaptive_avg_pool1d(basis, target)[:, 0].T.contiguous()
