"""How makers read their models where timm's architecture does not tell. No PyTorch here.

RADIO has one class token for each of its teachers, then registers. Its summary is the class tokens of the teachers that
have one to learn, side by side (`summary_idxs` in radio/radio_model.py, github.com/NVlabs/RADIO): the first three of
C-RADIOv3's four (CLIP, SigLIP, DINOv2; SAM's is left out) and the first two of C-RADIOv4's three (SigLIP2, DINOv3). timm
has the first as class token, and the others among the registers.

The ConvNeXts of DINOv3 and EUPE norm every place of the map as they norm its mean (`x_norm_patchtokens` in
models/convnext.py, github.com/facebookresearch/dinov3). timm, as the ConvNeXts of others, norms the mean alone.
"""

from __future__ import annotations

from unic_pipe.schemas.features import Readout


def makers_readout(architecture: str, tag: str | None) -> Readout | None:
    """How the makers of the weights `tag` of a timm architecture read them; None where the architecture tells."""
    if tag == "c_radio" and class_tokens(architecture) > 1:
        return "class-tokens"
    if architecture.startswith("convnext_") and (tag or "").startswith(("dinov3_", "eupe_")):
        return "cnn-norm"
    return None


def class_tokens(architecture: str) -> int:
    """How many of the first tokens of an architecture are its summary, where that is not one."""
    return 3 if "_radio_v3" in architecture else 2 if "_radio_v4" in architecture else 1
