"""What can be said of every field of `unic-pipe.yaml`: its type, its default, what it means, and where the default is from.

Editors (`json_schema`), `unic-pipe config --describe` and the configuration reference of the documentation are made of this.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core.core_schema import ModelSchema

from unic_pipe.schemas.base import NAMES
from unic_pipe.schemas.benchmarks import cards
from unic_pipe.schemas.config import Config
from unic_pipe.schemas.errors import UserError, did_you_mean
from unic_pipe.schemas.presets import PRESETS

NAME = "NAME"
"""In a place, whatever name the user gives."""
ITEM = "[]"
"""At the end of a place, every item of a list."""
OURS = "unic-pipe"
_PAPER, _CODE = "UNIC's paper (arXiv 2408.05088)", "the published code of UNIC"
_TREX, _HUMMINGBIRD = "t-ReX and UNIC", "Hummingbird (arXiv 2306.01667)"
_SOURCES: Mapping[str, Mapping[str, str]] = {
    "ViewsConfig": {"recipe": _PAPER},
    "Recipe": dict.fromkeys(("scale", "ratio", "flip", "jitter", "jitter_probability", "grayscale", "blur_probability",
                             "blur_kernel", "blur_sigma", "solarize_probability", "solarize_threshold"), _PAPER),
    "StudentConfig": {"drop_path": _CODE},
    "LadderConfig": dict.fromkeys(("kind", "blocks", "hidden", "last_hidden"), _PAPER),
    "LossConfig": dict.fromkeys(("cosine", "smooth_l1", "tokens", "drop_probability"), _PAPER),
    "OptimizerConfig": dict.fromkeys(
        ("epochs", "batch", "lr", "min_lr", "warmup_epochs", "weight_decay", "beta1", "beta2"), _CODE
    ),
    "EvaluateConfig": {"trials": _TREX, "k_values": f"{_TREX}: 10, 20, 100, 200"},
    "DenseConfig": dict.fromkeys(("memory", "k", "temperature"), _HUMMINGBIRD),
}  # fmt: skip
"""By model and field, where a default is from that is not our own."""


@dataclass(frozen=True)
class FieldText:
    """One field, in words."""

    place: str
    """`students.NAME.loss.terms[].kind`."""
    kind: str
    """The values that it takes."""
    default: str
    """As it would be written; `required` where there is none."""
    meaning: str
    source: str
    """Where the default is from."""
    parent: bool
    """Whether it has fields of its own."""


class _WithMeanings(GenerateJsonSchema):
    """Adds what the source says below each field, which pydantic does not know of."""

    def model_schema(self, schema: ModelSchema) -> dict[str, Any]:
        found = super().model_schema(schema)
        model = schema["cls"]
        found["description"] = _one_line(model.__doc__ or "")
        for field, node in found["properties"].items():
            owner = next(base for base in model.__mro__ if field in inspect.get_annotations(base))
            node["description"] = _meanings(owner).get(field, "")
            node["source"] = _SOURCES.get(owner.__name__, {}).get(field, OURS)
        return found

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `unic-pipe.yaml` as a user may write it, with what every field means."""
    schema = Config.model_json_schema(schema_generator=_WithMeanings)
    for model in (schema, *schema["$defs"].values()):
        for node in model.get("properties", {}).values():
            node["description"] = node["description"] or schema["$defs"][next(_models(node))[1]]["description"]
            if "$ref" in node:
                node.pop("default", None)  # its fields have theirs
    preset = {
        "enum": list(PRESETS), "description": "Settings by name; what the student gives itself goes before them.",
        "default": None, "source": OURS,
    }  # fmt: skip
    student = schema["$defs"]["StudentConfig"]
    student["properties"] = {"preset": preset, **student["properties"]}
    benchmarks = schema["$defs"]["EvaluateConfig"]["properties"]["benchmarks"]
    values = benchmarks.pop("patternProperties")
    names = {"type": "array", "items": {"enum": [name for name, card in cards().items() if not card.dense]}}
    del benchmarks["type"]
    benchmarks["anyOf"] = [{"type": "object", "patternProperties": values}, names]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "unic-pipe.yaml"}


