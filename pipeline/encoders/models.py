"""Creating timm models and filling them with weights."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from unic_pipe.pipeline.encoders.checkpoints import read_file
from unic_pipe.pipeline.encoders.conversions import OFFICIAL, classes_in, load_official
from unic_pipe.pipeline.encoders.makers import makers_readout
from unic_pipe.pipeline.encoders.registry import triple
from unic_pipe.pipeline.encoders.sections import StateDict, state_dict_of
from unic_pipe.schemas.arguments import require_arguments
from unic_pipe.schemas.config import Scalar
from unic_pipe.schemas.encoders import EncoderCard
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import EncoderDefinition

_SHAPES = "wrong shape"


def timm_card(name: str) -> EncoderCard:
    """What timm knows about `ARCHITECTURE` or `ARCHITECTURE.TAG`: preprocessing, licence, where its weights are.

    Raises:
        UserError: timm has no such model or tag; the nearest names are listed.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        question = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise UserError(
            f"timm {timm.__version__} has no model {architecture!r}{question}.",
            "python -c 'import timm; print(timm.list_models())' lists them; a newer timm has more.",
        )
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = [n.partition(".")[2] for n in timm.list_pretrained(architecture)]
        raise UserError(
            f"timm's {architecture} has no weights {tag!r} (there are: {', '.join(tags) or 'none'})."
        ) from None
    known: dict[str, Any] = cfg.to_dict() if cfg is not None else {}
    hub_id, url, full = known.get("hf_hub_id"), known.get("url") or None, _full_name(architecture, known.get("tag"))
    stems = list(dict.fromkeys((full, name, architecture)))
    downloads = ([url.rpartition("/")[2]] if isinstance(url, str) else []) if hub_id or url else []
    suffixes = (".safetensors", ".pth", ".bin")
    return EncoderCard(
        name=f"timm:{name}",
        architecture=architecture,
        licence=known.get("license") or "unknown",
        image_size=known.get("input_size", (3, 224, 224))[-1],
        mean=triple(known.get("mean", (0.485, 0.456, 0.406))),
        std=triple(known.get("std", (0.229, 0.224, 0.225))),
        readout=makers_readout(architecture, known.get("tag")),
        source=str(hub_id or url or f"timm architecture {architecture}"),
        files=(*(stem + suffix for stem in stems for suffix in suffixes), *downloads, f"{full}/model.safetensors")
        if hub_id or url
        else (),
        hub_id=hub_id,
        hub_files=_hub_files(known.get("hf_hub_filename")),
        url=url if isinstance(url, str) else None,
    )


def create(
    architecture: str, model_args: dict[str, Scalar], image_size: int, num_classes: int = 0, **more: Any
) -> nn.Module:
    """A timm model for square images of `image_size` pixels, with its random initialisation.

    Raises:
        UserError: an argument that cannot be given, no such architecture, or timm refuses the arguments.
    """
    require_arguments(architecture, model_args)
    timm_card(architecture.partition(".")[0])
    args: dict[str, Any] = dict(model_args)
    if fixed_size(architecture, args):
        args["img_size"] = image_size
    try:
        model: nn.Module = timm.create_model(architecture, num_classes=num_classes, **args, **more)
    except Exception as error:  # constructors say what they do not take in every way that Python has
        if "pretrained" in more and isinstance(error, RuntimeError | LookupError | AttributeError):
            raise  # of the weights
        shown = ", ".join(f"{k}={v}" for k, v in args.items())
        raise UserError(
            f"timm cannot build {architecture} with {shown or 'its defaults'}: {_short(error)}.",
            "Check model_args and image_size (a multiple of the patch size).",
        ) from None
    return model


def fixed_size(architecture: str, model_args: Mapping[str, object]) -> bool:
    """Whether a model is made for one image size, which its constructor must be told."""
    cfg = timm.get_pretrained_cfg(architecture)
    return cfg is not None and cfg.fixed_input_size and not model_args.get("dynamic_img_size")


def build(definition: EncoderDefinition, path: Path | None) -> nn.Module:
    """The model of a definition without classifier, filled from its weights file or from its seed (path None).

    The global random state is left as it was.

    Raises:
        UserError: the file cannot be read or does not fit.
    """
    if path is not None:
        return fill(definition, state_dict_of(read_file(path), path, definition.section), path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(definition.weights.removeprefix("random:")))
        return create(definition.architecture, definition.model_args, definition.image_size)


def build_whole(definition: EncoderDefinition, path: Path) -> nn.Module:
    """The model of a definition with the classifier that its weights file has.

    Raises:
        UserError: the file cannot be read or does not fit.
    """
    return fill(definition, state_dict_of(read_file(path), path, definition.section), path, whole=True)


