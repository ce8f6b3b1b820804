"""The base of every document: strict, frozen, versioned, with one canonical form and one digest."""

from __future__ import annotations

import hashlib
import json
import re
from importlib.metadata import version
from typing import Annotated, Any, ClassVar, Self

import xxhash
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from schemas.errors import UserError

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 as 64 lower-case hexadecimal digits: definitions, weights, small files."""

FastHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""XXH3-128 as 32 lower-case hexadecimal digits: shards and image bytes, where speed counts."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$")]
"""A name that is safe as a folder: letters, digits and . _ + - (not first)."""


def is_name(text: str) -> bool:
    """Whether a text can be a `Name`."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", text) is not None


PROGRAM_VERSION = version("unic-pipe")
"""Written once, in pyproject.toml."""


class Model(BaseModel):
    """Strict (no coercion), frozen, and closed: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def canonical_json(value: Any) -> bytes:
    """Canonical form of a JSON value: sorted keys, no spaces, UTF-8, shortest floats (Python's repr)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_of(model: BaseModel) -> str:
    """SHA-256 (64 hex digits) of a model's canonical JSON without defaulted fields (R2).

    Leaving defaults out means that a new option, added later with a default that keeps the old
    behaviour, changes no digest.
    """
    return hashlib.sha256(canonical_json(model.model_dump(mode="json", exclude_defaults=True))).hexdigest()


def short(digest: str) -> str:
    """The eight digits by which folders and messages name an artefact."""
    return digest[:8]


_SEAL_START, _SEAL_END = b',\n "checksum": "', b'"\n}\n'


def seal(raw: bytes) -> bytes:
    """Indented JSON of an object, with a last field `checksum`: XXH3-128 of every byte before its value."""
    body = raw.removesuffix(b"\n}\n") + _SEAL_START
    return body + xxhash.xxh3_128_hexdigest(body).encode() + _SEAL_END


def seal_holds(raw: bytes) -> bool:
    """Whether sealed bytes are exactly what was written: any changed byte breaks the seal."""
    cut = len(raw) - len(_SEAL_END) - 32
    checksum = raw[cut : cut + 32]
    return cut > 0 and raw.endswith(_SEAL_END) and xxhash.xxh3_128_hexdigest(raw[:cut]).encode() == checksum


class Document(Model):
    """A model that stands alone on disk. `KIND` and `VERSION` are checked before anything else (R1)."""

    KIND: ClassVar[str]
    VERSION: ClassVar[int] = 1
    SEALED: ClassVar[bool] = False
    """Whether the file ends in a checksum of itself, so that a changed byte is never read as data."""

    def to_bytes(self) -> bytes:
        """Indented JSON with the `schema` line first; equal documents give equal bytes."""
        body = {"schema": f"{self.KIND}/{self.VERSION}", **self.model_dump(mode="json")}
        raw = (json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
        return seal(raw) if self.SEALED else raw

    @classmethod
    def from_bytes(cls, raw: bytes, source: str) -> Self:
        """Parse and validate; `source` (a path) names the file in errors.

        Raises:
            UserError: damaged, not JSON, another kind of document, a newer version, or invalid fields (all listed).
        """
        if cls.SEALED and not seal_holds(raw):
            raise UserError(
                f"{source}: the checksum does not match the content.",
                "The file was edited or damaged; restore or delete it.",
            )
        try:
            body = json.loads(raw)
        except ValueError as error:
            raise UserError(
                f"{source}: not valid JSON ({error}).", "The file is damaged; restore or delete it."
            ) from None
        schema = body.pop("schema", None) if isinstance(body, dict) else None
        match = re.fullmatch(r"([a-z-]+)/([0-9]+)", schema) if isinstance(schema, str) else None
        if match is None or match[1] != cls.KIND:
            raise UserError(f"{source}: expected a {cls.KIND} document, found schema {schema!r}.")
        if int(match[2]) > cls.VERSION:
            raise UserError(
                f"{source}: written by a newer unic-pipe ({schema}; {PROGRAM_VERSION} reads up to version {cls.VERSION}).",
                "Upgrade: pip install --upgrade unic-pipe",
            )
        if cls.SEALED:
            del body["checksum"]
        try:
            return cls.model_validate_json(json.dumps(cls.upgrade(body, int(match[2]))))
        except ValidationError as error:
            problems = "; ".join(describe_problem(p["loc"], p["msg"]) for p in error.errors())
            raise UserError(f"{source}: {problems}", "The file was edited or damaged; restore or delete it.") from None

    @classmethod
    def upgrade(cls, body: dict[str, Any], version: int) -> dict[str, Any]:
        """Bring an older version's fields up to date; every released version stays readable."""
        del version
        return body


def describe_problem(loc: tuple[int | str, ...], message: str) -> str:
    """One validation problem as `a.b.c: message`."""
    return f"{'.'.join(map(str, loc))}: {message}" if loc else message
