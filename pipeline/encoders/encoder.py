"""A frozen encoder: images in, cls and patch tokens out.

Shapes: B images, 3 channels, H x W pixels, P patch tokens (grid rows x columns, row by row), D dimensions (those of cls
and of patch tokens may differ), T tokens of a vision transformer (prefix tokens first).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from unic_pipe.pipeline.views.photometric import Plan, finish
from unic_pipe.pipeline.views.render import normalize
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.features import ComputeDefinition, EncoderDefinition

Readout = Literal["vit", "cnn", "fc-norm", "head"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Tokens(NamedTuple):
    """What an encoder says about a batch: float32 `cls` (B, D) and `patch` (B, P, D)."""

    cls: torch.Tensor
    patch: torch.Tensor

    def of(self, token: TokenType) -> torch.Tensor:
        """The tokens of a type."""
        return self.cls if token == "cls" else self.patch


class Encoder(nn.Module):
    """A timm model, frozen and in evaluation mode, with one of four ways to read its tokens.

    `vit`: all tokens after the final norm; cls is the class token, or the mean of the patch tokens where there is none;
    register and distillation tokens are dropped. `cnn`: patch tokens are the final feature map, row by row; cls is what
    the model's own head pools from it. `fc-norm`: patch tokens are those before any final norm, and cls is fc_norm of
    their mean. `head`: patch tokens as for `vit`; cls is what the model's own head pools from all tokens.
    """

    def __init__(self, model: nn.Module, definition: EncoderDefinition) -> None:
        super().__init__()
        self.model = model
        self.definition = definition
        self._channels_last: bool | None = None
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
        if self.definition.readout == "cnn":
            cls_BD, patch_BPD = _read_map(self.model, features)
        elif self.definition.readout == "fc-norm":
            patch_BPD = features[:, _prefix(self.model) :]
            cls_BD = self.model.fc_norm(patch_BPD.mean(dim=1))  # type: ignore[operator]
        elif self.definition.readout == "head":
            patch_BPD = features[:, _prefix(self.model) :]
            cls_BD = own_pooling(self.model, features)
        else:
            patch_BPD = features[:, _prefix(self.model) :]
            cls_BD = features[:, 0] if _has_class_token(self.model) else patch_BPD.mean(dim=1)
        return Tokens(cls_BD.float(), patch_BPD.float().contiguous())

    def encode(self, x_B3HW: torch.Tensor, compute: ComputeDefinition, plan: Plan | None = None) -> Tokens:
        """Tokens on the CPU, as of `encode_on_device`."""
        cls_BD, patch_BPD = self.encode_on_device(x_B3HW, compute, plan)
        return Tokens(cls_BD.cpu(), patch_BPD.cpu())

    def encode_on_device(self, x_B3HW: torch.Tensor, compute: ComputeDefinition, plan: Plan | None = None) -> Tokens:
        """Tokens of uint8 images (rendered at `definition.image_size`), as float32 on the encoder's device.

        `plan` is the photometric part of the views when it is still to be done (None: the images are finished); it is
        done first. Normalisation is float32 on the encoder's device; autocast dtype, TF32 and memory format are
        `compute`'s. The number of CPU threads is the process's: set it before, once per thread.

        Raises:
            StageError: the device ran out of memory; the message says what to set.
        """
        device = self.device
        self._arrange(compute.channels_last)
        with self.memory_explained(len(x_B3HW)), torch.inference_mode(), precision(compute, device):
            if plan is not None:
                x_B3HW = finish(x_B3HW, plan, device)
            x_B3HW = normalize(x_B3HW.to(device), self.definition.mean, self.definition.std)
            if compute.channels_last:
                x_B3HW = x_B3HW.contiguous(memory_format=torch.channels_last)
            tokens: Tokens = self(x_B3HW)
            return tokens

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
                " (for evaluate: a smaller compute.batch).",
            ) from error

    def _arrange(self, channels_last: bool) -> None:
        if channels_last is not self._channels_last:
            self.model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
            self._channels_last = channels_last


def features_of(model: nn.Module, x_B3HW: torch.Tensor) -> torch.Tensor:
    """A timm model's unpooled features: tokens (B, T, D), or a map brought to (B, D, rows, columns).

    Raises:
        UserError: the model gives neither.
    """
    features: object = model.forward_features(x_B3HW)  # type: ignore[operator]
    if not isinstance(features, torch.Tensor) or features.ndim not in (3, 4):
        raise UserError(
            f"{type(model).__name__} gives neither tokens nor a feature map, so it cannot be used as an encoder."
        )
    if features.ndim == 4 and getattr(model, "output_fmt", "NCHW") == "NHWC":
        return features.permute(0, 3, 1, 2)
    return features


def readout_of(model: nn.Module, features: torch.Tensor) -> Readout:
    """Which readout fits a model, from what `features_of` gave for images that are not of one colour.

    Attention pooling is the summary that its makers trained. A class token without one is, too, even where timm's head
    would take a mean (DINOv3). Of a model with neither, cls is the mean of its patch tokens if its head agrees.
    """
    if features.ndim == 4:
        return "cnn"
    if getattr(model, "attn_pool", None) is not None:
        return "head"
    fc_norm = getattr(model, "fc_norm", None)
    mean_BD = features[:, _prefix(model) :].mean(dim=1)
    if isinstance(fc_norm, nn.Module) and not isinstance(fc_norm, nn.Identity):
        return "fc-norm" if _pools_as(model, features, fc_norm(mean_BD)) else "head"
    return "vit" if _has_class_token(model) or _pools_as(model, features, mean_BD) else "head"


def own_pooling(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """(B, D): what a model's own head makes of its features before the classifier."""
    pooled: torch.Tensor = model.forward_head(features, pre_logits=True)  # type: ignore[operator]
    return pooled