def fill(definition: EncoderDefinition, state: StateDict, path: Path, whole: bool = False) -> nn.Module:
    """The model of a definition without classifier (`whole`: with that of the file), filled from a state dict of the file `path`.

    The global random state is left as it was.

    Raises:
        UserError: the state dict does not fit.
    """
    _require_real(state, path)
    d = definition
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if d.conversion not in OFFICIAL:
            return _load_timm(d, state, path, whole)
        model = create(d.architecture, d.model_args, d.image_size, classes_in(state) if whole else 0)
        load_official(model, state, d.conversion, path)
        return model


def _require_real(state: StateDict, path: Path) -> None:
    """PyTorch would copy the real part of complex weights, and quantised ones without their scale.

    Raises:
        UserError: a weight or bias is no floating-point number.
    """
    for key, value in state.items():
        if value.is_complex() or (key.endswith((".weight", ".bias")) and not value.is_floating_point()):
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(
                f"{path}: {key} holds {kind} numbers; the weights of an encoder are real floating-point numbers.",
                "Save the model's own weights, for instance as float32.",
            )


def _load_timm(d: EncoderDefinition, state: StateDict, path: Path, whole: bool) -> nn.Module:
    """Let timm map the keys and resample position embeddings, but insist that every key is used.

    timm is lenient as soon as the number of classes differs, so the model is made with the classifier that the file
    has, loaded strictly, and only then loses its classifier.
    """
    first: UserError | None = None
    for classes in _class_counts(d, state):
        overlay = {"state_dict": dict(state), "num_classes": classes, "custom_load": False}
        try:
            model = create(
                d.architecture, d.model_args, d.image_size, classes, pretrained=True, pretrained_cfg_overlay=overlay
            )
        except (RuntimeError, KeyError, AttributeError, IndexError) as error:
            # timm's key maps assume the layouts they know; whatever they raise means that this is another one.
            why = _mismatch(error)
            sizes = ", and that image_size is that of the weights: timm does not resample these"
            first = first or UserError(
                f"{path} does not fit {d.architecture}: {why}.",
                "Check that `weights`, `encoder`, `architecture` and `model_args` belong together"
                f"{sizes if why.startswith(_SHAPES) else ''}.",
            )
            continue
        cfg = getattr(model, "pretrained_cfg", None)
        if isinstance(cfg, dict):
            cfg.pop("state_dict", None)  # would keep a second copy of the weights alive
        if classes and not whole:
            model.reset_classifier(0)  # type: ignore[operator]
        return model
    assert first is not None
    raise first


def _class_counts(d: EncoderDefinition, state: StateDict) -> list[int]:
    """Sizes of classifier that a file may have, the likeliest first."""
    cfg = timm.get_pretrained_cfg(d.architecture)
    names = getattr(cfg, "classifier", None) or ()
    for name in (names,) if isinstance(names, str) else names:
        weight = state.get(f"{name}.weight")
        if weight is not None:
            return [int(weight.shape[0])]
    own = int(getattr(cfg, "num_classes", 0) or 0)
    return [0, own] if own else [0]


def _mismatch(error: BaseException) -> str:
    """The keys out of PyTorch's multi-line message."""
    text, parts = str(error), []
    for title in ("Missing", "Unexpected"):
        if found := re.search(rf"{title} key\(s\) in state_dict: (.*?)\.\s*(?:\n|$)", text):
            keys = found[1].replace('"', "").split(", ")
            parts.append(
                f"{title.lower()}: {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
            )
    if sizes := re.findall(r"size mismatch for (\S+):", text):
        parts.append(f"{_SHAPES}: {', '.join(sizes[:3])}{f' and {len(sizes) - 3} more' if len(sizes) > 3 else ''}")
    # PyTorch and timm both say the shape in the file first.
    if grey := re.search(
        r"(?:for|Pretrained) (\S+?):? .*?[\[(]\d+, 1, \d+, \d+[\])].*?(?:\[\d+, 3, |input_size\[0\]=3)", text
    ):
        parts.append(f"{grey[1]} takes 1 input channel, images have 3")
    return "; ".join(parts) or _short(error)


def _short(error: BaseException) -> str:
    """What an error says first, but for the line above all that PyTorch has against a state dict."""
    text = re.sub(r"^Error\(s\) in loading state_dict for \w+:\s*", "", str(error))
    return (text.strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


def _full_name(architecture: str, tag: str | None) -> str:
    return f"{architecture}.{tag}" if tag else architecture


def _hub_files(named: str | None) -> tuple[str, ...]:
    if named is None:
        return ("model.safetensors", "pytorch_model.bin")
    safe = re.sub(r"(_pytorch)?_model\.bin$", "_model.safetensors", named)
    return tuple(dict.fromkeys((safe, named)))
