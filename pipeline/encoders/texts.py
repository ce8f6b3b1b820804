"""Class text embeddings: read from a file, or computed by open_clip from class names and prompt templates.

Shapes: C classes, F dimensions, T templates.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.encoders.locate import cached_download
from unic_pipe.pipeline.storage import sha256_of_file
from unic_pipe.pipeline.storage.regular import require_regular
from unic_pipe.schemas.base import json_digest
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.protocols import TEXT_FILES, ZeroShotConfig

_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Names of weights in open_clip's repositories."""
_AT_ONCE = 256
"""Prompts per forward pass."""


@dataclass(frozen=True)
class ClassTexts:
    """One embedding per class, in the order of the class numbers; not normalised."""

    names: tuple[str, ...]
    x_CF: NDArray[np.float32]


def texts_digest(config: ZeroShotConfig, folder: Path) -> str:
    """Identity of the embeddings: the file's SHA-256, and for names also the model and the templates.

    Raises:
        UserError: there is no such file.
    """
    file = _file(config, folder)
    digest = sha256_of_file(file)
    if file.suffix in TEXT_FILES:
        return digest
    weights = config.text_weights or ""
    if (folder / weights).is_file():
        weights = sha256_of_file(folder / weights)
    made = [digest, config.text_model, weights, list(config.templates)]
    return json_digest(made)


def text_names(config: ZeroShotConfig, folder: Path) -> tuple[str, ...]:
    """The names of a zero-shot benchmark's classes, in the order of their embeddings; nothing is embedded.

    Raises:
        UserError: the file is missing or not of the described form.
    """
    file = _file(config, folder)
    return read_texts(file).names if file.suffix in TEXT_FILES else tuple(_names(file))


def class_texts(config: ZeroShotConfig, folder: Path, device: str = "cpu") -> ClassTexts:
    """The embeddings of a zero-shot benchmark; paths are relative to `folder`.

    Raises:
        UserError: the file is missing or not of the described form, or open_clip is needed and missing.
    """
    file = _file(config, folder)
    if file.suffix in TEXT_FILES:
        return read_texts(file)
    names = _names(file)
    assert config.text_model is not None
    assert config.text_weights is not None
    weights = config.text_weights
    weights = str(folder / weights) if (folder / weights).is_file() else weights
    return embed_names(names, config.templates, config.text_model, weights, device)


def read_texts(file: Path) -> ClassTexts:
    """Embeddings from `.npz` or `.safetensors`.

    Raises:
        UserError: not such a file, another number of names than embeddings, or values that are not finite.
    """
    try:
        names, x_CF = _read_npz(file) if file.suffix == ".npz" else _read_safetensors(file)
    except UserError:
        raise
    except Exception as error:  # NumPy and zipfile raise many kinds on damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160].rstrip(".")
        raise UserError(f"{file}: {reason}.", _FORM) from None
    if x_CF.dtype.kind != "f":
        raise UserError(f"{file}: embeddings of type {x_CF.dtype}, not floats.", _FORM)
    if x_CF.ndim != 2 or len(names) != len(x_CF) or len(names) < 2:
        raise UserError(f"{file}: {len(names)} names, and embeddings of shape {x_CF.shape}.", _FORM)
    if not np.isfinite(x_CF).all() or not np.abs(x_CF).max(axis=1).all():
        raise UserError(f"{file}: an embedding is zero, NaN or infinite.", _FORM)
    return ClassTexts(tuple(names), x_CF.astype(np.float32))


_FORM = (
    "An .npz holds the arrays `embeddings` (classes × dims) and `names`; a .safetensors the tensor `embeddings` and the "
    "metadata entry `names`, a JSON list: both in the order of the class numbers."
)


_MOST_BYTES = 1 << 30


