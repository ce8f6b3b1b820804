"""Checkpoints that are whole or not there: written, hashed, made durable, and only then pointed to.

Training goes on while that happens: `save` copies the state to host memory, and a thread does the rest.

`checkpoints/step-00000123.pt` holds the state, `checkpoints/step-00000123.json` its entry (size, SHA-256, student),
and `latest.json` repeats the entry of the newest. Equal states give equal bytes.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from unic_pipe.pipeline.storage import LocalStore, sha256
from unic_pipe.schemas.base import short
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.students import CheckpointEntry

FOLDER = "checkpoints"
LATEST = "latest.json"

State = dict[str, Any]
"""Tensors, numbers, strings, lists and dicts of them: what `torch.load(weights_only=True)` reads."""


class Checkpoints:
    """The checkpoints in one student's folder."""

    def __init__(self, store: LocalStore, student: str, rows: str, keep: int, warn: Callable[[str], None]) -> None:
        """Args:
        store: the student's folder.
        student: digest of the student's definition.
        rows: digest of the rows it trains on.
        keep: number of checkpoints that are kept.
        warn: shows a line about a checkpoint that cannot be used.
        """
        self.store, self.student, self.rows, self.keep, self.warn = store, student, rows, keep, warn
        self.threads: int | None = None
        """CPU threads of the training, which every checkpoint records."""
        self.compiled: bool | None = None
        """Whether its steps are compiled; recorded, too."""
        self.at_once: int | None = None
        """Micro-batches that are learned from at once; likewise."""
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def save(self, step: int, state: State, before: Callable[[], None] | None = None) -> None:
        """Begin to write the state after `step` steps; it may change as soon as this returns.

        At most one is being written: this waits for the one before. `before` is called first, by the writing thread.

        Raises:
            StageError: the checkpoint before could not be written.
        """
        self.settle()
        content = _canonical({"step": step, "student": self.student, "rows": self.rows, "state": state})
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = self._writer.submit(self._write, step, content, before)

    def settle(self) -> None:
        """Wait until the last checkpoint is durable and `latest.json` names it.

        Raises:
            StageError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def check(self) -> None:
        """Raise what `settle` would, if that is known already."""
        if self._writing is not None and self._writing.done():
            self.settle()

    def close(self) -> None:
        """End the thread when it is done."""
        if self._writer is not None:
            self._writer.shutdown()

    def _write(self, step: int, content: State, before: Callable[[], None] | None) -> None:
        if before is not None:
            before()
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getvalue()
        file = f"{FOLDER}/step-{step:08d}.pt"
        entry = CheckpointEntry(
            file=file,
            step=step,
            size=len(data),
            digest=sha256(data),
            student=self.student,
            threads=self.threads,
            compiled=self.compiled,
            at_once=self.at_once,
        )
        self.store.put(file, data)
        self.store.put(_entry_key(file), entry.to_bytes())
        self.store.put(LATEST, entry.to_bytes())
        self._forget_old(step)

    def load(self) -> tuple[int, State] | None:
        """The newest checkpoint that is undamaged, as (steps done, state on the CPU); None when there is none.

        Raises:
            StageError: a checkpoint belongs to another student, or to other rows.
        """
        for entry in self._entries():
            if entry.student != self.student:
                raise StageError(
                    f"{self.store.path(entry.file)} belongs to student {short(entry.student)}, "
                    f"not to {short(self.student)}.",
                    f"Move it out of {self.store.path(FOLDER)} and run the same command again.",
                )
            data = self._intact(entry)
            if data is not None:
                content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
                self._check_owner(entry, content)
                return int(content["step"]), content["state"]
        if any(key.endswith(".pt") for key in self.store.keys(FOLDER)):
            self.warn(f"No checkpoint in {self.store.path(FOLDER)} can be used; training starts from the beginning.")
        return None

    def _entries(self) -> Iterator[CheckpointEntry]:
        """`latest.json`'s entry, then all others, newest first; unreadable ones are skipped."""
        seen: set[str] = set()
        keys = sorted((k for k in self.store.keys(FOLDER) if k.endswith(".json")), reverse=True)
        for key in [LATEST, *keys]:
            try:
                entry = CheckpointEntry.from_bytes(self.store.get(key), str(self.store.path(key)))
            except FileNotFoundError:
                continue
            except UserError as error:
                self.warn(f"Skipped: {error.message}")
                continue
            if entry.file not in seen:
                seen.add(entry.file)
                yield entry

    def _intact(self, entry: CheckpointEntry) -> bytes | None:
        try:
            data = self.store.get(entry.file)
        except FileNotFoundError:
            data = None
        if data is not None and len(data) == entry.size and sha256(data) == entry.digest:
            return data
        state = "is missing" if data is None else "is damaged or was replaced"
        self.warn(f"Skipped: {self.store.path(entry.file)} {state}; going back to the checkpoint before it.")
        return None

    def _check_owner(self, entry: CheckpointEntry, content: State) -> None:
        for what, expected in (("student", self.student), ("rows", self.rows)):
            if content[what] != expected:
                raise StageError(
                    f"{self.store.path(entry.file)} was trained on other {what} ({short(content[what])}, "
                    f"expected {short(expected)}).",
                    f"Move it out of {self.store.path(FOLDER)} and run the same command again.",
                )

    def _forget_old(self, newest: int) -> None:
        """Keep the last `keep` checkpoints up to `newest`; later ones are leftovers of a damaged past."""
        files = sorted(key for key in self.store.keys(FOLDER) if key.endswith(".pt"))
        current = [f for f in files if f <= f"{FOLDER}/step-{newest:08d}.pt"]
        for file in set(files) - set(current[-self.keep :]):
            self.store.delete(_entry_key(file))
            self.store.delete(file)


def _canonical(value: Any) -> Any:
    """The same content in memory and containers of its own: training changes the tensors, and pickle writes an object
    that it has seen as a reference to it, so that a state which was loaded, whose parts are shared differently, would
    give other bytes.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return sys.intern(value) if isinstance(value, str) else value


def _entry_key(file: str) -> str:
    return file.removesuffix(".pt") + ".json"
