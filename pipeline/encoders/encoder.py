"""A frozen encoder: images in, cls and patch tokens out.

Shapes: B images, 3 channels, H x W pixels, P patch tokens (grid rows x columns, row by row), D dimensions (those of cls
and of patch tokens may differ).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from unic_pipe.pipeline.encoders.readouts import Tokens, features_of, read_tokens
from unic_pipe.pipeline.views.photometric import Plan, finish
from unic_pipe.pipeline.views.render import normalize, render_view
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.features import ComputeDefinition, EncoderDefinition
from unic_pipe.schemas.recipes import CENTER

if TYPE_CHECKING:
    from unic_pipe.pipeline.encoders.compiled import Compiled

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Encoder(nn.Module):
    """A timm model, frozen and in evaluation mode, whose tokens are read as its definition says, in float32."""

    def __init__(self, model: nn.Module, definition: EncoderDefinition) -> None:
        super().__init__()
        self.model = model
        self.definition = definition
        self._channels_last: bool | None = None
        self._compiled: Compiled | None = None
        self.requires_grad_(False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.model.parameters()).device

    def train(self, mode: bool = True) -> Encoder:
        """Stay in evaluation mode: a teacher inside a training loop must not change."""
        del mode
        super().train(False)
        return self

    def forward(self, x_B3HW: torch.Tensor) -> Tokens:
        """Tokens of normalised float images of `definition.image_size` pixels, on the images' device."""
        features = features_of(self.model, x_B3HW)
        cls_BD, patch_BPD = read_tokens(self.model, features, self.definition.readout)
        return Tokens(cls_BD.float(), patch_BPD.float().contiguous())

    def transform(self, image: Image.Image) -> torch.Tensor:
        """An image as the encoder sees it in `evaluate`: its centre crop, normalised, float32 (3, S, S)."""
        image_HWC = np.asarray(image.convert("RGB"))
        x_3SS = render_view(image_HWC, CENTER, 0, "", 0, self.definition.image_size)
        return normalize(x_3SS[None], self.definition.mean, self.definition.std)[0]

    def encode(self, x_B3HW: torch.Tensor, compute: ComputeDefinition, plan: Plan | None = None) -> Tokens:
        """Tokens on the CPU, as of `encode_on_device`."""
        cls_BD, patch_BPD = self.encode_on_device(x_B3HW, compute, plan)
        return Tokens(cls_BD.cpu(), patch_BPD.cpu())

    def encode_on_device(
        self, x_B3HW: torch.Tensor, compute: ComputeDefinition, plan: Plan | None = None, batch: int | None = None
    ) -> Tokens:
        """Tokens of uint8 images (rendered at `definition.image_size`), as float32 on the encoder's device.

        `plan` is the photometric part of the views when it is still to be done (None: the images are finished); it is
        done first. Normalisation is float32 on the encoder's device; autocast dtype, TF32, memory format and whether
        the pass is compiled are `compute`'s. Compiled passes are of `batch` images (by default the definition's), to
        which fewer are filled up. The number of CPU threads is the process's: set it before, once per thread.

        Raises:
            StageError: the device ran out of memory, or the encoder cannot be compiled; the message says what to set.
        """
        device, count = self.device, len(x_B3HW)
        self._arrange(compute.channels_last)
        with self.memory_explained(len(x_B3HW)), torch.inference_mode(), precision(compute, device):
            if plan is not None:
                x_B3HW = finish(x_B3HW, plan, device)
            x_B3HW = x_B3HW.to(device)
            if compute.compile:
                x_B3HW = _filled_up(x_B3HW, batch or compute.batch)
            x_B3HW = normalize(x_B3HW, self.definition.mean, self.definition.std)
            if compute.channels_last:
                x_B3HW = x_B3HW.contiguous(memory_format=torch.channels_last)
            if not compute.compile:
                tokens: Tokens = self(x_B3HW)
                return tokens
            cls_BD, patch_BPD = self._in_compiled_form()(x_B3HW)
            return Tokens(cls_BD[:count], patch_BPD[:count])

    @contextmanager
    def memory_explained(self, images: int) -> Iterator[None]:
        """Work on so many images that turns the device's out-of-memory errors into a StageError that says what to set."""
        try:
            yield
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            size, device = self.definition.image_size, self.device
            raise StageError(
                f"Out of memory on {device}: {images} images of {size} x {size} pixels through"
                f" {self.definition.architecture}.",
                f"Go on with a smaller batch: unic-pipe extract --batch {max(1, images // 2)}"
                " (embed: --batch, too; evaluate: a smaller compute.batch).",
            ) from error

    def _in_compiled_form(self) -> Compiled:
        if self._compiled is None:
            from unic_pipe.pipeline.encoders.compiled import Compiled

            self._compiled = Compiled(self.forward, self.definition.architecture)
        return self._compiled

    def _arrange(self, channels_last: bool) -> None:
        if channels_last is not self._channels_last:
            self.model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
            self._channels_last = channels_last


@contextmanager
def precision(compute: ComputeDefinition, device: torch.device) -> Iterator[None]:
    """Autocast; on CUDA also TF32 as asked and cuDNN's deterministic algorithms, both put back afterwards."""
    dtype = _DTYPES[compute.dtype]
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
        if device.type != "cuda":
            yield
            return
        cudnn: Any = torch.backends.cudnn  # its attributes are made at run time
        matmul, conv = torch.backends.cuda.matmul, cudnn.conv
        before = matmul.fp32_precision, conv.fp32_precision, cudnn.deterministic, cudnn.benchmark
        matmul.fp32_precision = conv.fp32_precision = "tf32" if compute.tf32 else "ieee"
        cudnn.deterministic, cudnn.benchmark = True, False
        try:
            yield
        finally:
            matmul.fp32_precision, conv.fp32_precision, cudnn.deterministic, cudnn.benchmark = before


def _filled_up(x_B3HW: torch.Tensor, batch: int) -> torch.Tensor:
    """Images, and black ones behind them until there are `batch`. No image's features depend on the others'."""
    missing = batch - len(x_B3HW)
    return torch.cat([x_B3HW, x_B3HW.new_zeros((missing, *x_B3HW.shape[1:]))]) if missing else x_B3HW


def _out_of_memory(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text
