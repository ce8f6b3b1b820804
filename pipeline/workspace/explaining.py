"""What is wrong with a configuration file, in a person's words: one line for each place, with its line number."""

import json
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from unic_pipe.schemas.config import CONSISTENCY, Config, reference_problems
from unic_pipe.schemas.errors import did_you_mean

Place = tuple[int | str, ...]
"""Keys that lead to a value: `("students", "main", "seed")`."""

_MOST = 200
"""Problems that are explained; in thousands of lines nobody finds the first."""
_FIELDS = "`key: value` fields"
_KINDS = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": _FIELDS,
    "model_type": _FIELDS,
}
"""Names of what pydantic asks for, by its types of problems."""


def explain(
    error: ValidationError, tree: CommentedMap, set_by_hand: Sequence[Place], other: str = "--set"
) -> list[str]:
    """Every problem in the order of the file; those at and below the places in `set_by_hand` first, named `other`.

    Unknown names are among them even where other problems kept pydantic from looking at names.
    """
    names = reference_problems(tree)
    unknown = ValidationError.from_exception_data("Config", names).errors() if names else []
    found: dict[Place, list[ErrorDetails]] = {}
    for problem in [*error.errors()[:_MOST], *unknown[:_MOST]]:
        found.setdefault(_place(tree, problem), []).append(problem)
    lines = []
    for place, here in found.items():
        # Where a value may be of several kinds, what is wrong inside it says more than that it is not another kind.
        inside = any(other[: len(place)] == place and len(other) > len(place) for other in found)
        if inside and all(_kind(problem) for problem in here):
            continue
        by_hand = any(place and (place[: len(s)] == s or s[: len(place)] == place) for s in set_by_hand)
        line = 0 if by_hand else _line(tree, place)
        where = ".".join(map(str, place))
        lines.append((line, f"{f'line {line}:' if line else other} {where}: {_text(here)}"))
    return [text for _, text in sorted(lines)]


def _text(here: list[ErrorDetails]) -> str:
    """What is wrong at one place, where a union has one problem for each of its members."""
    kinds = list(dict.fromkeys(kind for problem in here if (kind := _kind(problem))))
    problem = next((problem for problem in here if not _kind(problem)), None)
    if problem is None:
        expected = " or ".join([", ".join(kinds[:-1]), kinds[-1]] if kinds[1:] else kinds)
        given = here[0]["input"]
        if given is None:
            return f"expected {expected}, found nothing" + (" (write {} for none)" if _FIELDS in kinds else "")
        return f"expected {expected}" + (f", found {given!r}" if isinstance(given, str | int | float) else "")
    match problem["type"]:
        case "missing":
            return "missing"
        case "extra_forbidden":
            return f"unknown field{did_you_mean(str(problem['loc'][-1]), _fields_at(problem['loc'][:-1]))}"
        case "string_pattern_mismatch":
            return "not a usable name: letters, digits and . _ + - (the first a letter or digit)"
        case "too_long":
            return f"expected {problem['ctx']['max_length']} values"
        case "value_error" | "consistency":
            return problem["msg"].removeprefix("Value error, ")
        case _:
            return f"{problem['msg'].replace('Input should', 'must')}, found {problem['input']!r}"


def _kind(problem: ErrorDetails) -> str | None:
    """What kind of value was expected, if that is the problem."""
    if problem["type"] == "literal_error":
        return str(problem["ctx"]["expected"])
    return _KINDS.get(problem["type"])


def _place(tree: Any, problem: ErrorDetails) -> Place:
    """The keys of a problem's location, without the names of union members that pydantic puts between them."""
    if problem["type"] == CONSISTENCY:
        return problem["loc"]
    node, place = tree, []
    for key in problem["loc"]:
        if isinstance(node, CommentedMap) and (known := _known_key(node, key)) is not None:
            place.append(key)
            node = node[known]
        elif isinstance(node, CommentedSeq) and isinstance(key, int) and key < len(node):
            place.append(key)
            node = node[key]
    missing = problem["type"] == "missing"
    return (*place, problem["loc"][-1]) if missing else tuple(place)


def _known_key(node: CommentedMap, key: int | str) -> Any:
    """The key as it stands in the file, where it may be a number."""
    return next((known for known in node if str(key) in (str(known), json.dumps(known))), None)


def _line(tree: Any, place: Place) -> int:
    """Line of a place (from 1), or of the nearest place above it that is in the file."""
    node, line = tree, 1
    for key in place:
        known = _known_key(node, key) if isinstance(node, CommentedMap) else key
        places = getattr(node, "lc", None) and node.lc.data
        if places and known in places:
            line = places[known][0] + 1
        try:
            node = node[known]
        except (KeyError, IndexError, TypeError):
            break
    return line


def _fields_at(loc: Place) -> list[str]:
    """Field names of the model at a location of `Config`."""
    kind: Any = Config
    for key in loc:
        if typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        elif issubclass(kind, BaseModel) and key in kind.model_fields:
            kind = kind.model_fields[str(key)].annotation
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            kind = next(
                member for member in typing.get_args(kind) if isinstance(member, type) and issubclass(member, BaseModel)
            )
    return list(kind.model_fields)
