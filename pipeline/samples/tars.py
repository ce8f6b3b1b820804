"""A strict walk over a tar: every header is checked, and damage is one error that names the tar, member and byte.

Readers in common use stop silently at a damaged header, which loses samples. Here a tar either has all its members or is
refused. Formats: POSIX ustar and pax, GNU long names, old V7 tars (IEEE Std 1003.1, "pax", ustar interchange format).
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from unic_pipe.pipeline.samples.ranges import Ranged
from unic_pipe.schemas.errors import UserError

BLOCK = 512
_ZERO = bytes(BLOCK)
_LONGEST_NAME = 1 << 20
_AGAIN = "Copy or download this tar again, or leave it out of `source`."
_REFUSED = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a named pipe",
            b"S": "a sparse file"}  # fmt: skip
_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip -k"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -d"),
    (b"\xfd7zXZ\x00", "xz", "unxz -k"),
    (b"BZh", "bzip2", "bunzip2 -k"),
)


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file inside a tar. `offset` and `size` (bytes) are those of its content."""

    name: str
    header: int
    offset: int
    size: int


def walk(tar: Ranged, shard: str) -> Iterator[Member]:
    """All regular members of an open tar, in order. `shard` names the tar in errors.
    Raises UserError: compressed, cut, damaged or empty tar; links, devices, and names that leave the folder."""
    size = tar.size
    _check_kind(tar, shard)
    at, last, members = 0, "", 0
    extra: dict[str, str] = {}
    while True:
        block = tar.read(BLOCK, at)
        where = f"byte {at:,}" + (f", after member {last!r}" if last else "")
        if len(block) < BLOCK:
            what = "inside a header" if block else "before its end-of-archive blocks"
            raise UserError(f"{shard}: the tar is cut {what} ({where}).", _AGAIN)
        if block == _ZERO:
            break
        header = _parse(block, shard, where)
        start = at + BLOCK
        length = _pax_size(extra, header.size, shard, where)
        name = extra.get("path", header.name)
        if start + length > size:
            raise UserError(
                f"{shard}: the tar is cut inside member {name!r} (byte {at:,}: it ends at byte {start + length:,}, "
                f"the file at {size:,}).",
                _AGAIN,
            )
        if header.kind in (b"x", b"X", b"L"):
            extra |= _extension(tar.read(length, start), header.kind, shard, where)
        elif header.kind not in (b"g", b"K"):
            members += 1
            if _is_file(header, name, extra, shard, where):
                yield Member(_clean(name, shard, where), at, start, length)
            extra, last = {}, name
        at = start + -(-length // BLOCK) * BLOCK
    _check_end(tar, shard, at)
    if members == 0:
        raise UserError(f"{shard}: the tar is empty (no members).", "Delete it, or leave it out of `source`.")


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    kind: bytes
    size: int


def _parse(block: bytes, shard: str, where: str) -> _Header:
    stored = _octal(block[148:156])
    total = sum(block) - sum(block[148:156]) + 8 * 32  # the checksum counts as eight spaces
    if stored != total:
        signed = sum(struct.unpack("512b", block)) - sum(struct.unpack("8b", block[148:156])) + 8 * 32
        if stored != signed:  # some old writers summed signed bytes
            raise UserError(f"{shard}: damaged tar header ({where}: its checksum does not match).", _AGAIN)
    length = _octal(block[124:136])
    if length is None:
        raise UserError(f"{shard}: damaged tar header ({where}: its size is not a number).", _AGAIN)
    raw = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345] != 0:
        raw = block[345:500].partition(b"\0")[0] + b"/" + raw
    kind = block[156:157]
    if kind not in (b"x", b"X", b"L", b"g", b"K"):
        return _Header(_text(raw, shard, where), kind, length)
    return _Header("", kind, length)


def _octal(field: bytes) -> int | None:
    if field[0] == 0x80:  # GNU's base 256, for sizes of 8 GiB and more
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip(b" ")
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else (0 if not digits else None)


