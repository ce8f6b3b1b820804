"""Progress that a person can read: a rich bar on a terminal, one line a minute without one."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

LINE_EVERY_S = 60.0
QUIET = "UNIC_PIPE_QUIET"
"""The environment variable behind `--quiet`."""
NARROW = 110
"""Columns of a terminal that has no room for a bar."""


class Task(Protocol):
    """One piece of long work."""

    def advance(self, amount: int = 1) -> None:
        """Count finished work."""

    def note(self, text: str) -> None:
        """Show a short live remark, such as the loss."""


class Reporter(Protocol):
    """Where stages report progress and remarks."""

    def task(self, title: str, total: int, unit: str = "img", done: int = 0) -> AbstractContextManager[Task]:
        """A context manager that yields a `Task`; `done` of `total` were finished before."""

    def say(self, text: str) -> None:
        """Print one line that stays."""


class _Meter:
    """A `Task` that knows its rate since the start (not counting what was done before); `show` is called at every step."""

    def __init__(self, title: str, total: int, unit: str, done: int) -> None:
        self.show: Callable[[], object] = lambda: None
        self.title, self.total, self.unit = title, total, unit
        self.done = self.before = done
        self.started = time.monotonic()
        self.remark = ""

    def advance(self, amount: int = 1) -> None:
        """Count finished work."""
        self.done += amount
        self.show()

    def note(self, text: str) -> None:
        """Show a short live remark."""
        self.remark = text
        self.show()

    def describe(self) -> str:
        """Done and total, rate, time left and the latest remark."""
        elapsed = time.monotonic() - self.started
        rate = (self.done - self.before) / elapsed if elapsed > 0 else 0.0
        left = (self.total - self.done) / rate if rate > 0 else None
        parts = [f"{self.done:,}/{self.total:,} {self.unit}"]
        if rate > 0:
            parts.append(pace(rate, self.unit))
        if left is not None and self.done < self.total:
            parts.append(f"{duration(left)} left")
        if self.remark:
            parts.append(self.remark)
        return " · ".join(parts)

    def summary(self) -> str:
        """What was done since the start, in how long."""
        fresh, elapsed = self.done - self.before, max(time.monotonic() - self.started, 1e-9)
        parts = [f"{fresh:,} {self.unit} in {duration(elapsed)}"]
        parts += [pace(fresh / elapsed, self.unit)] if fresh > 1 else []
        return " · ".join([*parts, self.remark] if self.remark else parts)


def _print_line(console: Console, text: str) -> None:
    """One line, with brackets as they are (paths and names may hold some); a terminal gets it wrapped between words."""
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _line_now_and_then(console: Console, meter: _Meter) -> Callable[[], None]:
    last = time.monotonic()

    def show() -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            _print_line(console, f"{meter.title}: {meter.describe()}")

    return show


def messages() -> Console:
    """Where a command says what it does; nowhere where `QUIET` is set, also in processes that it starts."""
    return Console(stderr=True, highlight=False, quiet=bool(os.environ.get(QUIET)))


class ConsoleReporter:
    """Reports on stderr, so that stdout stays free for `--json`."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or messages()

    def say(self, text: str) -> None:
        """Print one line that stays."""
        _print_line(self.console, text)

    @contextmanager
    def task(self, title: str, total: int, unit: str = "img", done: int = 0) -> Iterator[Task]:
        """Show a bar (terminal) or a line a minute (no terminal) while the block runs."""
        meter = _Meter(title, total, unit, done)
        try:
            if self.console.is_terminal and self.console.file.isatty():
                # On a narrow terminal the figures are worth more than the bar.
                wide = self.console.width >= NARROW
                columns = (
                    SpinnerColumn(),
                    TextColumn("{task.description}", markup=False),
                    *((BarColumn(bar_width=24),) if wide else ()),
                    TextColumn("{task.fields[status]}", markup=False),
                    *((TimeElapsedColumn(),) if wide else ()),
                )
                with Progress(*columns, console=self.console, transient=True) as bar:
                    handle = bar.add_task(title, total=total, completed=done, status="")
                    meter.show = lambda: bar.update(handle, completed=meter.done, status=meter.describe())
                    yield meter
            else:
                meter.show = _line_now_and_then(self.console, meter)
                yield meter
        finally:
            if meter.done > meter.before:
                self.say(f"{title}: {meter.summary()}")


@dataclass(frozen=True)
class Update:
    """What a callback is told: how far a piece of work is, or (where `total` is None) a line of text."""

    text: str
    """The title of the work, or the line."""
    done: int = 0
    total: int | None = None
    unit: str = ""
    note: str = ""
    """A live remark, such as the loss."""


class CallbackReporter:
    """Reports to a function. What it raises ends the stage; finished work is kept."""

    def __init__(self, tell: Callable[[Update], object]) -> None:
        self._tell = tell

    def say(self, text: str) -> None:
        """Tell a line."""
        self._tell(Update(text))

    @contextmanager
    def task(self, title: str, total: int, unit: str = "img", done: int = 0) -> Iterator[Task]:
        """Tell how far it is, at every step."""
        meter = _Meter(title, total, unit, done)
        meter.show = lambda: self._tell(Update(title, meter.done, total, unit, meter.remark))
        yield meter


class SilentReporter:
    """Reports nothing; for tests and for use as a library."""

    def say(self, text: str) -> None:
        """Ignore the line."""

    @contextmanager
    def task(self, title: str, total: int, unit: str = "img", done: int = 0) -> Iterator[Task]:
        """Run the block without showing anything."""
        yield _Meter(title, total, unit, done)


def duration(seconds: float) -> str:
    """Seconds as people say them: `41 days`, `3 h 20 min`, `2 min 05 s`, `12 s`."""
    whole = round(seconds)
    if whole >= 2 * 86_400:
        return f"{whole / 86_400:.0f} days"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"


def pace(rate: float, unit: str) -> str:
    """A rate above 0 in units per second; of what takes longer than a second, how long each takes."""
    if rate < 1:
        return f"{duration(1 / rate)} each"
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"


def human_bytes(size: float) -> str:
    """Bytes in decimal units, as disks are sold: `1.55 TB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} PB"
