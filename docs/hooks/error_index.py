"""The index of errors: every message that the source can raise, and what it says to do, by what it is about."""

from __future__ import annotations

import ast
import html
from collections.abc import Iterator, Mapping
from pathlib import Path

KINDS = ("UserError", "StageError", "DamagedError", "ForeignError", "NotFinishedError")
OF_FIELDS = {"ValueError": 0, "problem": 1}
"""What is wrong with a value of the configuration, and which argument says so."""
TOPICS = (
    ("Configuration and files of the working folder", ("pipeline/workspace", "schemas", "stages/init")),
    ("Samples, labels and indexes", ("pipeline/samples", "stages/indexing", "cli/index", "cli/pack")),
    ("Benchmarks and evaluation", ("pipeline/benchmarks", "stages/evaluate", "cli/benchmarks", "cli/evaluate")),
    ("Teachers, encoders and weights", ("pipeline/encoders", "cli/teachers", "stages/convert")),
    ("Views", ("pipeline/views",)),
    ("Extraction and the feature cache", ("pipeline/extraction", "pipeline/cache", "stages/extract", "cli/extract")),
    (
        "Students and distillation",
        ("pipeline/students", "stages/distill", "cli/distill", "stages/export", "cli/export"),
    ),
    ("Reports", ("stages/report", "cli/report")),
    ("Disks and object stores", ("pipeline/storage",)),
    ("The rest", ("",)),
)
"""Titles, and the parts of the source that are under them; the first that fits."""


def errors(root: Path) -> str:
    """A definition list in Markdown for every topic."""
    found: dict[str, dict[str, str]] = {title: {} for title, _ in TOPICS}
    for folder in ("cli", "stages", "pipeline", "schemas"):
        for file in sorted((root / folder).rglob("*.py")):
            part = file.relative_to(root).as_posix()
            title = next(title for title, places in TOPICS if part.startswith(places))
            found[title] |= dict(messages(file.read_text(), fields=folder == "schemas"))
    lines = []
    for title, each in found.items():
        lines += [f"### {title}", ""] if each else []
        for message, hint in sorted(each.items(), key=lambda item: item[0].lstrip("…: ").lower()):
            lines += [f'<p class="error"><code>{html.escape(message)}</code><br>{html.escape(hint)}</p>', ""]
    return "\n".join(lines)


def messages(source: str, fields: bool) -> Iterator[tuple[str, str]]:
    """Message and hint of every error of a file; `…` stands for what it is about.
    `fields`: also of those about a value of the configuration."""
    names = {**dict.fromkeys(KINDS, 0), **(OF_FIELDS if fields else {})}
    tree = ast.parse(source)
    given = [
        (node.lineno, node.targets[0].id, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            first = names[node.func.id]
            before = {name: value for line, name, value in sorted(given, key=lambda g: g[0]) if line < node.lineno}
            message, *rest = [*(_text(a, before) for a in node.args[first : first + 2]), ""]
            if message.strip("… .:"):
                hint = rest[0] if node.func.id in KINDS else ""
                yield message, hint if hint.strip("… ") else ""


def _text(node: ast.expr, given: Mapping[str, ast.expr]) -> str:
    """The text of an expression, as far as it stands in the source; `given`: what names were last set to."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_text(part, {}) for part in parts)
        case ast.BinOp(left=left, right=right):
            return _text(left, given) + _text(right, given)
        case ast.IfExp(body=body):
            return _text(body, given)
        case ast.Constant(value=None):
            return ""
        case ast.Name(id=name) if name in given:
            return _text(given[name], {})
    return "…"
