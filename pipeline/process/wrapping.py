"""Names and paths in tables of a terminal: wrapped behind `/`, `-`, `_` and the like, never within a word that fits."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

NARROW = 80
"""Columns of the narrowest terminal for which tables are made."""
_PIECE = re.compile(r"[^-/_.:+,=@\s]*[-/_.:+,=@\s]+|[^-/_.:+,=@\s]+")


class Wrapped:
    """A cell's text, which may hold line breaks."""

    def __init__(self, text: str, style: str = "") -> None:
        self.text, self.style = text, style

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        least, most = longest_piece(self.text), max(map(cell_len, self.text.splitlines()), default=0)
        return Measurement(min(least, options.max_width), min(most, options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("\n".join(_lines(self.text, options.max_width)), self.style, overflow="fold")


def longest_piece(text: str) -> int:
    """Columns that a text needs at least."""
    return max((cell_len(piece.rstrip()) for piece in _PIECE.findall(text)), default=0)


def fit_abreast(heads: Iterable[str], border: int) -> bool:
    """Whether columns with these heads fit side by side into a narrow terminal; `border`: columns that each takes besides.

    Where room is short, Rich cuts down the widest columns to one width.
    """
    texts = list(heads)
    level = max(map(longest_piece, texts), default=0)
    return sum(min(max(map(cell_len, text.splitlines())), level) + border for text in texts) <= NARROW


def _lines(text: str, width: int) -> Iterable[str]:
    for whole in text.splitlines():
        line = ""
        for piece in _PIECE.findall(whole):
            if line and cell_len(line + piece.rstrip()) > width:
                yield line.rstrip()
                line = ""
            line += piece
        yield line.rstrip()
