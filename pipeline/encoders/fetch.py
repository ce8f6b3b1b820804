"""Downloading weights: the only place of the encoders that touches the network, and only when it is asked to."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from unic_pipe.pipeline.encoders.locate import (
    FOLDER_FILES,
    downloaded_name,
    find_weights,
    install_command,
    repository_folder,
)
from unic_pipe.pipeline.storage import sync_folder
from unic_pipe.schemas.encoders import EncoderCard
from unic_pipe.schemas.errors import StageError, UserError


def fetch_weights(card: EncoderCard, weights_dir: Path, say: Callable[[str], None] = print) -> Path:
    """The weights of an encoder, downloaded into `weights_dir` (atomically) if they are not on this machine yet.

    Raises:
        UserError: its weights cannot be downloaded, because they come with a Python package or do not exist.
        StageError: the download failed; the message says where to put the file by hand.
    """
    found = find_weights(card, weights_dir)
    if found is not None:
        return found
    if card.package:
        raise UserError(f"{card.name}: its weights come with a Python package.", install_command(card))
    if card.hub_id is None and card.url is None:
        raise UserError(f"{card.name}: there is nothing to download; give a file with `weights: PATH`.")
    say(f"{card.name}: downloading {card.hub_id or card.url} (licence: {card.licence})")
    weights_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".download-", dir=weights_dir))
    try:
        file = _download(card, folder)
        target = weights_dir / (Path(card.files[0]).stem + file.suffix if card.hub_id else card.files[0])
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(file, target)
        sync_folder(weights_dir)
    except OSError as error:
        raise StageError(
            f"{card.name}: the download failed ({error}).",
            f"Try again, or put {card.files[0]} into {weights_dir} by hand (from {card.url or card.hub_id}).",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def fetch_repository(repository: str, weights_dir: Path, say: Callable[[str], None] = print) -> Path:
    """The folder with `config.json` and weights of a hub's repository, downloaded into `weights_dir` if it is nowhere.

    Raises:
        StageError: the download failed, or there is no model of timm in the repository.
    """
    found = repository_folder(repository, weights_dir)
    if found is not None:
        return found
    say(f"hf-hub:{repository}: downloading (its page states the licence)")
    weights_dir.mkdir(parents=True, exist_ok=True)
    target = weights_dir / downloaded_name(repository)
    folder = Path(tempfile.mkdtemp(prefix=".download-", dir=weights_dir))
    try:
        for names in (("config.json",), FOLDER_FILES):
            with _from_hub(repository, names, folder).open("rb") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        folder.chmod(0o755)
        sync_folder(folder)
        os.replace(folder, target)
        sync_folder(weights_dir)
    except OSError as error:
        raise StageError(
            f"hf-hub:{repository}: the download failed ({error}).",
            f"Try again, or put config.json and {FOLDER_FILES[0]} into {target} by hand.",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _download(card: EncoderCard, folder: Path) -> Path:
    """Download into `folder` from the hub if the card names a repository there, else from its address."""
    if card.hub_id is None:
        from torch.hub import HASH_REGEX, download_url_to_file

        assert card.url is not None
        named = HASH_REGEX.search(card.url.rpartition("/")[2])
        file = folder / f"weights{Path(card.url).suffix}"
        download_url_to_file(card.url, str(file), named.group(1) if named else None, progress=True)
        return file
    return _from_hub(card.hub_id, card.hub_files, folder)


def _from_hub(repository: str, names: Sequence[str], folder: Path) -> Path:
    """Download into `folder` the first of these files that the repository has."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for name in names:
        try:
            # The token of a logged-in user is huggingface_hub's business, not ours.
            return Path(hf_hub_download(repository, name, local_dir=folder))
        except EntryNotFoundError:
            continue
    raise FileNotFoundError(f"{repository} has none of {', '.join(names)}")
