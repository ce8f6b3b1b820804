"""One WebDataset tar as rows: members grouped into samples, images hashed, labels parsed, in one sequential pass."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import xxhash

from unic_pipe.pipeline.samples.files import NAMES, image_ending, image_endings
from unic_pipe.pipeline.samples.left_out import LeftOut
from unic_pipe.pipeline.samples.packed import Packed
from unic_pipe.pipeline.samples.places import Shard, open_shard
from unic_pipe.pipeline.samples.ranges import Ranged
from unic_pipe.pipeline.samples.table import make_rows
from unic_pipe.pipeline.samples.tars import Member, walk
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.samples import ImageNames

LARGEST_LABEL = 2**31 - 1
_NO_LABEL = frozenset({"", "-1", "-1.0", "null", "nan"})
_MAX_LABEL_BYTES = 16 << 20
_LEFT_OUT = b"left_out"
"""Key of a scanned table's metadata."""


@dataclass(slots=True)
class _Image:
    member: Member
    content: bytes
    """XXH3-128 of its bytes."""


@dataclass(slots=True)
class _Label:
    member: Member
    number: int | None = None
    problem: UserError | None = None


def split_name(name: str, rule: ImageNames = NAMES) -> tuple[str, str] | None:
    """Key and lower-case ending of a member, without the dot between them; None for hidden and dotless names.

    The ending begins at the last dot, or where `rule.image` does; under version 1 at the first dot.
    """
    folder, slash, base = name.rpartition("/")
    if rule.image is not None and image_ending(base, rule) is not None:
        stem, dot, ending = base[: -len(rule.image) - 1], ".", rule.image
    elif rule.version == 1 or "." not in base:
        stem, dot, ending = base.partition(".")
    else:
        stem, dot, ending = base.rpartition(".")
    return (folder + slash + stem, ending.lower()) if stem and dot and not base.startswith(".") else None


def scan_tar(file: Shard, shard: str, label_field: str | None, rule: ImageNames = NAMES) -> pa.Table:
    """Rows of one tar in the order of its images. `shard` is its path relative to a root. The table's metadata say what
    was left out (`left_out`).
    Raises UserError: a damaged tar, a key twice, a sample with two images or none, an unusable label."""
    endings, label_ending = image_endings(rule), "cls" if label_field is None else "json"
    images: dict[str, _Image] = {}
    labels: dict[str, _Label] = {}
    others: list[str] = []
    tar = open_shard(file, shard)
    try:
        for member in walk(tar, shard):
            key, ending = split_name(member.name, rule) or ("", "")
            if ending in endings and _owner(key, images) is None:
                _add_image(images, key, member, tar, shard)
            elif ending == label_ending and _owner(key, images) is None:
                _add_label(labels, key, member, tar, shard, label_field)
            else:
                others.append(member.name)
    except OSError as error:
        raise UserError(f"{shard}: cannot be read ({error.strerror or error}: {file}).", "Check the disk.") from error
    finally:
        tar.close()
    return _rows(images, labels, others, shard, rule)


def left_out(tables: Iterable[Packed]) -> LeftOut:
    """What the tars of scanned tables hold beside their rows."""
    return LeftOut.from_json(table.metadata[_LEFT_OUT] for table in tables if table.metadata)


def _owner(key: str, images: Mapping[str, _Image]) -> str | None:
    """The sample whose further member this is: `a` for the key `a.seg` if `a` has an image; None for a key of its own."""
    at = key.find(".", key.rfind("/") + 1)
    while at > 0:
        if key[:at] in images:
            return key[:at]
        at = key.find(".", at + 1)
    return None


def _rows(
    images: dict[str, _Image], labels: dict[str, _Label], others: list[str], shard: str, rule: ImageNames
) -> pa.Table:
    # What came before its sample's image was taken for a sample of its own.
    late = {key for key in (*images, *labels) if _owner(key, images) is not None}
    others += [found[key].member.name for key in late for found in (images, labels) if key in found]
    used = {key: image for key, image in images.items() if key not in late}
    if not used and not labels:
        found = ", ".join(sorted({_ending(name)[:20] for name in others})[:6]) or "only folders"
        raise UserError(
            f"{shard}: no images among its members (found {found}; looked for {_extensions(rule)}).",
            "Give tars whose members are KEY.EXTENSION; a tar of tars must be unpacked once.",
        )
    for key, label in labels.items():
        if key in late:
            continue
        if key not in used:
            raise _no_image(key, label.member, [*(i.member.name for i in images.values()), *others], shard, rule)
        if label.problem is not None:
            raise label.problem
    rows = sorted(used.items(), key=lambda item: item[1].member.offset)
    table = make_rows(
        [key for key, _ in rows],
        [shard] * len(rows),
        [image.member.offset for _, image in rows],
        [image.member.size for _, image in rows],
        [image.content for _, image in rows],
        [labels[key].number if key in labels else None for key, _ in rows],
    )
    return table.replace_schema_metadata({_LEFT_OUT: _left(others, used).to_json()})


