"""What indexing does not use, counted by kind, with the endings and the first example of each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

KINDS = {
    "file": "{n} file{s} not used",
    "hidden": "{n} hidden image{s} not used",
    "special": "{n} name{s} of an image that {is} no file",
    "folder": "{n} folder{s} not entered",
    "link": "{n} link{s} to folders that are already read",
    "member": "{n} member{s} of {keys} not used",
    "lone": "{n} member{s} without an image beside {them}",
}
"""Each kind's line. Members are those of tars: beside a sample's image, or of keys that have none."""
_SHOWN = 8


def shown(name: str) -> str:
    """A file name as it may be printed: quoted where it holds characters that a terminal would obey."""
    return name if name.isprintable() else repr(name)


@dataclass
class _Count:
    number: int = 0
    keys: int = 0
    endings: set[str] = field(default_factory=set)
    first: str = ""


class LeftOut:
    """Counts of what was not used, by kind (`KINDS`)."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}

    def add(self, kind: str, name: str, ending: str = "", keys: int = 0) -> None:
        """One more of a kind: its name, its ending with the dot, and how many keys it is the first of (0 or 1)."""
        count = self._counts.setdefault(kind, _Count())
        count.number += 1
        count.keys += keys
        count.endings |= {ending} if ending else set()
        count.first = count.first or name

    def endings(self) -> set[str]:
        """All endings that were seen, with their dots."""
        return set().union(*(count.endings for count in self._counts.values()))

    def merge(self, other: LeftOut, below: str = "") -> None:
        """Add another's counts; `below` goes before its examples."""
        for kind, new in other._counts.items():
            count = self._counts.setdefault(kind, _Count())
            count.number, count.keys = count.number + new.number, count.keys + new.keys
            count.endings |= new.endings
            count.first = count.first or below + new.first

    def lines(self) -> list[str]:
        """One line per kind: `3 members of 3 keys not used: .seg.png (first: a.seg.png)`."""
        return [_line(kind, self._counts[kind]) for kind in KINDS if kind in self._counts]

    def to_json(self) -> str:
        """For the tables of scanned rows, which carry their counts along."""
        return json.dumps({k: [c.number, c.keys, sorted(c.endings), c.first] for k, c in self._counts.items()})

    @classmethod
    def from_json(cls, texts: Iterable[str | bytes]) -> LeftOut:
        """What several texts of `to_json` say together."""
        total = cls()
        for text in texts:
            part = cls()
            part._counts = {k: _Count(n, keys, set(e), first) for k, (n, keys, e, first) in json.loads(text).items()}
            total.merge(part)
        return total


def _line(kind: str, count: _Count) -> str:
    one = count.number == 1
    keys = f"{count.keys:,} key{'s' * (count.keys != 1)}"
    what = KINDS[kind].format(
        n=f"{count.number:,}",
        s="" if one else "s",
        keys=keys,
        them="it" if one else "them",
        **{"is": "is" if one else "are"},
    )
    endings = sorted(map(shown, count.endings))
    more = f" and {len(endings) - _SHOWN} more" if len(endings) > _SHOWN else ""
    listed = f": {' '.join(endings[:_SHOWN])}{more}" if endings else ""
    return f"{what}{listed} (first: {shown(count.first)})"
