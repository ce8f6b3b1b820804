"""Reading `unic-pipe.yaml`: YAML 1.2, all problems at once, each with its line and what to write instead."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from schemas.config import Config
from schemas.errors import UserError

CONFIG_NAME = "unic-pipe.yaml"


@dataclass(frozen=True)
class Workspace:
    """A loaded configuration and the working folder it governs (the folder of the file)."""

    config: Config
    folder: Path
    file: Path

    @property
    def roots(self) -> tuple[Path, ...]:
        """Folders in which samples are searched; relative ones start at the working folder."""
        return tuple(self.folder / Path(root).expanduser() for root in self.config.samples.roots)

    @property
    def weights_dir(self) -> Path:
        """Folder that is searched first for weights."""
        return self.folder / Path(self.config.weights_dir).expanduser()


def load_workspace(file: Path | None = None, overrides: Sequence[str] = ()) -> Workspace:
    """Read the configuration file (by default `unic-pipe.yaml` in the current folder).

    `overrides` are `a.b=value` texts that replace single values; the value is read as YAML.

    Raises:
        UserError: no such file, not YAML, or fields that do not validate (all of them, with lines).
    """
    path = Path(CONFIG_NAME) if file is None else Path(file)
    if path.is_dir():
        path = path / CONFIG_NAME
    if not path.is_file():
        raise UserError(
            f"No {path} here." if file is None else f"{path}: no such file.",
            "Write one with: unic-pipe init --data PATH   (or name one with --config FILE)",
        )
    tree = _parse(path.read_text(encoding="utf-8"), str(path))
    set_by_hand = [_override(tree, text) for text in overrides]
    try:
        config = Config.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise UserError(*_explain(error, tree, path, set_by_hand)) from None
    return Workspace(config, path.absolute().parent, path.absolute())


def _parse(text: str, source: str) -> CommentedMap:
    yaml = YAML()
    yaml.version = (1, 2)
    try:
        tree = yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}" if mark else "somewhere"
        raise UserError(f"{source}, {where}: {(error.problem or 'not valid YAML').splitlines()[0]}.") from None
    except YAMLError as error:
        raise UserError(f"{source}: not valid YAML ({str(error).splitlines()[0]}).") from None
    if not isinstance(tree, CommentedMap):
        raise UserError(f"{source}: expected `key: value` lines.", "See: unic-pipe init --help")
    return tree


def _override(tree: CommentedMap, text: str) -> str:
    path, found, value = text.partition("=")
    keys = path.strip().split(".")
    if not found or not all(keys):
        raise UserError(f"--set {text}: expected a.b=value, for instance --set students.main.seed=1")
    node: Any = tree
    for depth, key in enumerate(keys[:-1]):
        if isinstance(node, CommentedMap) and node.get(key) is None:
            node[key] = CommentedMap()
        if not isinstance(node, CommentedMap) or not isinstance(node[key], CommentedMap):
            raise UserError(f"--set {text}: {'.'.join(keys[: depth + 1])} has no fields to set.")
        node = node[key]
    if not isinstance(node, CommentedMap):
        raise UserError(f"--set {text}: {'.'.join(keys[:-1])} has no fields to set.")
    node[keys[-1]] = _parse(f"value: {value}", "--set")["value"]
    return ".".join(keys)


def _explain(error: ValidationError, tree: CommentedMap, path: Path, overridden: list[str]) -> tuple[str, str | None]:
    problems: dict[tuple[int, str], str] = {}
    for problem in error.errors():
        known, line = _locate(tree, problem["loc"])
        where = ".".join(map(str, known))
        if problem["type"] == "extra_forbidden":
            text = f"unknown field{_suggest(str(problem['loc'][-1]), _fields_at(problem['loc'][:-1]))}"
        elif problem["type"] == "missing":
            text = f"{problem['loc'][-1]} is missing"
        else:
            text = problem["msg"].removeprefix("Value error, ")
            given = problem.get("input")
            if isinstance(given, (str, int, float)) and not isinstance(given, bool) and problem["loc"]:
                text += f" (found {given!r})"
        place = f"--set {where}" if where in overridden else f"line {line}"
        key = (0 if where in overridden else line, where)
        # A union reports one problem per member; people need one line per place.
        problems[key] = f"{problems[key]}, or {text}" if key in problems and text not in problems[key] else text
        problems[key] = problems[key] if problems[key].startswith(place) else f"{place}: {where + ': ' if where else ''}{text}"
    lines = [problems[key] for key in sorted(problems)]
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return f"{path} has {count}:\n" + "\n".join(f"  {line}" for line in lines), None


def _locate(tree: Any, loc: tuple[int | str, ...]) -> tuple[list[int | str], int]:
    """The part of a location that exists in the file, and its line (from 1)."""
    node, line, known = tree, 1, []
    for key in loc:
        if isinstance(node, CommentedMap) and key in node:
            line = (node.lc.key(key)[0] if key in node.lc.data else line - 1) + 1
        elif isinstance(node, CommentedSeq) and isinstance(key, int) and key < len(node):
            line = (node.lc.item(key)[0] if key in node.lc.data else line - 1) + 1
        else:
            break
        known.append(key)
        node = node[key]
    return known, line


def _suggest(word: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; possible here: {', '.join(choices)}" if choices else ""


def _fields_at(loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the model at a location of `Config`."""
    kind: Any = Config
    for key in loc:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(key))
            kind = field.annotation if field is not None else None
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            models = [a for a in typing.get_args(kind) if isinstance(a, type) and issubclass(a, BaseModel)]
            kind = models[0] if models else None
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []
