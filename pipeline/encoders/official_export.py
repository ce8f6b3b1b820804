"""Writing our encoders and ladders in the layout of the official UNIC checkpoint, and keeping its parts in a folder.

An imported file is a folder that timm loads (`model.safetensors`, `config.json`) with `ladder.safetensors` beside it:
the projectors, the statistics and the unused mask token under their official names, `epoch` and `args` as metadata.

Shapes: R registers, D width, H hidden width of a rung, L rungs, T teachers, E teacher dimension.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unic_pipe.pipeline.encoders.official import SIZES, OfficialCheckpoint, Statistics
from unic_pipe.pipeline.encoders.official_names import LADDER_FILE, TEACHERS
from unic_pipe.pipeline.encoders.sections import StateDict
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.losses import LossConfig

_STATISTICS, _LADDER, _MASK, _METADATA = "statistics.", "ladder.", "mask_token", "official"

_TOP = ("cls_token", "pos_embed", "register_tokens", "mask_token")
_ENCODER_KEY = re.compile(
    r"(cls_token|pos_embed|register_tokens|mask_token|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)"
    r"|blocks\.\d+\.(norm[12]\.(weight|bias)|attn\.(qkv|proj)\.(weight|bias)|mlp\.fc[12]\.(weight|bias)|ls[12]\.gamma))"
)


def encoder_to_official(model: nn.Module, mask_token: torch.Tensor | None = None) -> StateDict:
    """The tensors of a timm vision transformer under the official names, in the official order.

    Registers' position embeddings are added to them, and the class token's is zero where timm has none; both give the
    same outputs.

    Raises:
        UserError: the model has parts that the official encoder does not have.
    """
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    registers = state.pop("reg_token", None)
    count = 0 if registers is None else registers.shape[1]
    _refuse_other_parts(model, state, count)
    pos_1ND = state["pos_embed"]
    if getattr(model, "no_embed_class", False):
        pos_1ND = torch.cat([torch.zeros_like(state["cls_token"]), pos_1ND], dim=1)
    elif registers is not None:
        registers = registers + pos_1ND[:, 1 : 1 + count]
        pos_1ND = torch.cat([pos_1ND[:, :1], pos_1ND[:, 1 + count :]], dim=1)
    state["pos_embed"] = pos_1ND
    if registers is not None:
        state["register_tokens"] = registers
    state["mask_token"] = torch.zeros(1, pos_1ND.shape[2]) if mask_token is None else mask_token
    ordered = [*(key for key in _TOP if key in state), *(key for key in state if key not in _TOP)]
    return {re.sub(r"^blocks\.", "blocks.0.", key): state[key].contiguous() for key in ordered}


def official_names(teachers: Sequence[str]) -> dict[str, str]:
    """What the official file calls our teachers; dots cannot be part of a name there.

    Raises:
        UserError: two would have one name.
    """
    names = {teacher: TEACHERS.get(teacher, teacher.replace(".", "_")) for teacher in teachers}
    if len(set(names.values())) < len(names):
        raise UserError(
            f"Teachers {', '.join(teachers)} would have equal names in an official file.", "Rename one of them."
        )
    return names


def named_ladder(
    state: Mapping[str, torch.Tensor], names: Mapping[str, str], blocks: Sequence[int], loss: LossConfig | None = None
) -> StateDict:
    """The projectors of a ladder's state dict in the official layout.

    In the state dict, all first layers of a rung are one (T·H, D) matrix and all second layers of a teacher one
    (E, sum of H) matrix; `blocks` are the encoder blocks of the rungs, and `names` what each teacher is called, in the
    order of the ladder; `loss` says which token types it predicts of whom.
    """
    found, known = {}, loss or LossConfig()
    for teacher in sorted(names, key=lambda teacher: names[teacher]):
        for token in (t for t in known.terms_of(teacher) if f"heads.{t}.first.0.weight" in state):
            head, column = f"heads.{token}", 0
            predicted = [name for name in names if token in known.terms_of(name)]
            i = predicted.index(teacher)
            for place, block in enumerate(blocks):
                first_weight, first_bias = (state[f"{head}.first.{place}.{kind}"] for kind in ("weight", "bias"))
                hidden = len(first_bias) // len(predicted)
                own, columns = slice(i * hidden, (i + 1) * hidden), slice(column, column + hidden)
                key = f"{names[teacher]}.{token}.{block}.layers"
                found[f"{key}.0.weight"], found[f"{key}.0.bias"] = first_weight[own], first_bias[own]
                found[f"{key}.2.weight"] = state[f"{head}.second.{i}"][:, columns]
                found[f"{key}.2.bias"] = state[f"{head}.second_bias.{i}_bias"][place]
                column += hidden
    return {key: value.detach().cpu().contiguous() for key, value in found.items()}


def architecture_name(model: Any) -> str:
    """The official code's name of an encoder; `custom` when it has no function that builds it."""
    width, depth, heads = int(model.embed_dim), len(model.blocks), int(model.blocks[0].attn.num_heads)
    name, usual_depth, usual_heads = SIZES.get(width, ("", 0, 0))
    parts = model.state_dict()
    plain = "reg_token" not in parts and "blocks.0.ls1.gamma" not in parts
    usual = (depth, heads, len(parts["blocks.0.mlp.fc1.bias"])) == (usual_depth, usual_heads, 4 * width)
    return f"vit_{name}" if plain and usual else "custom"