def _no_image(key: str, label: Member, others: Sequence[str], shard: str, rule: ImageNames) -> UserError:
    """The error about a label without an image, which names the members beside it: one of them may be meant."""
    beside = [name for name in others if name.startswith(f"{key}.")]
    images = [name[len(key) + 1 :].lower() for name in beside if _ending(name)[1:] in image_endings(NAMES)]
    also = f"; beside it {' '.join(beside[:4])}" if beside else ""
    return UserError(
        f"{shard}: sample {key!r} has a label but no image (member {label.name!r}, byte {label.header:,}; looked for "
        f"{key}.{{{_extensions(rule)}}}{also}).",
        f"Say which one is meant, for instance `image: {images[0]}` under the dataset's `source:`."
        if images
        else "Write the tar again with the image, or without the label.",
    )


def _left(others: Sequence[str], used: Mapping[str, _Image]) -> LeftOut:
    left, keys = LeftOut(), set[str]()
    for name in sorted(others):
        key = _owner(name, used)
        if name.rpartition("/")[2].startswith("."):
            left.add("hidden", name)
        elif key is None:
            left.add("lone", name, _ending(name))
        else:
            left.add("member", name, name[len(key) :].lower(), key not in keys)
            keys.add(key)
    return left


def _ending(name: str) -> str:
    _, dot, ending = name.rpartition("/")[2].rpartition(".")
    return f".{ending.lower()}" if dot else "no ending"


def _add_image(images: dict[str, _Image], key: str, member: Member, tar: Ranged, shard: str) -> None:
    if key in images:
        first = images[key].member
        what, hint = f"key {key!r} appears twice", "A key may appear once in a tar: write the tar again."
        if first.name != member.name:
            one, other = (name.rpartition(".")[2].lower() for name in (first.name, member.name))
            what = f"sample {key!r} has two images"
            hint = f"Say which one is meant, for instance `image: {one}` (not {other}) under the dataset's `source:`."
        raise UserError(
            f"{shard}: {what} ({first.name!r} at byte {first.header:,}, {member.name!r} at byte {member.header:,}).",
            hint,
        )
    images[key] = _Image(member, xxhash.xxh3_128_digest(_content(tar, member, shard)))


def _add_label(labels: dict[str, _Label], key: str, member: Member, tar: Ranged, shard: str, field: str | None) -> None:
    where = f"{member.name!r} at byte {member.header:,}"
    if key in labels:
        raise UserError(f"{shard}: key {key!r} appears twice ({where}).", "Write the tar again.")
    try:
        labels[key] = _Label(member, _label(member, tar, shard, field, where))
    except UserError as problem:  # it counts only if the label is used
        labels[key] = _Label(member, problem=problem)


def _label(member: Member, tar: Ranged, shard: str, field: str | None, where: str) -> int | None:
    if member.size > _MAX_LABEL_BYTES:
        raise UserError(f"{shard}: {where} is too large to be a label ({member.size:,} bytes).", "Check the tar.")
    data = _content(tar, member, shard)
    value: Any = data
    try:
        found = [data.decode("utf-8-sig")] if field is None else _values(data, field)
        if len(found) == 1:
            value = found[0]
            return class_number(value)
    except (ValueError, TypeError, RecursionError):
        shown = repr(value)[:40]
        raise UserError(
            f"{shard}: {where} holds no class number (found {shown}).",
            "In tars, labels are whole numbers from 0 (text in KEY.cls, or a field of KEY.json: `label_field`); -1, null and "
            "nothing are no label. Names are read from class folders and labels files.",
        ) from None
    if found:
        raise UserError(
            f"{shard}: {where} has the field {field!r} {len(found)} times: which one is the class?",
            "Write the tar again with one of them.",
        )
    raise UserError(
        f"{shard}: {where} has no field {field!r}.",
        "Set `label_field` to the field that holds the class number, or remove it.",
    )


def _values(data: bytes, field: str) -> list[Any]:
    """All that a JSON object says of a field: a dictionary would keep the last silently.
    Raises TypeError, ValueError: no JSON object."""
    pairs = json.loads(data, object_pairs_hook=tuple)
    if not isinstance(pairs, tuple):
        raise TypeError(pairs)
    return [value for key, value in pairs if key == field]


def no_label(text: str) -> bool:
    """Whether a text says that there is no label: nothing, `-1`, or what programs write for nothing."""
    return text.strip().casefold() in _NO_LABEL


def class_number(value: Any) -> int | None:
    """A label as int; None where there is none (nothing, `-1`, null).
    Raises ValueError: anything but a whole number (or its text) from 0 to 2^31 - 1."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | None):
        raise ValueError(value)
    text = "" if value is None else str(value).strip()
    if no_label(text):
        return None
    found = re.fullmatch(r"([0-9]{1,10})(\.0)?", text)
    if found is None or int(found[1]) > LARGEST_LABEL:
        raise ValueError(value)
    return int(found[1])


def _content(tar: Ranged, member: Member, shard: str) -> bytes:
    data = tar.read(member.size, member.offset)
    if len(data) < member.size:
        raise UserError(f"{shard}: became shorter while it was read ({member.name!r}).", "Is it being written?")
    return data


def _extensions(rule: ImageNames) -> str:
    return " ".join(sorted(image_endings(rule)))
