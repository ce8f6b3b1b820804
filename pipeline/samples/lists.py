"""Lists `FILENAME CLASS`: the delimiter, the columns and the images that lines mean, found by what fits the folder."""

from __future__ import annotations

import codecs
import csv
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from unic_pipe.pipeline.storage.regular import require_regular
from unic_pipe.schemas.errors import UserError

_FILE = re.compile(r"(file|img|image)(name|path|id)?|fname|path|id|name|key")
_CLASS = re.compile(r"(class|label|category)(name|id)?|target|predictionstring")
"""Names of columns in the first line, in small letters without `_` and spaces."""
_BOX = "predictionstring"
"""Kaggle's column for ImageNet: the class, then boxes; the first word counts."""
_FORM = (
    "Each line is FILENAME CLASS (tab, semicolon, comma or space between them; quotes around what holds the delimiter), or "
    "the first line names the columns: filename, class."
)


@dataclass(frozen=True)
class Line:
    """One line of a list."""

    number: int
    file: str
    value: str


@dataclass
class _Table:
    """A list as one delimiter reads it."""

    lines: list[Line] = field(default_factory=list)
    problem: str = ""
    fields: int = 0
    """In the first line."""


def read_text(path: Path) -> str:
    """A text file's content with `\\n` between lines; UTF-8, or UTF-16 where it begins with that mark (Excel).

    Raises:
        UserError: it cannot be read, or is in another encoding.
    """
    try:
        raw = require_regular(path).read_bytes()
        wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as text ({error}).", "Check `labels`; save the list as CSV UTF-8."
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def listed_classes(
    path: Path, text: str, folder: Path, names: Sequence[str], deleted: Collection[str] = ()
) -> tuple[list[Line], str | None]:
    """The line of each image of `folder` (`names`, in that order), and a remark on lines that name none of them. Those that
    were `deleted` have an empty one where there is none.

    Lines may name an image by its path (as much of it as they like), its name, or its name without the extension.
    Raises UserError: not such a list, an image that is named twice, or not at all.
    """
    images = _Images(folder, names)
    tables = list(_tables(text, images))
    fitting = [table for table in tables if not table.problem]
    best = max(fitting, key=lambda table: images.known(table.lines), default=None)
    if best is None or (not images.known(best.lines) and any(table.problem for table in tables if table.fields > 1)):
        problem = next((t.problem for t in tables if t.problem and t.fields > 1), "")
        first = text.strip().partition("\n")[0][:40]
        raise UserError(
            f"{path}: {problem or f'line 1 ({first!r}) is neither a class number nor FILENAME CLASS'}.", _FORM
        )
    if best.lines and not images.known(best.lines):
        line = best.lines[0]
        raise UserError(
            f"{path}: none of its lines names an image of {folder} (line {line.number}: {line.file!r}; an image there: "
            f"{names[0]!r}).",
            _FORM,
        )
    return images.assign(path, best.lines, deleted)


def _tables(text: str, images: _Images) -> Iterator[_Table]:
    rows = text.split("\n")
    if re.fullmatch(r'"?sep=.?"?', rows[0].strip()):  # Excel's own first line
        rows[0] = ""
    for delimiter in "\t;, ":
        try:
            reader = csv.reader(
                (row.strip(" ") + "\n" for row in rows), delimiter=delimiter, skipinitialspace=True, strict=True
            )
            yield _columns([(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)], images)
        except csv.Error as error:
            yield _Table(problem=f"cannot be read as a table ({error})", fields=rows[0].count(delimiter) + 1)
    # Names with spaces in a list with spaces: the class is the last word.
    yield _columns([(n, row.rsplit(None, 1)) for n, row in enumerate(rows, start=1) if row.strip()], images)


