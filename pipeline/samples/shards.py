"""One WebDataset tar as rows: members grouped into samples, images hashed, labels parsed, in one sequential pass."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import xxhash

from unic_pipe.pipeline.samples.places import Shard, open_shard
from unic_pipe.pipeline.samples.ranges import Ranged
from unic_pipe.pipeline.samples.table import make_rows
from unic_pipe.pipeline.samples.tars import Member, walk
from unic_pipe.schemas.errors import UserError

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm", "pgm"})
"""Lower-case file name extensions of images."""
LARGEST_LABEL = 2**31 - 1
_NO_LABEL = frozenset({"", "-1", "-1.0", "null", "nan"})
_MAX_LABEL_BYTES = 16 << 20


@dataclass(slots=True)
class _Sample:
    image: Member | None = None
    content: bytes = b""
    label: int | None = None
    label_member: Member | None = None


def split_name(name: str) -> tuple[str, str] | None:
    """Key (path up to the first dot of the base name) and lower-case extension; None for hidden or dotless names."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and dot else None


def scan_tar(file: Shard, shard: str, label_field: str | None) -> pa.Table:
    """Rows of one tar in the order of its images. `shard` is its path relative to a root.

    Raises:
        UserError: a damaged tar, a key twice, a sample with two images or none, an unusable label.
    """
    samples: dict[str, _Sample] = {}
    seen: set[str] = set()
    tar = open_shard(file, shard)
    try:
        for member in walk(tar, shard):
            parts = split_name(member.name)
            if parts is None:
                seen.add(member.name.rpartition("/")[2][:20])
                continue
            key, extension = parts
            seen.add(f".{extension}")
            if extension in IMAGE_EXTENSIONS:
                _add_image(samples.setdefault(key, _Sample()), key, member, tar, shard)
            elif extension == ("cls" if label_field is None else "json"):
                _add_label(samples.setdefault(key, _Sample()), key, member, tar, shard, label_field)
    except OSError as error:
        raise UserError(f"{shard}: cannot be read ({error.strerror or error}: {file}).", "Check the disk.") from error
    finally:
        tar.close()
    if not samples:
        found = ", ".join(sorted(seen)[:6]) or "only folders"
        raise UserError(
            f"{shard}: no images among its members (found {found}; looked for {_extensions()}).",
            "Give tars whose members are KEY.EXTENSION; a tar of tars must be unpacked once.",
        )
    return _rows(samples, shard)


def _rows(samples: dict[str, _Sample], shard: str) -> pa.Table:
    for key, sample in samples.items():
        if sample.image is None and sample.label_member is not None:
            raise UserError(
                f"{shard}: sample {key!r} has a label but no image (member {sample.label_member.name!r}, byte "
                f"{sample.label_member.header:,}; looked for {key}.{{{_extensions()}}}).",
                "Write the tar again with the image, or without the label.",
            )
    found = [(key, s, s.image) for key, s in samples.items() if s.image is not None]
    found.sort(key=lambda item: item[2].offset)
    return make_rows(
        [key for key, _, _ in found],
        [shard] * len(found),
        [image.offset for _, _, image in found],
        [image.size for _, _, image in found],
        [sample.content for _, sample, _ in found],
        [sample.label for _, sample, _ in found],
    )


def _add_image(sample: _Sample, key: str, member: Member, tar: Ranged, shard: str) -> None:
    first = sample.image
    if first is not None:
        what = f"key {key!r} appears twice" if first.name == member.name else f"sample {key!r} has two images"
        raise UserError(
            f"{shard}: {what} ({first.name!r} at byte {first.header:,}, {member.name!r} at byte {member.header:,}).",
            "A key may appear once in a tar, with one image: write the tar again.",
        )
    sample.image = member
    sample.content = xxhash.xxh3_128_digest(_content(tar, member, shard))


def _add_label(sample: _Sample, key: str, member: Member, tar: Ranged, shard: str, field: str | None) -> None:
    where = f"{member.name!r} at byte {member.header:,}"
    if sample.label_member is not None:
        raise UserError(f"{shard}: key {key!r} appears twice ({where}).", "Write the tar again.")
    if member.size > _MAX_LABEL_BYTES:
        raise UserError(f"{shard}: {where} is too large to be a label ({member.size:,} bytes).", "Check the tar.")
    data = _content(tar, member, shard)
    sample.label_member = member
    value: Any = data
    try:
        value = data.decode("utf-8-sig") if field is None else json.loads(data)[field]
        sample.label = class_number(value)
    except KeyError:
        raise UserError(
            f"{shard}: {where} has no field {field!r}.",
            "Set `label_field` to the field that holds the class number, or remove it.",
        ) from None
    except (ValueError, TypeError, RecursionError):
        shown = repr(value)[:40]
        raise UserError(
            f"{shard}: {where} holds no class number (found {shown}).",
            "In tars, labels are whole numbers from 0 (text in KEY.cls, or a field of KEY.json: `label_field`); -1, null and "
            "nothing are no label. Names are read from class folders and labels files.",
        ) from None


def no_label(text: str) -> bool:
    """Whether a text says that there is no label: nothing, `-1`, or what programs write for nothing."""
    return text.strip().casefold() in _NO_LABEL


def class_number(value: Any) -> int | None:
    """A label as int; None where there is none (nothing, `-1`, null).

    Raises:
        ValueError: anything but a whole number (or its text) from 0 to 2^31 - 1.
    """
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


def _extensions() -> str:
    return " ".join(sorted(IMAGE_EXTENSIONS))
