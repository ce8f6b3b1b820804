"""Putting an exported folder on the Hugging Face hub: the only place of `export` that touches the network."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.stages.export.stage import export_folder, write_folder
from unic_pipe.stages.export.subject import Subject

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
LOGIN = "Get a token that may write at https://huggingface.co/settings/tokens, then: hf auth login (or set HF_TOKEN)"


def repository(push: str) -> str:
    """`OWNER/NAME` of `hf:OWNER/NAME`. Raises UserError: it is not of that form."""
    kind, _, name = push.partition(":")
    if kind != "hf" or not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", name, re.ASCII):
        raise UserError(f"--push {push}: not the name of a repository.", "Write hf:USER/NAME.")
    return name


class Hub:
    """The hub (its address: `HF_ENDPOINT`), once it has said that it knows the user."""

    def __init__(self, name: str, by_hand: str) -> None:
        """`name`: of the repository; `by_hand`: what to type where there is no network.
        Raises UserError: offline, or no token that is good; StageError: the hub does not answer."""
        from huggingface_hub import HfApi, constants, get_token

        self.name = name
        if constants.HF_HUB_OFFLINE:
            raise UserError("--push needs the network, and HF_HUB_OFFLINE is set.", by_hand)
        token = get_token()
        if token is None:
            raise UserError("--push needs a token of the Hugging Face hub, and there is none.", LOGIN)
        # The library reads the variable only when it is imported.
        self._api: HfApi = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
        self._by_hand = by_hand
        self._ask(self._api.whoami)

    def upload(self, folder: Path) -> str:
        """Make the repository if it is not there, and put a folder's files into it; its address.
        Raises UserError: the token may not write there; StageError: the upload failed."""
        address = self._ask(lambda: self._api.create_repo(self.name, exist_ok=True))
        message = "Exported by unic-pipe"
        self._ask(lambda: self._api.upload_folder(repo_id=self.name, folder_path=folder, commit_message=message))
        return str(address)

    def _ask(self, request: Callable[[], T]) -> T:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return request()
        except HfHubHTTPError as error:
            said = f"hf:{self.name}: the hub says {error.response.status_code} ({_first_line(error)})."
            if error.response.status_code in (401, 403):
                raise UserError(said, LOGIN) from error
            raise StageError(said, self._by_hand) from error
        except Exception as error:  # the library's ways to reach a server each have errors of their own
            raise StageError(
                f"hf:{self.name}: no connection to the hub ({_first_line(error)}).", self._by_hand
            ) from error


def push_folder(hub: Hub, it: Subject, target: Path | None, overwrite: bool, adaptors: bool = True) -> tuple[str, str]:
    """Upload timm's folder, which is also written if a target is named; the repository's address, and the licence."""
    address = f"hf-hub:{hub.name}"
    if target is not None:
        licence = export_folder(it, target, overwrite, adaptors, address)
        return hub.upload(target), licence
    with TemporaryDirectory(prefix="unic-pipe-") as folder:
        licence = write_folder(it, Path(folder), address, adaptors)
        return hub.upload(Path(folder)), licence


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