def _columns(rows: list[tuple[int, list[str]]], images: _Images) -> _Table:
    if not rows:
        return _Table()
    if len(rows[0][1]) > 2 and not any(row[-1] for _, row in rows):  # a delimiter ends every line
        rows = [(number, row[:-1]) for number, row in rows]
    head = [re.sub(r"[\W_]+", "", cell.casefold()) for cell in rows[0][1]]
    width = len(head)
    files = [place for place, name in enumerate(head) if _FILE.fullmatch(name)]
    classes = [place for place, name in enumerate(head) if _CLASS.fullmatch(name)]
    header = bool(files and classes) and not images.exact(rows[0][1][files[0]])
    if header and len(classes) > 1:
        both = " and ".join(rows[0][1][place] for place in classes)
        return _Table(problem=f"the columns {both} could each be the class: keep one", fields=width)
    wanted, body = (width, rows[1:]) if header else (2, rows)
    odd = next(((number, row) for number, row in body if len(row) != wanted), None)
    if odd is not None:
        named = width > 2 and not any(map(images.exact, rows[0][1]))
        names = f" (columns {', '.join(rows[0][1])[:80]})" if named else ""
        problem = f"line {odd[0]} has {len(odd[1])} field{'s' * (len(odd[1]) != 1)}, not {wanted}{names}"
        return _Table(problem=problem, fields=width)
    if not header:
        return _Table([Line(number, *row) for number, row in body], fields=width)
    value = classes[0]
    values = [row[value].partition(" ")[0] if head[value] == _BOX else row[value] for _, row in body]
    tables = [[Line(n, row[f], text) for (n, row), text in zip(body, values, strict=True)] for f in files]
    return _Table(max(tables, key=images.known), fields=width)


class _Images:
    """The images of a folder, by what a line may call them."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.names = names
        self._above = PurePosixPath(_composed(folder.absolute().as_posix())).parts
        self._full = {_composed(name): (name,) for name in names}
        self._stems: dict[str, tuple[str, ...]] = {}
        for name in names:
            stem = _composed(name.rpartition(".")[0])
            self._stems[stem] = (*self._stems.get(stem, ()), name)

    def exact(self, file: str) -> bool:
        """Whether an image has this very name."""
        return _composed(file) in self._full

    def known(self, lines: Sequence[Line]) -> int:
        """How many lines name an image."""
        return sum(bool(self._meant(line.file)[0]) for line in lines)

    def assign(self, path: Path, lines: Sequence[Line], deleted: Collection[str]) -> tuple[list[Line], str | None]:
        """Each image's line; lines whose folders are those of the images go before lines of other folders."""
        found: dict[str, tuple[bool, list[Line]]] = {}
        unused = []
        for line in lines:
            meant, here = self._meant(line.file)
            unused += [] if meant else [line]
            for name in meant:
                before, known = found.get(name, (here, []))
                found[name] = (here, [line]) if here > before else (before, [*known, line] if here == before else known)
        for name, (_, several) in found.items():
            if len(several) > 1:
                raise UserError(
                    f"{path}: {name} is named twice, in lines {several[0].number} and {several[1].number}.",
                    "An image has one class: remove one of the lines.",
                )
        found = {name: (False, [Line(0, name, "")]) for name in deleted} | found
        missing = next((name for name in self.names if name not in found), None)
        if missing is not None:
            raise UserError(f"{path}: no label for {missing}.", "Add the line, or remove the image.")
        some = "1 line names" if len(unused) == 1 else f"{len(unused):,} lines name"
        remark = f"{path}: {some} no image (first: line {unused[0].number}, {unused[0].file!r})." if unused else None
        return [found[name][1][0] for name in self.names], remark

    def _meant(self, file: str) -> tuple[tuple[str, ...], bool]:
        """The images that a line means, and whether the folders in it are those of the images."""
        for text in dict.fromkeys((_composed(file), _composed(file).replace("\\", "/"))):
            parts = [part for part in text.split("/") if part not in ("", ".")]
            for known in (self._full, self._stems):
                for start in range(len(parts)):
                    meant = known.get("/".join(parts[start:]))
                    if meant is not None:
                        here = tuple(parts[:start]) == self._above[len(self._above) - start :]
                        return meant, here
        return (), False


def _composed(text: str) -> str:
    """Unicode's NFC: macOS writes `é` as two characters."""
    return unicodedata.normalize("NFC", text)