def _text(raw: bytes, shard: str, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise UserError(f"{shard}: a member's name is not UTF-8 ({where}: {raw!r}).", "Rename it.") from None


def _extension(data: bytes, kind: bytes, shard: str, where: str) -> dict[str, str]:
    """Fields of a pax header (`LENGTH KEY=VALUE` lines), or GNU's long name as the field `path`."""
    if len(data) > _LONGEST_NAME:
        raise UserError(f"{shard}: damaged tar header ({where}: an extended header of {len(data):,} bytes).", _AGAIN)
    if kind == b"L":
        return {"path": _text(data.partition(b"\0")[0], shard, where)}
    fields, at = {}, 0
    while at < len(data):
        match = re.compile(rb"([0-9]{1,9}) ([^=\n]+)=").match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise UserError(f"{shard}: damaged tar header ({where}: unreadable pax fields).", _AGAIN)
        if match[2] in (b"path", b"size") or match[2].startswith(b"GNU.sparse"):
            fields[match[2].decode()] = _text(data[match.end() : end - 1], shard, where)
        at = end
    return fields


def _pax_size(extra: dict[str, str], size: int, shard: str, where: str) -> int:
    if "size" not in extra:
        return size
    if not re.fullmatch(r"[0-9]{1,18}", extra["size"]):
        raise UserError(f"{shard}: damaged tar header ({where}: its size is not a number).", _AGAIN)
    return int(extra["size"])


def _is_file(header: _Header, name: str, extra: dict[str, str], shard: str, where: str) -> bool:
    """True for a regular file, False for a folder; everything else is refused."""
    if header.kind == b"5" or (header.kind == b"\0" and name.endswith("/")):
        return False
    sparse = any(key.startswith("GNU.sparse") for key in extra)
    if header.kind in (b"0", b"\0", b"7") and not sparse:
        return True
    what = "a sparse file" if sparse else _REFUSED.get(header.kind, f"of unknown type {header.kind!r}")
    raise UserError(
        f"{shard}: member {name!r} is {what} ({where}); only regular files are read.",
        "Write the tar again with the files themselves (tar --dereference --hard-dereference).",
    )


def _clean(name: str, shard: str, where: str) -> str:
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    if name.startswith("/") or ".." in name.split("/") or not name:
        raise UserError(
            f"{shard}: member {name!r} points outside the tar's folder ({where}).",
            "Write the tar again with plain relative names; this one may have been made to do harm.",
        )
    return name


def _check_kind(tar: Ranged, shard: str) -> None:
    if tar.size == 0:
        raise UserError(f"{shard}: the file is empty (0 bytes).", _AGAIN)
    first = tar.read(BLOCK, 0)
    for magic, kind, command in _COMPRESSED:
        if first.startswith(magic):
            raise UserError(
                f"{shard}: a {kind}-compressed tar; images inside it cannot be read by offset.",
                f"Decompress it: {command} {shard}",
            )
    if len(first) == BLOCK and first != _ZERO and first[257:262] != b"ustar" and _octal(first[148:156]) != (
        sum(first) - sum(first[148:156]) + 8 * 32
    ):  # fmt: skip
        raise UserError(f"{shard}: not a tar file, or its first header is damaged (byte 0).", _AGAIN)


def _check_end(tar: Ranged, shard: str, at: int) -> None:
    """Two zero blocks end a tar, and only zeros may follow: a hole in the middle must not pass as the end."""
    size = tar.size
    if at + 2 * BLOCK > size:
        raise UserError(f"{shard}: the tar is cut inside its end-of-archive blocks (byte {at:,}).", _AGAIN)
    place = at
    while place < size:
        piece = tar.read(1 << 20, place)
        if not piece:
            return
        if piece.count(0) != len(piece):
            raise UserError(
                f"{shard}: data after the end of the tar (end-of-archive at byte {at:,}, file of {size:,} bytes): "
                "a hole, or several tars joined into one.",
                f"{_AGAIN} Joined tars must be given one by one.",
            )
        place += len(piece)
