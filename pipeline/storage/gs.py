"""Requests to one Google Cloud Storage bucket through gcsfs, and what their failures mean.

gcsfs repeats what it can see to be a passing failure (six times); only requests without an answer in time are left to
the level above. Conditions are generations instead of ETags: 0 means that there is nothing.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import gcsfs
import google.auth.exceptions
from fsspec.exceptions import FSTimeoutError
from gcsfs.retry import HttpError

from unic_pipe.pipeline.storage.requests import (
    ABSENT,
    RESULT_KEPT,
    Busy,
    ConditionFailed,
    no_bucket,
    no_credentials,
    refused,
)
from unic_pipe.pipeline.storage.store import Version
from unic_pipe.schemas.errors import StageError, UnicPipeError, UserError

_BOUNDARY = "unic-pipe-part"

T = TypeVar("T")


class GsRequests:
    """One bucket. `settings` are gcsfs's (project, token, endpoint_url …)."""

    def __init__(self, bucket: str, settings: dict[str, Any]) -> None:
        self.bucket = bucket
        try:
            self._fs = gcsfs.GCSFileSystem(**settings, skip_instance_cache=True, use_listings_cache=False)
        except (TypeError, ValueError) as error:
            raise UserError(f"storage.options: gcsfs does not take these options ({error}).") from None
        except google.auth.exceptions.GoogleAuthError as error:
            raise no_credentials("gs", bucket, str(error)) from error

    def get(self, key: str, offset: int | None, size: int | None) -> bytes:
        """Content, or a part of it."""
        headers = {} if offset is None or size is None else {"Range": f"bytes={offset}-{offset + size - 1}"}
        try:
            return bytes(self._call("GET", "b/{}/o/{}", key, alt="media", headers=headers)[1])
        except _BeyondEnd:
            return b""
        except FileNotFoundError:
            self._require_bucket()
            raise

    def head(self, key: str) -> tuple[int, Version] | None:
        """Bytes and generation, or None if there is nothing."""
        try:
            found = json.loads(self._call("GET", "b/{}/o/{}", key)[1])
        except FileNotFoundError:
            return None
        return int(found["size"]), str(found["generation"])

    def put(self, key: str, data: bytes, only: Version | None) -> None:
        """Write; `only`: if the key has this generation (`ABSENT`: if there is nothing)."""
        head = f"--{_BOUNDARY}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps({'name': key})}\r\n"
        head += f"--{_BOUNDARY}\r\nContent-Type: application/octet-stream\r\n\r\n"
        body = head.encode() + data + f"\r\n--{_BOUNDARY}--".encode()
        address = f"{self._fs._location}/upload/storage/v1/b/{self.bucket}/o"
        headers = {"Content-Type": f'multipart/related; boundary="{_BOUNDARY}"'}
        try:
            self._send(
                lambda: self._fs.call(
                    "POST", address, uploadType="multipart", headers=headers, data=body, **self._condition(only)
                )
            )
        except FileNotFoundError:
            raise no_bucket("gs", self.bucket) from None

    def delete(self, key: str, only: Version | None) -> None:
        """Remove; `only`: if the key has this generation."""
        try:
            self._call("DELETE", "b/{}/o/{}", key, **self._condition(only))
        except FileNotFoundError:
            if only is not None:
                raise

    def listing(self, prefix: str, deep: bool) -> Iterator[tuple[str, tuple[int, Version] | None]]:
        """(key, (bytes, generation)) of objects, and (folder, None)."""
        more: dict[str, Any] = {"prefix": prefix} if deep else {"prefix": prefix, "delimiter": "/"}
        while True:
            try:
                page = json.loads(self._send(lambda: self._fs.call("GET", "b/{}/o", self.bucket, **more))[1])
            except FileNotFoundError:
                raise no_bucket("gs", self.bucket) from None
            yield from ((o["name"], (int(o["size"]), str(o["generation"]))) for o in page.get("items", ()))
            yield from ((folder, None) for folder in page.get("prefixes", ()))
            if "nextPageToken" not in page:
                return
            more["pageToken"] = page["nextPageToken"]

    def _condition(self, only: Version | None) -> dict[str, str]:
        return {} if only is None else {"ifGenerationMatch": "0" if only is ABSENT else str(only)}

    def _require_bucket(self) -> None:
        try:
            self._send(lambda: self._fs.call("GET", "b/{}/o", self.bucket, maxResults="1"))
        except FileNotFoundError:
            raise no_bucket("gs", self.bucket) from None

    def _call(self, method: str, path: str, key: str, **arguments: Any) -> tuple[Any, bytes]:
        found: tuple[Any, bytes] = self._send(lambda: self._fs.call(method, path, self.bucket, key, **arguments))
        return found

    def _send(self, request: Callable[[], T]) -> T:
        try:
            return request()
        except UnicPipeError:
            raise
        except Exception as error:
            self._explain(error)

    def _explain(self, error: Exception) -> NoReturn:
        """Raise what a failure means."""
        if isinstance(error, FileExistsError):  # gcsfs's word for 412
            raise ConditionFailed(str(error)) from error
        if isinstance(error, FileNotFoundError):
            raise error
        if isinstance(error, google.auth.exceptions.GoogleAuthError):
            raise no_credentials("gs", self.bucket, str(error)) from error
        if isinstance(error, asyncio.TimeoutError | TimeoutError | FSTimeoutError):
            raise Busy(f"no answer ({type(error).__name__})") from error
        code = int(error.code or 0) if isinstance(error, HttpError) else 0
        if code == 416:
            raise _BeyondEnd from error
        if code == 401:
            raise no_credentials("gs", self.bucket, str(error)) from error
        if isinstance(error, OSError) and str(error).startswith("Forbidden"):
            raise refused("gs", self.bucket, "403") from error
        raise StageError(f"gs://{self.bucket}: {type(error).__name__}: {error}", RESULT_KEPT) from error


class _BeyondEnd(Exception):
    """A range that begins at or behind the end."""
