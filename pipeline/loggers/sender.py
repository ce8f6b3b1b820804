"""Rows on their way to a logger, in a thread of its own: a logger that is slow, or fails, is no matter to a training.

Rows are those of `metrics.parquet`, which a killed training continues from its checkpoint. What a logger has is known
from the logger itself, or else from `logged/<logger>.json`; it is not sent twice, and what is missing is sent first.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import Event, Thread

from unic_pipe.pipeline.loggers.logger import Logger, Maker, Run, Value
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.documents import usable_document
from unic_pipe.schemas.loggers import LoggedRun

Row = Mapping[str, Value]
"""`step`, and the values by name."""
RETRY_S = 60.0
"""How long after a failure a logger is tried again."""
GRACE_S, LONGEST_S = 15.0, 60.0
"""How long the end of a stage waits for a logger: since that last took something, and altogether."""


class Sender:
    """Sends the rows of one run to one logger until it is closed."""

    def __init__(self, name: str, make: Maker, run: Run, rows: Sequence[Row], say: Callable[[str], None]) -> None:
        """Args:
        name: the logger's.
        make: makes one.
        run: without an `id` it gets one, which a file keeps.
        rows: in the order of their steps; others may be added meanwhile, which `wake` tells.
        say: told once what goes wrong.
        """
        self.name, self._make, self._run, self._rows, self._say = name, make, run, rows, say
        self._store, self._key = LocalStore(run.folder), f"logged/{name}.json"
        self._more, self._closing, self._moved = Event(), Event(), time.monotonic()
        self._thread = Thread(target=self._work, name=f"logger {name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There are more rows."""
        self._more.set()

    def close(self) -> None:
        """There will be no more rows: send the rest. `wait` waits for it."""
        self._moved = time.monotonic()
        self._closing.set()
        self._more.set()

    def wait(self, end: float) -> bool:
        """Wait as long as the logger takes something, but not after `end`; whether it was sent everything, or fails."""
        while self._thread.is_alive():
            left = min(end, self._moved + GRACE_S) - time.monotonic()
            if left <= 0:
                return False
            self._thread.join(left)
        return True

    def _work(self) -> None:
        told = False
        while True:
            last_try = self._closing.is_set()
            try:
                return self._send_all()
            except Exception as error:
                if not told:
                    text = " ".join(str(error).split())[:300] or type(error).__name__
                    self._say(
                        f"{self._run.name}: the logger {self.name} fails, and the {_WORK[self._run.kind]} goes on without "
                        f"it: {text}. It is tried again every minute, and gets then what it missed."
                    )
                told = True
            if last_try:
                return
            self._closing.wait(RETRY_S)

    def _send_all(self) -> None:
        mark = self._mark()
        while not self._unsent(mark.step):
            if self._closing.is_set():
                return
            self._next()
        logger = self._make()
        known = logger.begin(replace(self._run, id=mark.id))
        self._moved = time.monotonic()
        if known is not None:
            mark = mark.model_copy(update={"step": known})
        place = 0
        try:
            while True:
                closing = self._closing.is_set()  # what was added before is sent
                place, mark = self._send(logger, place, mark, whole=closing)
                if closing:
                    return
                self._next()
        finally:
            logger.end()

    def _next(self) -> None:
        self._more.wait()
        self._more.clear()

    def _unsent(self, step: int | None) -> bool:
        rows = self._rows
        return bool(rows) and (step is None or _step(rows[-1]) > step)

    def _send(self, logger: Logger, place: int, mark: LoggedRun, whole: bool) -> tuple[int, LoggedRun]:
        """Send the rows from `place` on, those of a step together; the last step only if it is `whole`, since the row of
        a validation may follow. The place after what was sent, and the mark."""
        while place < (count := len(self._rows)):
            step, values, end = _step(self._rows[place]), dict[str, Value](), place
            while end < count and _step(self._rows[end]) == step:
                values |= self._rows[end]
                end += 1
            if end == count and not whole:
                break
            if mark.step is None or step > mark.step:
                before, mark = mark, mark.model_copy(update={"step": step})
                # First the mark: after a kill between the two a step is missing, and none is there twice.
                self._store.put(self._key, mark.to_bytes())
                try:
                    logger.log(step, {name: value for name, value in values.items() if name != "step"})
                except BaseException:
                    self._store.put(self._key, before.to_bytes())
                    raise
                self._moved = time.monotonic()
            place = end
        return place, mark

    def _mark(self) -> LoggedRun:
        """How far the run is, as the file says; a new one if there is none of this run."""
        found = usable_document(self._store, self._key, LoggedRun)
        if found is None or self._run.id not in ("", found.id):
            found = LoggedRun(id=self._run.id or f"{self._run.folder.name}-{secrets.token_hex(3)}")
            self._store.put(self._key, found.to_bytes())
        return found


_WORK = {"student": "training", "evaluation": "evaluation"}


def _step(row: Row) -> int:
    step = row["step"]
    assert isinstance(step, (int, float))
    return int(step)


def close_all(senders: Sequence[Sender], say: Callable[[str], None]) -> None:
    """Send the rest to all of them; those that take too long are left, which is said."""
    for sender in senders:
        sender.close()
    end = time.monotonic() + LONGEST_S
    late = [sender.name for sender in senders if not sender.wait(end)]
    if late:
        say(f"{', '.join(late)} did not take everything in time; the same command sends the rest.")


def send(run: Run, rows: Sequence[Row], makers: Mapping[str, Maker], say: Callable[[str], None]) -> None:
    """Send rows that are all there, and wait for it as `close_all` does."""
    close_all([Sender(name, make, run, rows, say) for name, make in makers.items()], say)