def _read_npz(file: Path) -> tuple[list[str], NDArray[Any]]:
    with zipfile.ZipFile(require_regular(file)) as members:
        held = sum(info.file_size for info in members.infolist())
    if held > _MOST_BYTES:
        raise ValueError(f"it unpacks to {held:,} bytes, more than any text embeddings take")
    with np.load(file, allow_pickle=False) as arrays:
        missing = {"embeddings", "names"} - set(arrays.files)
        if missing:
            raise ValueError(f"no array {' and '.join(sorted(missing))} in it")
        return [str(name) for name in arrays["names"].reshape(-1)], arrays["embeddings"]


def _read_safetensors(file: Path) -> tuple[list[str], NDArray[Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(require_regular(file), framework="np") as tensors:
            names = json.loads((tensors.metadata() or {})["names"])
            return [str(name) for name in names], tensors.get_tensor("embeddings")
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def embed_names(
    names: Sequence[str], templates: Sequence[str], model: str, weights: str | None, device: str = "cpu"
) -> ClassTexts:
    """Embed prompts with open_clip's text encoder: normalise each prompt's, then take a class's mean (Radford et al. 2021).

    `weights` is a file, a tag whose weights are on this machine, or None for random ones: nothing is downloaded here.

    Raises:
        UserError: open_clip is not installed, has no such model, or its weights or tokenizer are not on this machine.
    """
    import torch
    from torch.nn import functional as F

    try:
        import open_clip
    except ImportError:
        raise UserError(
            "Class names are embedded by open_clip, which is not installed.", 'pip install ".[clip]"'
        ) from None
    _refuse_hub_models(open_clip, model)
    file = None if weights is None else _local_weights(open_clip, model, weights)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            clip = open_clip.create_model(model, pretrained=file, device=device).eval()
        tokenizer = open_clip.get_tokenizer(model)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"open_clip cannot load {model} with weights {weights}: {str(error).splitlines()[0] if str(error) else error!r}.",
            "open_clip.list_pretrained() lists names and tags.",
        ) from None
    prompts = [template.format(name) for name in names for template in templates]
    with torch.inference_mode():
        parts = [
            F.normalize(clip.encode_text(tokenizer(prompts[at : at + _AT_ONCE]).to(device)).float(), dim=-1)
            for at in range(0, len(prompts), _AT_ONCE)
        ]
    x_CTF = torch.cat(parts).view(len(names), len(templates), -1)
    return ClassTexts(tuple(names), x_CTF.mean(1).cpu().numpy())


def _refuse_hub_models(open_clip: Any, model: str) -> None:
    """Models whose text encoder or tokenizer a hub would have to be asked for."""
    known = None if ":" in model else open_clip.get_model_config(model)
    text = (known or {}).get("text_cfg", {})
    if ":" in model or text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        raise UserError(
            f"{model}: the text encoder or tokenizer of this model comes from a hub, and nothing is downloaded here.",
            "Compute the embeddings elsewhere, and name their file (.npz or .safetensors) under classes.",
        )


def _local_weights(open_clip: Any, model: str, weights: str) -> str:
    """The file of a tag's weights as open_clip or the hub left it on this machine; a file as it is."""
    if Path(weights).is_file():
        return weights
    known = open_clip.get_pretrained_cfg(model, weights)
    if not known:
        raise UserError(
            f"open_clip has no weights {weights} of {model}, and there is no such file.",
            "open_clip.list_pretrained() lists names and tags.",
        )
    url, (repository, _, name) = known.get("url") or None, known.get("hf_hub", "").rpartition("/")
    found = cached_download(repository or None, (name,) if name else _CLIP_FILES, url)
    if found is None:
        raise UserError(
            f"The weights {weights} of {model} are not on this machine, and nothing is downloaded here.",
            f"Download {url or f'one of {_CLIP_FILES} from {repository}'}, and name the file: text_weights: FILE",
        )
    return str(found)


def _names(file: Path) -> list[str]:
    names = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise UserError(f"{file}: no class names in it.", "One name a line, in the order of the class numbers.")
    return names


def _file(config: ZeroShotConfig, folder: Path) -> Path:
    file = folder / Path(config.classes).expanduser()
    if not file.is_file():
        raise UserError(f"There is no file of classes {file}.", "Give its path from the working folder.")
    return file
