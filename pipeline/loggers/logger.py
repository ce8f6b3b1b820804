"""What a logger is: something that takes named values at a step, of one run.

A logger of your own has these three methods. An installed package offers it by an entry point of the group
`unic_pipe.loggers`: what is called without arguments for every run, and gives a `Logger`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import pyarrow as pa
from PIL import Image


@dataclass(frozen=True)
class Picture:
    """A picture, as the bytes of a PNG."""

    png: bytes


@dataclass(frozen=True)
class Page:
    """A page of HTML that needs nothing else."""

    html: str


Value: TypeAlias = float | pa.Table | Picture | Page


def converted(package: Any, value: Value) -> object:
    """A value as Weights & Biases takes it, and trackio in the same words; `package` is one of the two."""
    if isinstance(value, pa.Table):
        return package.Table(columns=value.column_names, data=[list(row.values()) for row in value.to_pylist()])
    if isinstance(value, Picture):
        return package.Image(Image.open(io.BytesIO(value.png)))
    if isinstance(value, Page):
        return package.Html(value.html, inject=False)
    return value


@dataclass(frozen=True)
class Run:
    """One training of a student, or one evaluation."""

    kind: Literal["student", "evaluation"]
    name: str
    """The student's or the evaluation's."""
    id: str
    """The same after a kill, and no other run's: letters, digits and - _ . +"""
    folder: Path
    """`students/<name>-<8 digits>`, `evaluations/<name>-<8 digits>`."""
    workdir: Path
    """The working folder."""
    settings: Mapping[str, object]
    """What it is made from, as JSON values."""


class Logger(Protocol):
    """Takes the values of one run. Its methods are called in a thread of its own, so it may wait; what it raises is said
    once, the training goes on, and a minute later another one is begun for the same run."""

    def begin(self, run: Run) -> int | None:
        """Open a run, or continue it; the last step that it has, None where that cannot be known."""

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Take everything of one step: of a student the columns of `metrics.parquet`; steps ascend."""

    def end(self) -> None:
        """Wait until everything is where it belongs, and close the run."""


Maker = Callable[[], Logger]
Tell = Callable[[Run, int, Mapping[str, Value]], object]


class Callback:
    """A function as a logger: it is told the run, the step and the values."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def begin(self, run: Run) -> None:
        """Remember of what it tells."""
        self._run = run

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Tell."""
        self._tell(self._run, step, values)

    def end(self) -> None:
        """Nothing to close."""
