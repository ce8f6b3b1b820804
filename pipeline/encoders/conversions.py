"""Official checkpoint layouts, mapped onto timm models. `timm` itself is handled in models.py.

DINO and iBOT are plain vision transformers. DeiT-III names its LayerScale gamma_1 and gamma_2 and has no position
embedding for the class token. dBOT's fine-tuned file has fc_norm instead of a final norm. UNIC's students have their
blocks in chunks and registers without position. EfficientNet-Lite numbers its blocks through, where timm numbers them
by stage.

Shapes: N tokens with position embeddings, D dimensions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from unic_pipe.pipeline.encoders.sections import StateDict
from unic_pipe.schemas.errors import UserError

OFFICIAL = ("dino", "ibot", "deit3", "dbot-ft", "efficientnet-lite", "unic")
_SHOWN = 3
_PATCHES = "patch_embed.proj.weight"


def load_official(model: nn.Module, state: StateDict, conversion: str, path: Path) -> None:
    """Load an official state dict into a timm model, with every key accounted for but a classifier that it lacks.

    Position and patch embeddings are resampled (bicubic, as timm does) when the model's grid or patches are others.

    Raises:
        UserError: keys or shapes do not fit; the first few are listed.
    """
    if conversion == "dbot-ft" and not any(key.startswith("fc_norm.") for key in state):
        raise UserError(
            f"{path}: this is not the fine-tuned dBOT: it has no fc_norm, so it is the pretraining file or another model.",
            "The teacher dbot-ft needs 84.5_dbot_base_finetune.pth (the `ft. model` of dBOT's model table).",
        )
    if conversion == "efficientnet-lite":
        converted = efficientnet_lite_to_timm(state, [len(stage) for stage in _stages(model)])
    elif conversion == "unic":
        encoder = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
        converted = unic_to_timm(encoder or state, model)
    else:
        converted = vit_to_timm(state, model)
    own = model.state_dict()
    if not any(key.startswith("classifier.") for key in own):
        converted = {key: value for key, value in converted.items() if not key.startswith("classifier.")}
    check_fit(converted, own, f"{path} does not fit {conversion}")
    model.load_state_dict(converted)


def vit_to_timm(state: StateDict, model: nn.Module) -> StateDict:
    """Vision transformers of DINO, iBOT, DeiT-III and dBOT: drop heads (but a classifier that the model has, too), rename
    LayerScale, fit the position embedding."""
    heads = () if "head.weight" in model.state_dict() else ("head.",)
    dropped = (*heads, "head_dist.", "mask_token", "masked_embed")
    renamed = {
        re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key): value
        for key, value in state.items()
        if not key.startswith(dropped)
    }
    return _fit_sizes(renamed, model)


def classes_in(state: StateDict) -> int:
    """How many classes the classifier in an official file has; 0 where there is none."""
    return next((len(state[key]) for key in ("_fc.weight", "head.weight") if key in state), 0)


def unic_to_timm(encoder: StateDict, model: nn.Module) -> StateDict:
    """The official UNIC encoder: blocks out of their chunks, and position embeddings (of zero) for the registers."""
    state = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", k): v for k, v in encoder.items() if k != "mask_token"}
    registers = state.pop("register_tokens", None)
    if registers is not None:
        state["reg_token"] = registers
    if "pos_embed" in state and "cls_token" in state:
        cls_11D, patch_1ND = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
        if getattr(model, "no_embed_class", False):
            state["cls_token"], state["pos_embed"] = state["cls_token"] + cls_11D, patch_1ND
        elif registers is not None:
            state["pos_embed"] = torch.cat([cls_11D, torch.zeros_like(registers), patch_1ND], dim=1)
    return _fit_sizes(state, model)


def efficientnet_lite_to_timm(state: StateDict, depths: Iterable[int]) -> StateDict:
    """Keys of the EfficientNet-Lite PyTorch files onto timm's `tf_efficientnet_lite*`; `depths`: blocks per stage."""
    places = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    return {_lite_key(key, places): value for key, value in state.items()}


_LITE_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_LITE_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE_LATER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _lite_key(key: str, places: list[tuple[int, int]]) -> str:
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", key)
    if block is None:
        top, dot, rest = key.partition(".")
        return _LITE_TOP.get(top, top) + dot + rest
    number = int(block[1])
    if number >= len(places):
        return key
    stage, position = places[number]
    names = _LITE_FIRST if stage == 0 else _LITE_LATER
    return f"blocks.{stage}.{position}.{names.get(block[2], block[2])}.{block[3]}"


def _stages(model: nn.Module) -> list[nn.Sequential]:
    stages = getattr(model, "blocks", None)
    return [s for s in stages if isinstance(s, nn.Sequential)] if isinstance(stages, nn.Sequential) else []


def _fit_sizes(state: StateDict, model: nn.Module) -> StateDict:
    """A vision transformer's weights for the model's patches and their number."""
    from timm.layers import resample_patch_embed

    found, own = dict(state), model.state_dict().get(_PATCHES)
    if "pos_embed" in found:
        found["pos_embed"] = _fit_pos_embed(found["pos_embed"], model)
    patches = found.get(_PATCHES)
    if patches is not None and own is not None and patches.shape[:2] == own.shape[:2] and patches.shape != own.shape:
        found[_PATCHES] = resample_patch_embed(patches, list(own.shape[2:]))
    return found


def _fit_pos_embed(pos_1ND: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """Resample a square grid of position embeddings; the class token's comes first when there is one."""
    from timm.layers import resample_abs_pos_embed

    own = getattr(model, "pos_embed", None)
    prefix = 0 if getattr(model, "no_embed_class", False) else int(getattr(model, "num_prefix_tokens", 1))
    if not isinstance(own, torch.Tensor) or own.shape[1] == pos_1ND.shape[1]:
        return pos_1ND
    side, wanted = math.isqrt(pos_1ND.shape[1] - prefix), math.isqrt(own.shape[1] - prefix)
    if side * side + prefix != pos_1ND.shape[1] or pos_1ND.shape[2] != own.shape[2]:
        return pos_1ND
    resampled: torch.Tensor = resample_abs_pos_embed(
        pos_1ND, new_size=[wanted, wanted], old_size=[side, side], num_prefix_tokens=prefix
    )
    return resampled


def check_fit(state: StateDict, own: StateDict, problem: str) -> None:
    """Compare keys and shapes with a model's own.

    Raises:
        UserError: `problem`, then the first missing, unexpected and differently shaped keys.
    """
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    parts = [_some("missing", missing), _some("unexpected", unexpected), _some("wrong shape", shapes)]
    if any(parts):
        raise UserError(
            f"{problem}: {'; '.join(p for p in parts if p)}.",
            "Check that `weights`, `encoder`, `architecture` and `model_args` belong together.",
        )


def _some(title: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{title}: {', '.join(items[:_SHOWN])}{more}"
