"""Requests to one S3 bucket through s3fs, and what their failures mean. Nothing is repeated here.

Credentials and the region come from where AWS's tools look for them (environment, ~/.aws, instance roles).
"""

from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import s3fs
from botocore import exceptions as aws
from fsspec.exceptions import FSTimeoutError

from unic_pipe.pipeline.storage.requests import ABSENT, Busy, ConditionFailed, no_bucket, no_credentials, refused
from unic_pipe.pipeline.storage.store import Version
from unic_pipe.schemas.errors import UserError

_BUSY = {
    "SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "RequestTimeoutException", "Throttling",
    "ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded", "TooManyRequests", "OperationAborted",
    "ConditionalRequestConflict", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch",
}  # fmt: skip
_EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_NO_CREDENTIALS = (
    aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError, aws.ProfileNotFound,
    aws.TokenRetrievalError, aws.UnauthorizedSSOTokenError, aws.SSOTokenLoadError,
)  # fmt: skip
_LOST = (aws.HTTPClientError, aws.ConnectionError, aws.IncompleteReadError, aws.ResponseStreamingError, OSError)

T = TypeVar("T")


class _BeyondEnd(Exception):
    """A range that begins at or behind the end."""


class S3Requests:
    """One bucket. `settings` are s3fs's (endpoint_url, anon, profile, config_kwargs …)."""

    def __init__(self, bucket: str, settings: dict[str, Any]) -> None:
        self.bucket = bucket
        config = {**settings.pop("config_kwargs", {}), "retries": {"total_max_attempts": 1}}
        config.setdefault("max_pool_connections", 64)
        try:
            self._fs = s3fs.S3FileSystem(
                **settings, config_kwargs=config, skip_instance_cache=True, use_listings_cache=False
            )
        except TypeError as error:
            raise UserError(f"storage.options: s3fs does not take these options ({error}).") from None
        self._fs.retries = 1

    def get(self, key: str, offset: int | None, size: int | None) -> bytes:
        """Content, or a part of it."""
        path, end = f"{self.bucket}/{key}", None if offset is None or size is None else offset + size
        try:
            return bytes(self._send(lambda: self._fs.cat_file(path, start=offset, end=end, max_concurrency=1)))
        except _BeyondEnd:
            return b""

    def head(self, key: str) -> tuple[int, Version] | None:
        """Bytes and ETag, or None if there is nothing."""
        try:
            found = self._call("head_object", Key=key)
        except FileNotFoundError:
            return None
        return int(found["ContentLength"]), str(found["ETag"])

    def put(self, key: str, data: bytes, only: Version | None) -> None:
        """Write; `only`: if the key has this ETag (`ABSENT`: if there is nothing)."""
        condition = {} if only is None else {"IfNoneMatch": "*"} if only is ABSENT else {"IfMatch": only}
        self._call("put_object", Key=key, Body=data, **condition)

    def delete(self, key: str, only: Version | None) -> None:
        """Remove; `only`: if the key has this ETag."""
        self._call("delete_object", Key=key, **({} if only is None else {"IfMatch": only}))

    def listing(self, prefix: str, deep: bool) -> Iterator[tuple[str, tuple[int, Version] | None]]:
        """(key, (bytes, ETag)) of objects, and (folder, None)."""
        more: dict[str, Any] = {} if deep else {"Delimiter": "/"}
        while True:
            page = self._call("list_objects_v2", Prefix=prefix, **more)
            yield from ((o["Key"], (int(o["Size"]), str(o["ETag"]))) for o in page.get("Contents", ()))
            yield from ((folder["Prefix"], None) for folder in page.get("CommonPrefixes", ()))
            if not page.get("IsTruncated"):
                return
            more["ContinuationToken"] = page["NextContinuationToken"]

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._send(lambda: self._fs.call_s3(method, Bucket=self.bucket, **arguments))
        return found

    def _send(self, request: Callable[[], T]) -> T:
        try:
            return request()
        except Exception as error:
            self._explain(error)

    def _explain(self, error: Exception) -> NoReturn:
        """Raise what a failure means."""
        answer = error if isinstance(error, aws.ClientError) else error.__cause__
        if isinstance(answer, aws.ClientError):
            self._explain_answer(answer)
        if isinstance(error, _NO_CREDENTIALS):
            raise no_credentials("s3", self.bucket, str(error)) from error
        if isinstance(error, (*_LOST, FSTimeoutError)):
            raise Busy(f"no answer ({type(error).__name__}: {error})") from error
        if isinstance(error, aws.BotoCoreError):
            raise UserError(f"s3://{self.bucket}: {error}", "Check storage.options and the AWS_… variables.") from error
        if isinstance(error, TypeError) and "unexpected keyword" in str(error):
            raise UserError(f"storage.options: s3fs does not take these options ({error}).") from error
        raise error

    def _explain_answer(self, answer: aws.ClientError) -> NoReturn:
        code = str(answer.response.get("Error", {}).get("Code", ""))
        status = int(answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        why = f"{status} {code}".strip()
        if code == "NoSuchBucket":
            raise no_bucket("s3", self.bucket) from answer
        if code == "PreconditionFailed" or status == 412:
            raise ConditionFailed(why) from answer
        if code in _BUSY or status in (409, 429) or status >= 500:
            raise Busy(why) from answer
        if code in _EXPIRED:
            raise no_credentials("s3", self.bucket, why) from answer
        if code == "RequestTimeTooSkewed":
            raise UserError(f"s3://{self.bucket} refuses this machine's time.", "Set the clock (NTP).") from answer
        if status == 416:
            raise _BeyondEnd from answer
        if status == 404:
            raise FileNotFoundError(why) from answer
        if status == 403 or code == "AccessDenied":
            raise refused("s3", self.bucket, why) from answer
        message = answer.response.get("Error", {}).get("Message", "")
        raise UserError(f"s3://{self.bucket}: {why}: {message}", "Check storage.url and storage.options.") from answer