def pooling_of(model: nn.Module, readout: Readout) -> str:
    """What cls is, in words."""
    if readout == "vit":
        return "class token" if _has_class_token(model) else "mean of the patch tokens"
    if readout == "head":
        return "attention pooling" if getattr(model, "attn_pool", None) is not None else "the model's own head"
    return "pooled map" if readout == "cnn" else "fc_norm of the mean patch token"


def _pools_as(model: nn.Module, features: torch.Tensor, expected_BD: torch.Tensor) -> bool:
    """Whether a model's own head gives this; also for heads that take something else than features."""
    try:
        pooled: object = own_pooling(model, features)
    except (TypeError, AttributeError):
        return True
    if not isinstance(pooled, torch.Tensor) or pooled.ndim != 2:
        return True
    if pooled.shape != expected_BD.shape:
        return False
    return torch.allclose(pooled, expected_BD, rtol=1e-3, atol=1e-4, equal_nan=True)


def grid_of(model: nn.Module, features: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the patch tokens; vision transformers see square images here.

    Raises:
        UserError: the tokens are not a square grid.
    """
    if features.ndim == 4:
        return features.shape[2], features.shape[3]
    patches = features.shape[1] - _prefix(model)
    side = math.isqrt(patches)
    if side * side != patches:
        raise UserError(f"{type(model).__name__}: {patches} patch tokens are not a square grid.")
    return side, side


def _read_map(model: nn.Module, map_BDHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    given = map_BDHW.permute(0, 2, 3, 1) if getattr(model, "output_fmt", "NCHW") == "NHWC" else map_BDHW
    pooled = own_pooling(model, given)
    cls_BD = pooled if pooled.ndim == 2 else map_BDHW.mean(dim=(2, 3))
    return cls_BD, map_BDHW.flatten(2).transpose(1, 2)


def _prefix(model: nn.Module) -> int:
    return int(getattr(model, "num_prefix_tokens", 0))


def _has_class_token(model: nn.Module) -> bool:
    return _prefix(model) > 0 and getattr(model, "cls_token", None) is not None


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


def _out_of_memory(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text
