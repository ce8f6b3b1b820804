"""What is said of every field: complete, found by the names that people use, and a schema that editors can trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from documents import ROOT, blocks
from ruamel.yaml import YAML

from unic_pipe.pipeline.workspace.configuration import SCHEMA_NAME, load_workspace, write_configuration
from unic_pipe.schemas.describing import fields, json_schema, matching
from unic_pipe.schemas.errors import UserError


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


def test_every_field_says_what_it_takes_and_means() -> None:
    known = {field.place: field for field in fields()}
    assert len(known) == len(fields())
    for place, field in known.items():
        assert len(field.meaning) > 10, place
        assert field.kind, place
        assert "any value" not in field.kind or place == "storage.options"
    assert known["students.NAME.optimizer.lr"].default == "0.0003"
    assert known["students.NAME.loss.terms[].token"].default == "required"
    assert known["cache.codec"].kind == "`float16`, `int8`, `klt`, `auto`"
    assert "UNIC" in known["students.NAME.loss.drop_probability"].source


@pytest.mark.parametrize(
    ("text", "place", "count"),
    [
        ("students.wide.optimizer.lr", "students.NAME.optimizer.lr", 1),
        ("snr_db", "cache.snr_db", 1),
        ("wide.ladder", "students.NAME.ladder", 6),
        ("loss.terms.kind", "students.NAME.loss.terms[].kind", 1),
    ],
)
def test_fields_are_found_by_what_people_type(text: str, place: str, count: int) -> None:
    assert (matching(text)[0].place, len(matching(text))) == (place, count)


def test_what_is_below_a_name_is_found_and_nothing_else_is() -> None:
    assert {field.place.split(".")[0] for field in matching("teachers.mine")} == {"teachers"}
    with pytest.raises(UserError, match="did you mean codec"):
        matching("cache.codek")


def written() -> list[str]:
    examples = [path.read_text() for path in sorted((ROOT / "examples").glob("*.yaml"))]
    return [*examples, *(code for kind, code in blocks() if kind == "yaml")]


@pytest.mark.parametrize("text", written())
def test_the_schema_takes_what_the_program_takes(text: str, validator: Any) -> None:
    tree = YAML(typ="safe").load(text)
    tree.setdefault("samples", {}).setdefault("datasets", {"train": {"source": "train"}})
    validator.validate(json.loads(json.dumps(tree)))


@pytest.mark.parametrize(
    ("place", "value"),
    [("studnets", {}), ("cache", {"codec": "zip"}), ("students", {"a": {"preset": "unic-c"}}), ("views", {"count": 0}),
     ("students", {"a": {"optimizer": {"lr": "fast"}}}), ("evaluate", {"benchmarks": ["birds"]})],
)  # fmt: skip
def test_the_schema_refuses_what_the_program_refuses(place: str, value: Any, validator: Any, tmp_path: Path) -> None:
    tree = {"samples": {"datasets": {"train": {"source": "train"}}}, place: value}
    assert not validator.is_valid(tree)
    (tmp_path / "unic-pipe.yaml").write_text(json.dumps(tree))
    with pytest.raises(UserError):
        load_workspace(tmp_path)


def test_a_written_configuration_names_the_schema_beside_it(tmp_path: Path) -> None:
    assert write_configuration(tmp_path, "samples: {datasets: {train: {source: train}}}\n")
    first = (tmp_path / "unic-pipe.yaml").read_text().splitlines()[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA_NAME}"
    assert json.loads((tmp_path / SCHEMA_NAME).read_text()) == json_schema()
    assert load_workspace(tmp_path).config.samples.datasets["train"].source == "train"
    assert not write_configuration(tmp_path, "other: 1\n")
