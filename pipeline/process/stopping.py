"""Stopping politely: the first signal asks for an end after what is in flight, the second ends at once."""

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Self

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # Windows has no SIGUSR1


_STDERR = 2
_SHOW_CURSOR = b"\x1b[?25h\n"


class Stopped(Exception):
    """Somebody asked for the end in the middle of a piece of work; nothing of that piece is written."""


class Stop:
    """Poll `requested` between units of work. As a context manager it listens for Ctrl-C, SIGTERM and SIGUSR1."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether somebody asked for the end."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """0 after SIGTERM or SIGUSR1 (a scheduler's request, obeyed), 130 after Ctrl-C (so that `&&` chains end)."""
        return 130 if self.signal == signal.SIGINT else 0

    def request(self, number: int = signal.SIGTERM) -> None:
        """Ask for the end from inside the program."""
        self.signal = self.signal or number

    def check(self) -> None:
        """Raise Stopped if somebody asked for the end: between the batches of a longer piece of work."""
        if self.requested:
            raise Stopped

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is not None:
            if os.isatty(_STDERR):
                _write(_SHOW_CURSOR)  # a progress bar hides it
            os._exit(128 + number)
        self.signal = number
        _write(b"\nStopping after what is in flight (again: stop at once) ...\n")


def _write(text: bytes) -> None:
    """Write to stderr past Python's buffers: the signal may have come in the middle of a write to those."""
    with suppress(OSError):
        os.write(_STDERR, text)
