"""The pages that are made from the source: complete, and found by the words that people see."""

from __future__ import annotations

import re
import sys

import pytest
from documents import ROOT
from ruamel.yaml import YAML

from unic_pipe.cli.main import PANELS
from unic_pipe.schemas.describing import fields

sys.path.append(str(ROOT / "docs/hooks"))
import demo_figure
from command_reference import commands
from error_index import errors
from field_reference import configuration


def test_every_field_has_a_place_in_the_reference() -> None:
    page = configuration()
    for field in fields():
        heading, entry = f"## {field.place}\n", f"{{ #{field.place.replace('[]', '').lower()} }}"
        assert heading in page or entry in page, field.place
        assert field.meaning in page


def test_every_command_is_in_the_reference() -> None:
    page = commands()
    for command in [command for panel in PANELS.values() for command in panel]:
        assert f"### unic-pipe {command.__name__.rstrip('_')}\n" in page
    assert "### unic-pipe report compare\n" in page
    assert "[cyan]" not in page
    assert re.search(r"`--part I/N` \| Every N-th block", page)


@pytest.mark.parametrize(
    "words",
    [
        "no longer gives the … features of its cache",
        "…: no such file.",
        "exists already.",
        "not a multiple of streams (…)",
        "unic-pipe verify --live 64; --no-live-check trains all the same.",
    ],
)
def test_an_error_is_found_by_its_words(words: str) -> None:
    page = errors(ROOT)
    assert words in page
    assert page.count("<p class=") > 300


def test_the_picture_is_that_of_the_table() -> None:
    """After a change of README's table: python docs/hooks/demo_figure.py"""
    readme = (ROOT / "README.md").read_text()
    benchmarks, encoders = demo_figure.table(readme)
    assert len(benchmarks) >= 3
    assert len(encoders) >= 4
    assert (ROOT / "docs/demo.svg").read_text() == demo_figure.picture(readme)


def test_every_page_has_a_place_in_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    nav = YAML(typ="safe").load(text)["nav"]
    listed = {
        page
        for group in nav
        for entry in group.values()
        for page in ([entry] if isinstance(entry, str) else [p for e in entry for p in e.values()])
    }
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= listed
