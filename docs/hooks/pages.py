"""What MkDocs asks while it builds the site: pages that are made from the source, and places that are filled from it.

A page says where with a comment: `<!-- generated: configuration -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_reference import commands
from error_index import errors
from field_reference import configuration
from json_reference import printed
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
BORROWED = {"architecture.md": "ARCHITECTURE.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages that lie at the top of the repository."""


def section(document: str, heading: str) -> str:
    """A second-level section of a document at the top, without its heading."""
    text = (ROOT / document).read_text()
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0].strip()


def between(document: str, name: str) -> str:
    """What stands between `<!-- NAME -->` and `<!-- /NAME -->`."""
    (found,) = re.findall(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", (ROOT / document).read_text(), re.DOTALL)
    return str(found)


GENERATED: dict[str, Callable[[], str]] = {
    "configuration": configuration,
    "commands": commands,
    "printed": printed,
    "errors": lambda: errors(ROOT),
    "glossary": lambda: section("ARCHITECTURE.md", "Glossary"),
    "demo": lambda: between("README.md", "demo"),
}


def on_files(files: Files, config: Any) -> Files:
    """Add the documents at the top, and the examples that they link."""
    for page, document in BORROWED.items():
        text = (ROOT / document).read_text().replace("](docs/", "](")
        for other, name in BORROWED.items():
            text = text.replace(f"]({name})", f"]({other})")
        files.append(File.generated(config, page, content=text))
    for example in sorted((ROOT / "examples").glob("*.*")):
        files.append(File.generated(config, f"examples/{example.name}", abs_src_path=str(example)))
    return files


def on_post_build(config: Any, **context: Any) -> None:
    """The site needs no network. Raises PluginError: a page loads something from elsewhere."""
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        loads = re.findall(
            r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)",
            page.read_text(),
        )
        if loads:
            raise PluginError(f"{page.name} loads {loads[0]}: the site has to work without a network.")


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Fill the places, and lead links to what is at the top of the repository to its copy."""
    for page, document in BORROWED.items():
        markdown = markdown.replace(f"](../{document})", f"]({page})")
    markdown = markdown.replace("](../examples/", "](examples/")
    return re.sub(r"<!-- generated: (\w+) -->", lambda found: GENERATED[found[1]](), markdown)
