"""README and the other documents as tests read them: fenced blocks, and commands in the text."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def documents() -> list[Path]:
    """README, CHANGELOG, and everything in docs."""
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks() -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return [
        (found[1], found[2])
        for document in documents()
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)
    ]


def inline_commands() -> list[str]:
    """Code in the text that begins with our command; a line's end inside it is a space."""
    texts = (re.sub(r"^```.*?^```$", "", d.read_text(), flags=re.MULTILINE | re.DOTALL) for d in documents())
    return [" ".join(code.split()) for text in texts for code in re.findall(r"(?<!`)`(unic-pipe [^`]+)`", text)]
