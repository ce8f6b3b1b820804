"""Names that the official UNIC code and its files use. No PyTorch here."""

from __future__ import annotations

LADDER_FILE = "ladder.safetensors"
"""Beside the encoder in the folder of an imported checkpoint: projectors and statistics under their official names."""

TEACHERS = {
    "dino": "dino_vitbase_16",
    "ibot": "ibot_vitbase_16",
    "deit3": "deit3_vitbase_16",
    "dbot-ft": "dbotft_vitbase_16",
    "dinov2-g": "dino2_vitgiant_14",
    "metaclip-h": "metaclip_vithuge_14",
}
"""The official code's names of the teachers that it knows."""
