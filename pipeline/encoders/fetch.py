"""Downloading weights: the only place of the encoders that touches the network, and only when it is asked to."""

from __future__ import annotations

import os
import shutil
import ssl
import tempfile
import urllib.error
import urllib.parse
import urllib.request
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

_PATIENCE_S = 10.0
"""Seconds that a server may take to answer at all."""


def fetch_weights(card: EncoderCard, weights_dir: Path, say: Callable[[str], None] = print) -> Path:
    """The weights of an encoder, downloaded into `weights_dir` (atomically) if they are not on this machine yet.

    Raises:
        UserError: its weights cannot be downloaded, because they come with a Python package or do not exist.
        StageError: no network, or the download failed; the message says where to put the file by hand.
    """
    found = find_weights(card, weights_dir)
    if found is not None:
        return found
    if card.package:
        raise UserError(f"{card.name}: its weights come with a Python package.", install_command(card))
    if card.hub_id is None and card.url is None:
        raise UserError(f"{card.name}: there is nothing to download; give a file with `weights: PATH`.")
    say(f"{card.name}: downloading {card.hub_id or card.url} (licence: {card.licence})")
    _require_reachable(card.name, _address(card), _by_hand(card, weights_dir))
    weights_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".download-", dir=weights_dir))
    try:
        file = _download(card, folder)
        target = weights_dir / _file_name(card, file.suffix)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(file, target)
        sync_folder(weights_dir)
    except OSError as error:
        raise StageError(
            f"{card.name}: the download failed ({error}).", f"Try again, or {_by_hand(card, weights_dir)}"
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
    target = weights_dir / downloaded_name(repository)
    by_hand = f"put config.json and {FOLDER_FILES[0]} into {target} by hand."
    _require_reachable(f"hf-hub:{repository}", _on_hub(repository, "config.json"), by_hand)
    weights_dir.mkdir(parents=True, exist_ok=True)
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
        raise StageError(f"hf-hub:{repository}: the download failed ({error}).", f"Try again, or {by_hand}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _address(card: EncoderCard) -> str:
    """Where the preferred file of the weights is."""
    if card.hub_id is None:
        assert card.url is not None
        return card.url
    return _on_hub(card.hub_id, card.hub_files[0])


def _on_hub(repository: str, name: str) -> str:
    """Address of a file of a hub's repository."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository, name, endpoint=os.environ.get("HF_ENDPOINT"))


def _file_name(card: EncoderCard, suffix: str) -> str:
    """The name in `weights_dir` by which `find_weights` finds a file of this kind."""
    stem = Path(card.files[0]).stem
    return next((name for name in card.files if Path(name).suffix == suffix), stem + suffix)


def _by_hand(card: EncoderCard, weights_dir: Path) -> str:
    address = _address(card)
    return f"put {address} there by hand: {weights_dir / _file_name(card, Path(address).suffix)}"


def _require_reachable(name: str, address: str, by_hand: str) -> None:
    """Libraries that download try for a minute before they say that there is no network.

    Raises:
        StageError: the server cannot be reached.
    """
    if not address.startswith("http"):
        return
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_PATIENCE_S).close()
    except urllib.error.HTTPError:  # an answer; what it means is the download's business
        return
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):  # it answers, and the download may know other certificates
            return
        server = urllib.parse.urlsplit(address).netloc
        raise StageError(f"{name}: {server} cannot be reached ({reason}).", f"Without a network, {by_hand}") from error


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
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in names:
        try:
            # The token of a logged-in user is huggingface_hub's business, not ours.
            return Path(hf_hub_download(repository, name, local_dir=folder))
        except LocalEntryNotFoundError as error:  # a kind of the next one, and says that the hub did not answer
            raise ConnectionError(f"the connection to {repository} broke off") from error
        except EntryNotFoundError:
            continue
    raise FileNotFoundError(f"{repository} has none of {', '.join(names)}")
