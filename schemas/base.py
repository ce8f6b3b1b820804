"""The base of every document: strict, frozen, versioned, with one canonical form and one digest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Any, ClassVar, Self

import xxhash
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationError,
)
from pydantic_core import PydanticKnownError, core_schema

from unic_pipe.schemas.errors import DamagedError, ForeignError, UserError

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 as 64 lower-case hexadecimal digits: definitions, weights, small files."""

FastHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""XXH3-128 as 32 lower-case hexadecimal digits: shards and image bytes, where speed counts."""

NAMES = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$"
Name = Annotated[str, StringConstraints(pattern=NAMES)]
"""A name that is safe as a folder: letters, digits and . _ + - (not first)."""


@dataclass(frozen=True)
class one_of:
    """A check that a string is one of a registry's names, which are looked up when it runs."""

    names: Callable[[], Iterable[str]]

    def check(self, name: str) -> str:
        """The name, if it is one of them."""
        names = list(self.names())
        if name not in names:
            *most, last = map(repr, names)
            raise PydanticKnownError("literal_error", {"expected": f"{', '.join(most)} or {last}"})
        return name

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, core: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(core), "enum": list(self.names())}


def is_name(text: str) -> bool:
    """Whether a text can be a `Name`."""
    return re.fullmatch(NAMES, text) is not None


def require_name(text: str, what: str) -> str:
    """A name that did not come through a document, as it is; `what` it is the name of begins the message.

    Raises:
        UserError: it is not a `Name`.
    """
    if not is_name(text):
        shown = f"{text[:40]!r}… ({len(text)} characters)" if len(text) > 100 else repr(text)
        raise UserError(
            f"{what}: {shown} is not a usable name.",
            "Use at most 100 letters, digits and . _ + - (the first a letter or digit).",
        )
    return text


def _require_inside(path: str) -> str:
    if path.startswith("/") or not path.isprintable() or {"", ".", ".."} & set(path.split("/")):
        raise ValueError("leads out of its folder")
    return path


InsidePath = Annotated[str, AfterValidator(_require_inside)]
"""A path below the folder of its document, with slashes."""


PROGRAM_VERSION = version("unic-pipe")
"""Written once, in pyproject.toml."""


class Model(BaseModel):
    """Strict (no coercion), frozen, and closed: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def canonical_json(value: Any) -> bytes:
    """Canonical form of a JSON value: sorted keys, no spaces, UTF-8, shortest floats (Python's repr)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def json_digest(value: Any) -> str:
    """SHA-256 (64 hex digits) of a JSON value's canonical form."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def digest_of(model: BaseModel) -> str:
    """SHA-256 (64 hex digits) of a model's canonical JSON without defaulted fields (R2).

    Leaving defaults out means that a new option, added later with a default that keeps the old
    behaviour, changes no digest.
    """
    return json_digest(model.model_dump(mode="json", exclude_defaults=True))


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


_DAMAGED = "It was edited or damaged: restore it, or move it away and run the same command again."


class Document(Model):
    """A model that stands alone on disk. `KIND` and `VERSION` are checked before anything else (R1)."""

    KIND: ClassVar[str]
    VERSION: ClassVar[int] = 1
    SEALED: ClassVar[int] = 1
    """The first version whose files end in a checksum of themselves, so that a changed byte is never read as data.
    Files of versions before it carry none: they are read, and `verify --seal` writes them again."""

    def to_bytes(self) -> bytes:
        """Indented JSON with the `schema` line first; equal documents give equal bytes."""
        body = {"schema": f"{self.KIND}/{self.VERSION}", **self.model_dump(mode="json")}
        return seal((json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())

    @classmethod
    def from_bytes(cls, raw: bytes, source: str) -> Self:
        """Parse and validate; `source` (a path) names the file in errors.

        Raises:
            DamagedError: not what was written: another checksum, none where the version has one, not JSON, or invalid
                fields (all listed).
            ForeignError: another kind of document.
            UserError: a newer version.
        """
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise DamagedError(f"{source}: not valid JSON ({error}).", _DAMAGED) from None
        content = body if isinstance(body, dict) else {}
        schema = content.pop("schema", None)
        match = re.fullmatch(r"([a-z-]+)/([0-9]{1,9})", schema) if isinstance(schema, str) else None
        version = int(match[2]) if match is not None and match[1] == cls.KIND else None
        sealed = content.pop("checksum", None) is not None or (version is not None and version >= cls.SEALED)
        if sealed and not seal_holds(raw):
            raise DamagedError(f"{source}: the checksum does not match the content.", _DAMAGED)
        if version is None:
            raise ForeignError(f"{source}: expected a {cls.KIND} document, found schema {schema!r}.")
        if version > cls.VERSION:
            raise UserError(
                f"{source}: written by a newer unic-pipe ({schema}; {PROGRAM_VERSION} reads up to version {cls.VERSION}).",
                "Upgrade: pip install --upgrade unic-pipe",
            )
        try:
            return cls.model_validate_json(json.dumps(cls.upgrade(content, version)))
        except ValidationError as error:
            problems = "; ".join(describe_problem(p["loc"], p["msg"]) for p in error.errors())
            raise DamagedError(f"{source}: {problems}", _DAMAGED) from None

    @classmethod
    def unsealed(cls, head: bytes) -> bool:
        """Whether a file that begins with these bytes is of a version that had no checksum yet."""
        match = re.match(rb'\{\s*"schema": "([a-z-]+)/([0-9]{1,9})"', head)
        return match is not None and match[1].decode() == cls.KIND and int(match[2]) < cls.SEALED

    @classmethod
    def upgrade(cls, body: dict[str, Any], version: int) -> dict[str, Any]:
        """Bring an older version's fields up to date; every released version stays readable."""
        del version
        return body


def describe_problem(loc: tuple[int | str, ...], message: str) -> str:
    """One validation problem as `a.b.c: message`."""
    return f"{'.'.join(map(str, loc))}: {message}" if loc else message
