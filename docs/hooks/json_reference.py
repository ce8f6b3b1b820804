"""What machines read: the fields of every object that a command prints with `--json`."""

from __future__ import annotations

from typing import Any

from unic_pipe.schemas.describing import described, kind_of
from unic_pipe.schemas.printed import PRINTED


def printed() -> str:
    """A section for every kind of object, with the commands that print it; objects inside it follow."""
    commands: dict[type, list[str]] = {}
    for command, model in PRINTED.items():
        commands.setdefault(model, []).append(f"`{command}`")
    seen: set[str] = set()
    lines: list[str] = []
    for model, names in commands.items():
        schema = described(model)
        about = "" if schema["description"].startswith("`unic-pipe ") else f" {schema['description']}"
        lines += [f"## {model.__name__}", "", f"Printed by {', '.join(names)}.{about}", ""]
        lines += _table(schema)
        for name, inner in schema.get("$defs", {}).items():
            if name not in seen and "properties" in inner:
                seen.add(name)
                lines += [f"### {name}", "", inner["description"], "", *_table(inner)]
    return "\n".join(lines)


def _table(schema: dict[str, Any]) -> list[str]:
    rows = [
        f"| `{name}` | {_kind(node)} | {node.get('description', '')} |" for name, node in schema["properties"].items()
    ]
    return ["| field | values | meaning |", "|---|---|---|", *(row.replace("\n", " ") for row in rows), ""]


def _kind(node: dict[str, Any]) -> str:
    """In words; objects by their names."""
    if "$ref" in node:
        name = str(node["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in node:
        some = [_kind(one) for one in node["anyOf"] if one.get("type") != "null"]
        null = " or null" if len(some) < len(node["anyOf"]) else ""
        return " or ".join(dict.fromkeys(some)) + null
    if node.get("type") == "array" and isinstance(node.get("items"), dict):
        return f"list of {_kind(node['items'])}"
    if node.get("type") == "object" and isinstance(node.get("additionalProperties"), dict):
        return f"by name: {_kind(node['additionalProperties'])}"
    return kind_of(node)
