"""The official UNIC checkpoint: an encoder, its ladder of projectors and the teachers' statistics in one file.

`model` holds `module.encoder.*`, a vision transformer whose blocks stand in chunks (`blocks.0.3.norm1.weight` is that of
block 3), and `module.lp.heads.TEACHER.TOKEN.BLOCK.layers.{0,2}.{weight,bias}`; `teacher_ft_stats` holds mean and std by
teacher and token type; `args` is the argparse.Namespace of the training. Layout: github.com/naver/unic.

Shapes: N patch tokens, R registers, D width.
"""

from __future__ import annotations

import argparse
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unic_pipe.pipeline.encoders.checkpoints import read_file
from unic_pipe.pipeline.encoders.registry import triple
from unic_pipe.pipeline.encoders.sections import StateDict
from unic_pipe.schemas.config import EncoderConfig, Scalar
from unic_pipe.schemas.encoders import EncoderCard
from unic_pipe.schemas.errors import UserError

CONVERSION = "unic"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""The official code normalises every image with ImageNet's mean and standard deviation."""
_REQUIRED = ("pos_embed", "patch_embed.proj.weight", "norm.weight")

SIZES: dict[int, tuple[str, int, int]] = {
    192: ("tiny", 12, 3),
    384: ("small", 12, 6),
    768: ("base", 12, 12),
    1024: ("large", 24, 16),
}
"""The official encoders by width: name, depth, heads. timm's `vit_NAME_patch16_224` are the same."""

Statistics = dict[str, dict[str, dict[str, torch.Tensor]]]
"""`mean` and `std` by teacher and token type: (1, D) for cls, (1, 1, D) for patch."""


@dataclass(frozen=True)
class OfficialCheckpoint:
    """The content of a file, without the prefixes of its keys."""

    encoder: StateDict
    ladder: StateDict
    """By `TEACHER.TOKEN.BLOCK.layers.{0,2}.{weight,bias}`."""
    statistics: Statistics
    epoch: int
    args: dict[str, Any]

    def to_bytes(self) -> bytes:
        """The file. Tensors are copied, so that none brings along a larger one that it is a part of."""
        model = {f"module.encoder.{key}": value.clone() for key, value in self.encoder.items()}
        model |= {f"module.lp.heads.{key}": value.clone() for key, value in self.ladder.items()}
        content = {
            "model": model,
            "teacher_ft_stats": self.statistics,
            "epoch": self.epoch,
            "args": argparse.Namespace(**self.args),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()


def is_official(content: Mapping[str, Any]) -> bool:
    """Whether a weights file's content has the official layout."""
    model = content.get("model")
    return isinstance(model, Mapping) and any(re.match(r"(module\.)?encoder\.", str(key)) for key in model)


def is_transformer(model: Mapping[str, Any]) -> bool:
    """Whether an `encoder.` has what every official one has; others call theirs so, too."""
    keys = {str(key).removeprefix("module.") for key in model}
    return all(f"encoder.{key}" in keys for key in _REQUIRED)


def read_official(path: Path) -> OfficialCheckpoint:
    """Read a file; of other classes than tensors, only argparse.Namespace may be in it.

    Raises:
        UserError: not readable, another layout, or projectors that are not Linear, GELU, Linear.
    """
    return parse_official(read_file(path), path)


def parse_official(content: Mapping[str, Any], path: Path, encoder_only: bool = False) -> OfficialCheckpoint:
    """As `read_official`, from a file's content; with `encoder_only`, the ladder is left out and may be any.

    Raises:
        UserError: another layout.
    """
    if not is_official(content):
        found = ", ".join(map(str, list(content)[:6])) or "nothing"
        raise UserError(
            f"{path}: not an official UNIC checkpoint: no `encoder.*` under `model` (it holds {found}).",
            "For a teacher's file, name its layout: unic-pipe import FILE NAME --layout dino",
        )
    model = {str(key).removeprefix("module."): value for key, value in content["model"].items()}
    heads = {k.removeprefix("lp.heads."): v for k, v in model.items() if k.startswith("lp.heads.")}
    odd = [key for key in heads if not re.fullmatch(r".+\.(cls|patch)\.\d+\.layers\.[02]\.(weight|bias)", key)]
    odd += [key for key in model if not key.startswith(("encoder.", "lp.heads."))]
    if odd and not encoder_only:
        raise UserError(
            f"{path}: unexpected: {', '.join(odd[:3])}{f' and {len(odd) - 3} more' if len(odd) > 3 else ''}.",
            "A ladder of this program is Linear, GELU, Linear on every rung, without normalisation.",
        )
    args = content.get("args")
    return OfficialCheckpoint(
        encoder={k.removeprefix("encoder."): v for k, v in model.items() if k.startswith("encoder.")},
        ladder={} if encoder_only else heads,
        statistics=_statistics(content.get("teacher_ft_stats")),
        epoch=int(content.get("epoch") or 0),
        args=dict(vars(args)) if isinstance(args, argparse.Namespace) else dict(args or {}),
    )


def official_card(path: Path, config: EncoderConfig) -> EncoderCard | None:
    """What an official file says about its encoder; None for a file of another layout.

    The architecture is read off the tensors; the number of heads, which they do not show, is that of `model_args`, of
    the file's arguments, or one per 64 dimensions.

    Raises:
        UserError: the file cannot be read, or the number of heads is not known.
    """
    if path.suffix == ".safetensors":
        return None
    content = read_file(path)
    if not is_official(content) or (config.architecture and not is_transformer(content["model"])):
        return None
    checkpoint = parse_official(content, path, encoder_only=True)
    architecture, model_args = described(checkpoint, config.model_args, path)
    return EncoderCard(
        name=path.stem,
        architecture=config.architecture or architecture,
        model_args={} if config.architecture else model_args,
        conversion=CONVERSION,
        image_size=image_size(checkpoint.encoder, path),
        mean=_triple(checkpoint.args.get("image_mean"), MEAN),
        std=_triple(checkpoint.args.get("image_std"), STD),
        source=str(path),
    )


def described(checkpoint: OfficialCheckpoint, given: Mapping[str, Scalar], path: Path) -> tuple[str, dict[str, Scalar]]:
    """The timm architecture of a file's encoder and the arguments in which it differs; `given` ones take precedence.

    Raises:
        UserError: tensors are missing, or the number of heads is not known.
    """
    encoder = checkpoint.encoder
    _require(encoder, _REQUIRED, path)
    width, patch = encoder["pos_embed"].shape[-1], encoder["patch_embed.proj.weight"].shape[-1]
    numbers = [int(m[1]) for key in encoder if (m := re.match(r"blocks\.(?:\d+\.)?(\d+)\.norm1\.weight$", key))]
    depth = max(numbers, default=-1) + 1
    size, usual_depth, usual_heads = SIZES.get(width, ("base", 12, 12))
    found: dict[str, Scalar] = {}
    if patch != 16:
        found["patch_size"] = patch
    if width not in SIZES:
        found["embed_dim"] = width
    if depth != usual_depth:
        found["depth"] = depth
    heads = given.get("num_heads") or checkpoint.args.get("num_heads") or (width // 64 if width % 64 == 0 else None)
    if not isinstance(heads, int):
        raise UserError(
            f"{path}: the number of attention heads is not in the file, and its width {width} is not a multiple of 64.",
            "Say it: `model_args: {num_heads: N}` (unic-pipe import: --arg num_heads=N).",
        )
    if heads != usual_heads:
        found["num_heads"] = heads
    hidden = next((v.shape[0] for k, v in encoder.items() if k.endswith("mlp.fc1.weight")), 4 * width)
    if hidden != 4 * width:
        found["mlp_ratio"] = hidden / width
    if "register_tokens" in encoder:
        found["reg_tokens"] = encoder["register_tokens"].shape[1]
    if any(key.endswith("ls1.gamma") for key in encoder):
        found["init_values"] = 1e-5
    return f"vit_{size}_patch16_224", found


def image_size(encoder: StateDict, path: Path) -> int:
    """Side of the images in pixels, by the grid of the position embedding.

    Raises:
        UserError: the grid is not square.
    """
    patches, patch = encoder["pos_embed"].shape[1] - 1, int(encoder["patch_embed.proj.weight"].shape[-1])
    side = math.isqrt(patches)
    if side * side != patches:
        raise UserError(f"{path}: the position embedding has {patches} patches, which is not a square grid.")
    return side * patch


def _triple(found: Any, usual: tuple[float, float, float]) -> tuple[float, float, float]:
    """Three numbers of the arguments, which only files that this program wrote have."""
    return triple(found) if isinstance(found, list | tuple) and len(found) == 3 else usual


def _statistics(found: Any) -> Statistics:
    if not isinstance(found, Mapping):
        return {}
    return {
        str(teacher): {token: {n: torch.as_tensor(both[token][n]) for n in ("mean", "std")} for token in both}
        for teacher, both in found.items()
    }


def _require(encoder: StateDict, keys: tuple[str, ...], path: Path) -> None:
    missing = [key for key in keys if key not in encoder]
    if missing:
        unexpected = [key for key in encoder if key not in keys][:3]
        raise UserError(
            f"{path} does not fit unic: missing: {', '.join(missing)}; unexpected: {', '.join(unexpected) or 'none'}.",
            "Is this a checkpoint of a UNIC student?",
        )
