"""Requests to an object store: what it must be able to do for `ObjectStore`, and what can become of a request, in words that
do not depend on the kind of store."""

from collections.abc import Iterator
from typing import Protocol

from unic_pipe.pipeline.storage.store import Version
from unic_pipe.schemas.errors import StageError, UnicPipeError, UserError

RESULT_KEPT = "Finished work is kept; run the same command again."


class Busy(Exception):
    """The request failed and may be repeated: overload, a server's error, no answer in time, a lost connection."""


class ConditionFailed(Exception):
    """What is under the key is not what the condition of the request says."""


def explained(error: Busy, address: str, attempts: int) -> UnicPipeError:
    """The error to end with when repeating did not help."""
    return StageError(f"{address}: {attempts} requests failed, the last: {error}.", RESULT_KEPT)


def no_bucket(scheme: str, bucket: str) -> UserError:
    """The bucket is not there."""
    tool = {"s3": f"aws s3 mb s3://{bucket}", "gs": f"gcloud storage buckets create gs://{bucket}"}[scheme]
    return UserError(f"There is no bucket {scheme}://{bucket}.", f"Check its name (storage.url), or make it: {tool}")


def refused(scheme: str, bucket: str, why: str) -> UserError:
    """The credentials do not allow the request."""
    check = {"s3": "aws sts get-caller-identity", "gs": "gcloud auth list"}[scheme]
    return UserError(
        f"Access to {scheme}://{bucket} was refused ({why}).",
        f"Check who you are ({check}) and that you may list, read and write there; a key that is not there is also "
        "refused to those who may not list.",
    )


def no_credentials(scheme: str, bucket: str, why: str) -> UserError:
    """There are no credentials, or they are no longer good."""
    hint = {
        "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in: aws configure (aws sso login); for a public "
        "bucket set storage.options: {anon: true}.",
        "gs": "Log in: gcloud auth application-default login; for a public bucket set storage.options: {token: anon}.",
    }[scheme]
    return UserError(f"No usable credentials for {scheme}://{bucket} ({why}).", hint)


ABSENT = object()
"""The condition that there is nothing under a key."""


class Requests(Protocol):
    """One bucket, one request a call: what differs between kinds of object stores.

    Raises:
        FileNotFoundError: no such key (or `get` and `listing`: no such bucket, as `UserError`).
        Busy: the request may be repeated, and may have done its work.
        ConditionFailed: what is there is not what the condition says.
        UserError, OSError: anything else.
    """

    def get(self, key: str, offset: int | None, size: int | None) -> bytes:
        """Content, or a part of it."""

    def head(self, key: str) -> tuple[int, Version] | None:
        """Bytes and version, or None if there is nothing."""

    def put(self, key: str, data: bytes, only: Version | None) -> None:
        """Write; `only`: if the key has this version (`ABSENT`: if there is nothing)."""

    def delete(self, key: str, only: Version | None) -> None:
        """Remove; `only`: if the key has this version."""

    def listing(self, prefix: str, deep: bool) -> Iterator[tuple[str, tuple[int, Version] | None]]:
        """(key, (bytes, version)) of the objects that begin with `prefix`; not `deep`: up to the next slash, folders
        have None."""
