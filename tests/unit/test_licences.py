"""What the licences of teachers make of their student's, and how the hub is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from unic_pipe.cli.embed import _students_licence
from unic_pipe.pipeline.encoders.licences import MEANING, UNKNOWN, derived_licence, hub_licence, licence_named
from unic_pipe.pipeline.encoders.registry import REGISTRY


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["Apache-2.0"], "Apache-2.0"),
        (["apache-2.0", "MIT", "Apache-2.0"], "Apache-2.0"),
        (["Apache-2.0", "CC-BY-NC-4.0"], "CC-BY-NC-4.0"),
        (["DINOv3 License", "cc-by-nc-4.0", "mit", "dinov3-license"], "CC-BY-NC-4.0 AND DINOv3 License"),
        (["CC-BY-NC-4.0", "unknown"], "unknown"),
        (["MIT", "a licence of my own"], "unknown"),
        ([], "unknown"),
    ],
)
def test_the_most_restrictive_counts(theirs: list[str], ours: str) -> None:
    assert derived_licence(theirs) == derived_licence(theirs[::-1]) == ours


def test_every_teacher_with_a_name_has_a_licence_that_is_judged() -> None:
    """And none is called free that docs/teachers.md calls not commercial."""
    terms = {name: licence_named(card.licence).terms for name, card in REGISTRY.items()}
    assert "unknown" not in terms.values()
    assert {name for name, each in terms.items() if each == "not commercial"} == {"metaclip-h", "eupe-b"}
    assert {name for name, each in terms.items() if each == "free"} > {"dino", "ibot", "dinov2-g", "efficientnet-lite0"}
    assert set(terms.values()) <= set(MEANING)


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("CC-BY-NC-4.0", {"license": "cc-by-nc-4.0"}),
        ("unknown", {"license": "unknown"}),
        ("DINOv3 License", {"license": "other", "license_name": "dinov3-license"}),
        ("a: 'b' #c", {"license": "other", "license_name": "a:-'b'-#c"}),
        (
            "CC-BY-NC-4.0 AND DINOv3 License",
            {"license": "other", "license_name": "cc-by-nc-4.0-and-dinov3-license"},
        ),
    ],
)
def test_the_hubs_words(licence: str, fields: dict[str, str]) -> None:
    assert hub_licence(licence) == fields


def test_a_folder_whose_settings_cannot_be_read_says_nothing_of_a_licence(tmp_path: Path) -> None:
    """`embed` of weights that have none goes on in it."""
    (tmp_path / "unic-pipe.yaml").write_text("teachers: [")
    assert _students_licence("checkpoint:mine.safetensors", tmp_path) == UNKNOWN
