"""Failures: what a store's error means, as an OSError.

obstore and boto3 report the same answer of the same server in different ways; here both become one of a few OSErrors,
whose errno the program in the container may see. `Unavailable` alone is worth another try. FileNotFoundError is said
only where the server said it of the object: a missing bucket must never look like deleted files."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import botocore.exceptions as boto
import obstore.exceptions as obs

from vfs.errors import Conflict

__all__ = [
    "AccessDenied",
    "BucketMissing",
    "CleanupIncomplete",
    "NotPartial",
    "NotText",
    "Refused",
    "Unavailable",
    "explain",
    "explain_answer",
    "for_readers",
    "is_not_text",
    "is_out_of_range",
]


class Unavailable(OSError):
    """No usable answer in time: refused, reset, truncated, timed out, 5xx or told to slow down (errno EIO). Try
    again."""

    def __init__(self, what: str, why: str, *, slow_down: bool = False) -> None:
        super().__init__(errno.EIO, f"storage unavailable: {why}", what)
        self.slow_down = slow_down


class AccessDenied(PermissionError):
    """The store knows us not, or lets us not (errno EACCES)."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(errno.EACCES, f"storage refused access: {why}", what)


class BucketMissing(OSError):
    """There is no such bucket (errno EIO), which says nothing about the files."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EIO, "the bucket does not exist", what)


class Refused(OSError):
    """The store answered that it will not do this (errno EIO); the same request would be refused again."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(errno.EIO, f"storage refused the request: {why}", what)


class NotPartial(Refused):
    """The store answered a ranged read with status 200, which obstore does not take (`rclone serve s3` does that)."""

    def __init__(self, what: str) -> None:
        super().__init__(what, "a ranged read was answered with status 200")


class NotText(Refused):
    """The object's user metadata is not ASCII, which obstore does not take; boto3 and `vfs.storage.plain` do."""

    def __init__(self, what: str) -> None:
        super().__init__(what, "the object's metadata is not ASCII")


class CleanupIncomplete(OSError):
    """Some of a session's objects could not be removed (errno EIO); `remaining` says which and why."""

    def __init__(self, what: str, remaining: Sequence[str]) -> None:
        shown = "; ".join(remaining[:5]) + ("; ..." if len(remaining) > 5 else "")
        super().__init__(errno.EIO, f"{len(remaining)} objects could not be removed: {shown}", what)
        self.remaining = tuple(remaining)


@contextmanager
def for_readers(what: str) -> Iterator[None]:
    """EACCES would tell a program that the file's mode or owner forbids it to read."""
    try:
        yield
    except AccessDenied as e:
        raise Unavailable(what, str(e.strerror)) from e


_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_TIMED_OUT = "kind: Timeout"  # in obstore's debugging
_CODE = re.compile(r"<Code>\s*(\w+)\s*</Code>")
_SLOW = frozenset({"SlowDown", "TooManyRequests", "RequestLimitExceeded", "ThrottlingException", "Throttling"})
_PASSING = frozenset(
    # The last: this request met another of the same key half-way, such as our own earlier try.
    {"RequestTimeout", "InternalError", "ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict"}
)
_DENIED = frozenset({"ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "InvalidToken"})
_ABSENT = frozenset({"NoSuchKey", "NoSuchUpload", "NoSuchVersion"})


def explain(failure: Exception, what: str) -> OSError:
    """The OSError that `failure` of a request about `what` (a key or a bucket) means."""
    if isinstance(failure, boto.ClientError):
        return _explain_client_error(failure, what)
    if isinstance(failure, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)):
        return AccessDenied(what, str(failure))
    if isinstance(failure, boto.ReadTimeoutError):
        return Unavailable(what, _line(failure), slow_down=True)  # the link may carry fewer at once in the time
    if isinstance(failure, (boto.HTTPClientError, boto.ConnectionError)):
        return Unavailable(what, _line(failure))
    if isinstance(failure, (boto.BotoCoreError, ValueError)):
        return Refused(what, _line(failure))
    if isinstance(failure, (obs.AlreadyExistsError, obs.PreconditionError)):
        # obstore's name for every 409 is "already exists".
        code = _CODE.search(str(failure))
        return Unavailable(what, code[1]) if code and code[1] in _PASSING else Conflict(what)
    if isinstance(failure, (obs.BaseError, FileNotFoundError)):
        return _explain_obstore(failure, what)
    if isinstance(failure, OSError):
        return failure
    raise failure


def _explain_client_error(failure: boto.ClientError, what: str) -> OSError:
    said = failure.response.get("Error", {})
    status = int(failure.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return from_answer(status, said.get("Code", ""), said.get("Message", ""), what)


def _explain_obstore(failure: Exception, what: str) -> OSError:
    text = str(failure)
    status, code = _STATUS.search(text), _CODE.search(text)
    if status is None:
        if isinstance(failure, FileNotFoundError):
            return FileNotFoundError(errno.ENOENT, "no such object", what)
        # No answer, or half of one: obstore has no class of its own for connection, time-out and truncation.
        return Unavailable(what, _line(failure), slow_down=_TIMED_OUT in text)
    return from_answer(int(status[1]), code[1] if code else "", "", what)


def explain_answer(status: int, body: str, what: str) -> OSError:
    """The OSError for an answer that is no success."""
    code = _CODE.search(body)
    return from_answer(status, code[1] if code else "", "", what)


def is_not_text(failure: Exception) -> bool:
    """Whether obstore refuses an answer for the metadata that came with it."""
    return "contained non UTF-8 characters" in str(failure)


def is_out_of_range(failure: Exception) -> bool:
    """Whether an obstore failure says that a range begins at or after the object's end."""
    status = _STATUS.search(str(failure))
    return status is not None and status[1] == "416"


def from_answer(status: int, code: str, message: str, what: str) -> OSError:
    """The OSError for an HTTP status and S3's error code
    (docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html)."""
    said = " ".join(filter(None, (str(status), code, message)))
    if code == "NoSuchBucket":
        return BucketMissing(what)
    if code == "RequestTimeTooSkewed":
        return AccessDenied(what, f"{said}; this machine's clock is wrong")
    if status == 412:
        return Conflict(what)
    if code in _SLOW or status in (429, 503):
        return Unavailable(what, said, slow_down=True)
    if (status >= 500 and status != 501) or status == 408 or code in _PASSING:
        return Unavailable(what, said)
    if status in (401, 403) or code in _DENIED:
        return AccessDenied(what, said)
    if status == 404 and (code in _ABSENT or code in ("", "404")):
        return FileNotFoundError(errno.ENOENT, "no such object", what)
    return Refused(what, said)


def _line(failure: Exception) -> str:
    """The failure in one line; obstore's have a page of debugging after the first."""
    return str(failure).partition("\n")[0][:300]