def described(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of what is written or printed by a model, with the meanings of its fields where the source has any."""
    return model.model_json_schema(schema_generator=_WithMeanings, mode="serialization")


def kind_of(node: dict[str, Any]) -> str:
    """The values of a node of a schema, in words."""
    return _kind(node)


def fields() -> list[FieldText]:
    """Every field of the configuration, in the order of the schema, those below a field after it."""
    schema = json_schema()
    return list(_below(schema, schema, ""))


def matching(text: str) -> list[FieldText]:
    """The fields that a user may mean, each with those below it: `students.main.seed` (any name for NAME), `seed`, or
    what is below a name, `students.main`.

    Raises:
        UserError: there is none.
    """
    wanted, known = _parts(text), fields()
    ends = [field.place for field in known if _fits(wanted, _parts(field.place)[-len(wanted) :])]
    found = [field for field in known if field.place in ends or field.place.startswith(tuple(f"{e}." for e in ends))]
    found = found or [field for field in known if _fits(wanted, _parts(field.place)[: len(wanted)])]
    if not found:
        near = did_you_mean(wanted[-1] if wanted else text, sorted({_parts(f.place)[-1] for f in known}))
        raise UserError(
            f"No field is called {text!r}{near if near.endswith('?') else ''}",
            "All of them, with their types and defaults: unic-pipe config --describe",
        )
    return found


def _fits(wanted: list[str], parts: list[str]) -> bool:
    return len(wanted) == len(parts) and all(w == p or p == NAME for w, p in zip(wanted, parts, strict=True))


def _parts(place: str) -> list[str]:
    return place.replace(ITEM, "").split(".")


def _below(schema: dict[str, Any], node: dict[str, Any], place: str) -> Iterator[FieldText]:
    for name, field in node.get("properties", {}).items():
        here = f"{place}.{name}" if place else name
        inner = [(f"{here}{step}", model) for step, model in _models(field)]
        default = _default(field, required=name in node.get("required", ()))
        yield FieldText(here, _kind(field), default, field["description"], field["source"], bool(inner))
        for at, model in inner:
            yield from _below(schema, schema["$defs"][model], at)


def _models(node: dict[str, Any], step: str = "") -> Iterator[tuple[str, str]]:
    """The models that a value may hold, and where: itself, by name, or as an item."""
    if "$ref" in node:
        yield step, _named(node)
    for member in node.get("anyOf", ()):
        yield from _models(member, step)
    for member in _values(node):
        yield from _models(member, f"{step}.{NAME}")
    if isinstance(node.get("items"), dict):
        yield from _models(node["items"], step + ITEM)


def _named(node: dict[str, Any]) -> str:
    return str(node["$ref"]).rpartition("/")[2]


def _values(node: dict[str, Any]) -> list[dict[str, Any]]:
    """What the values of a mapping of free names may be."""
    free = node.get("additionalProperties")
    return [*node.get("patternProperties", {}).values(), *([free] if isinstance(free, dict) else [])]


def _kind(node: dict[str, Any]) -> str:
    """The values of a node of the schema, in words."""
    if "$ref" in node:
        return "fields, below"
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_kind(m) for m in node["anyOf"] if m.get("type") != "null"))
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    match node.get("type"):
        case "boolean":
            return "`true`, `false`"
        case "integer" | "number" as number:
            return ("whole number" if number == "integer" else "number") + _range(node)
        case "string":
            return "name" if node.get("pattern") == NAMES else "text"
        case "array" if "prefixItems" in node:
            return f"list of {len(node['prefixItems'])}: {_kind(node['prefixItems'][0])}"
        case "array":
            return f"list of: {_kind(node['items'])}"
        case "object":
            keys = _kind(node["propertyNames"]) if "propertyNames" in node else NAME
            return f"by {keys}: " + " or ".join(_kind(value) for value in _values(node) or [{}])
    return "any value"


def _range(node: dict[str, Any]) -> str:
    low = [f"from {node['minimum']:,}"] if "minimum" in node else []
    low += [f"above {node['exclusiveMinimum']:,}"] if "exclusiveMinimum" in node else []
    high = [f"to {node['maximum']:,}"] if "maximum" in node else []
    high += [f"below {node['exclusiveMaximum']:,}"] if "exclusiveMaximum" in node else []
    return "".join(f" {part}" for part in low + high)


def _default(node: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    value = node.get("default")
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


@functools.cache
def _meanings(model: type) -> dict[str, str]:
    """The texts below a model's own fields."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = _one_line(str(text.value.value))
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())
