"""Exporting a student as a folder that timm loads: `model.safetensors` and `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from unic_pipe.pipeline.storage import Store, sha256
from unic_pipe.schemas.config import Scalar
from unic_pipe.schemas.features import Readout
from unic_pipe.schemas.recipes import CENTER


class ExportDigests(NamedTuple):
    """SHA-256 of the two files of an export."""

    weights: str
    config: str


def export_student(
    store: Store,
    model: nn.Module,
    *,
    architecture: str,
    model_args: Mapping[str, Scalar],
    image_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    readout: Readout | None = None,
    prefix: str = "",
) -> ExportDigests:
    """Write a timm model without classifier in timm's local-dir layout, below `prefix` (such as `export/`).

    `model_args` build it again, with `img_size` where its weights depend on it.

    Equal weights give equal bytes. `timm.create_model("local-dir:FOLDER", pretrained=True)` loads the result, and so
    does `checkpoint:FOLDER`, which reads its tokens as `readout` says; timm passes over that. Both files are written
    atomically, the configuration last.
    """
    from safetensors.torch import save

    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    weights = save(state, metadata={"format": "pt"})
    body = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": int(getattr(model, "num_features", 0)),
        "model_args": dict(model_args),
        **({"readout": readout} if readout is not None else {}),
        "pretrained_cfg": {
            "input_size": [3, image_size, image_size],
            "fixed_input_size": "img_size" in model_args,
            "interpolation": "bicubic",
            "crop_pct": CENTER.center_fraction,
            "crop_mode": "center",
            "mean": list(mean),
            "std": list(std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": _first_conv(model),
            "classifier": "head",
        },
    }
    config = (json.dumps(body, indent=1) + "\n").encode()
    store.put(f"{prefix}model.safetensors", weights)
    store.put(f"{prefix}config.json", config)
    return ExportDigests(sha256(weights), sha256(config))


def _first_conv(model: nn.Module) -> str | None:
    return next((name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)
