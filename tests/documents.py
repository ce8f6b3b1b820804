"""README and the other documents as tests read them: fenced blocks, and commands in the text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    """The document's file name."""
    kind: str
    """Its language."""
    code: str
    not_run: str
    """Why it is not run, where a comment above it says so."""


def documents() -> list[Path]:
    """README, CHANGELOG, and every page."""
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def all_blocks() -> list[Block]:
    """Every fenced block of every document, in order."""
    return [
        Block(document.name, kind, code, reason)
        for document in documents()
        for reason, kind, code in _BLOCK.findall(document.read_text())
    ]


def blocks() -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return [(block.kind, block.code) for block in all_blocks()]


def inline_commands() -> list[str]:
    """Code in the text that begins with our command; a line's end inside it is a space."""
    texts = (re.sub(r"^```.*?^```$", "", d.read_text(), flags=re.MULTILINE | re.DOTALL) for d in documents())
    return [" ".join(code.split()) for text in texts for code in re.findall(r"(?<!`)`(unic-pipe [^`]+)`", text)]
