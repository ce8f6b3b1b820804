"""The configuration reference: every field of the schemas, section by section, as `unic-pipe config --describe` has them."""

from __future__ import annotations

from unic_pipe.schemas.describing import NAME, OURS, FieldText, fields


def configuration() -> str:
    """A definition list in Markdown for every section of the file."""
    known = fields()
    sections: dict[str, list[FieldText]] = {}
    for field in known:
        sections.setdefault(field.place.rpartition(".")[0], []).append(field)
    meanings = {field.place: field.meaning for field in known}
    lines: list[str] = []
    for place, below in sections.items():
        if place:
            parent = place.removesuffix("[]").removesuffix(f".{NAME}")
            lines += [f"## {place}", "", meanings[parent], ""]
        for field in below:
            if field.kind != "fields, below":
                lines += _entry(field)
    return "\n".join(lines)


def _anchor(place: str) -> str:
    return place.replace("[]", "").lower()


def _entry(field: FieldText) -> list[str]:
    name, place = field.place.rpartition(".")[2], _anchor(field.place)
    default = {"": "", "required": "; required"}.get(field.default, f"; default `{field.default}`")
    source = f", from {field.source}" if field.source != OURS else ""
    return [
        f"[`{name}`](#{place}){{ #{place} }}",
        f":   {field.kind}{default}{source}",
        "    { .facts }",
        "",
        f"    {field.meaning}",
        "",
    ]