def ladder_to_bytes(checkpoint: OfficialCheckpoint) -> bytes:
    """What an official file holds beside the encoder's weights, as safetensors."""
    from safetensors.torch import save

    tensors = ladder_to_tensors(checkpoint.ladder, checkpoint.statistics)
    if _MASK in checkpoint.encoder:
        tensors[_MASK] = checkpoint.encoder[_MASK]
    args = {key: value for key, value in checkpoint.args.items() if _is_json(value)}
    # One entry, because safetensors writes several in any order, and equal checkpoints are to give equal bytes.
    metadata = {_METADATA: json.dumps({"epoch": checkpoint.epoch, "args": args})}
    return save({key: value.contiguous() for key, value in tensors.items()}, metadata)


def ladder_to_tensors(ladder: StateDict, statistics: Statistics) -> StateDict:
    """Projectors and statistics under the keys that they have in a file together."""
    tensors = {f"{_LADDER}{key}": value for key, value in ladder.items()}
    for teacher, by_token in statistics.items():
        for token, both in by_token.items():
            tensors |= {f"{_STATISTICS}{teacher}.{token}.{name}": value for name, value in both.items()}
    return tensors


def ladder_from_tensors(tensors: StateDict) -> tuple[StateDict, Statistics]:
    """Projectors, in the order of the official file, and statistics from a file that holds them together."""
    statistics: Statistics = {}
    for key in sorted(key for key in tensors if key.startswith(_STATISTICS)):
        teacher, token, name = key.removeprefix(_STATISTICS).rsplit(".", 2)
        statistics.setdefault(teacher, {}).setdefault(token, {})[name] = tensors[key]
    ladder = {k.removeprefix(_LADDER): v for k, v in tensors.items() if k.startswith(_LADDER)}
    return dict(sorted(ladder.items(), key=lambda item: _place(item[0]))), statistics


def read_folder(folder: Path, model: nn.Module) -> OfficialCheckpoint:
    """The official checkpoint that was imported into a folder; `model` is the folder's encoder.

    Raises:
        UserError: the folder has no ladder.
    """
    from safetensors import safe_open

    path = folder / LADDER_FILE
    if not path.is_file():
        raise UserError(
            f"{folder}: no {LADDER_FILE}, so there is no ladder to export.",
            "Export a finished student (unic-pipe export NAME FILE.pth), or an imported UNIC checkpoint.",
        )
    with safe_open(path, framework="pt") as file:
        metadata = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    ladder, statistics = ladder_from_tensors(tensors)
    return OfficialCheckpoint(
        encoder=encoder_to_official(model, tensors.get(_MASK)),
        ladder=ladder,
        statistics=statistics,
        epoch=metadata.get("epoch", 0),
        args=metadata.get("args", {}),
    )


def _place(key: str) -> tuple[str, str, int, str, str]:
    """Order of the official file: teacher, token type, block, layer, weight before bias."""
    teacher, token, block, _, layer, kind = key.rsplit(".", 5)
    return teacher, token, int(block), layer, {"weight": "0", "bias": "1"}[kind]


def _refuse_other_parts(model: nn.Module, state: StateDict, registers: int) -> None:
    odd = [key for key in state if not _ENCODER_KEY.fullmatch(key)]
    odd += [key for key in ("cls_token", "pos_embed", "norm.weight", "patch_embed.proj.bias") if key not in state]
    norm, blocks = getattr(model, "norm", None), getattr(model, "blocks", None)
    if isinstance(norm, nn.LayerNorm) and norm.eps != 1e-6:
        odd.append(f"norm.eps {norm.eps}")
    act = getattr(getattr(blocks[0], "mlp", None), "act", None) if isinstance(blocks, nn.Sequential) else None
    if not isinstance(act, nn.GELU) or act.approximate != "none":
        odd.append(f"activation {type(act).__name__}")
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    if prefix != 1 + registers:
        odd.append(f"{prefix} prefix tokens")
    if odd:
        raise UserError(
            f"The official UNIC encoder cannot express this one; it differs in: {', '.join(odd[:4])}"
            f"{f' and {len(odd) - 4} more' if len(odd) > 4 else ''}.",
            "Its export folder loads in timm; only plain vision transformers (timm's vit_*) have the official layout.",
        )


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
