"""The wire format: what goes over HTTP between a session and an integrator's callbacks. docs/callbacks.md is its
manual.

Paths in a URL are their bytes, percent-encoded. In JSON a path is text; one whose bytes are not UTF-8 is
`path_base64` instead. Scope and context are JSON in headers. An error is a status and `{"errno": "ENOENT",
"message": ...}`; the name decides, the status only where it is absent. Client and server use this module, so that
neither can disagree with itself.
"""

from __future__ import annotations

import base64
import errno
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote_to_bytes

import msgspec

from vfs.errors import Conflict
from vfs.fileref import FileRef
from vfs.listing import UNKNOWN_SIZE

__all__ = [
    "CONTEXT",
    "HEADERS_MAX",
    "IMAGE_VERSION",
    "SCOPE",
    "VERSION",
    "Capabilities",
    "ChangeLine",
    "Entry",
    "Move",
    "decode_path",
    "encode_path",
    "error_from",
    "error_to",
    "from_header",
    "outcome_from",
    "outcomes_from",
    "path_fields",
    "path_from",
    "ref_from",
    "ref_to",
    "to_header",
]

VERSION = 1
IMAGE_VERSION = "Mount-Session-Image-Version"
SCOPE = "Mount-Session-Scope"
CONTEXT = "Mount-Session-Context"
HEADERS_MAX = 64 << 10  # of one request; h11's own default of 16 KiB is little for a context with metadata

_STATUS = {
    **{errno.EINVAL: 400, errno.EACCES: 403, errno.EPERM: 403, errno.EROFS: 403, errno.ENOENT: 404, errno.EEXIST: 409},
    **{errno.ESTALE: 412, errno.EFBIG: 413, errno.EAGAIN: 503, errno.ENOSYS: 501, errno.ETIMEDOUT: 504},
    **{errno.ENOSPC: 507, errno.EDQUOT: 507},
}
_ERRNO = {
    **{401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 409: errno.EEXIST, 410: errno.ENOENT},
    **{412: errno.ESTALE, 413: errno.EFBIG, 501: errno.ENOSYS, 504: errno.ETIMEDOUT, 507: errno.ENOSPC},
}
_NAMES = {name: number for name, number in vars(errno).items() if name.startswith("E")}  # EAGAIN, and EWOULDBLOCK too


class Capabilities(msgspec.Struct, kw_only=True):
    """The answer to GET of the base: the version of the format, and the callbacks that are there."""

    mount_session: int
    callbacks: list[str]


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A FileRef in JSON."""

    path: str | None = None
    path_base64: str | None = None
    size: int = UNKNOWN_SIZE
    content_type: str | None = None
    checksum: str | None = None
    storage_url: str | None = None
    created_at: datetime | None = None
    version: str | int | None = None
    mtime_ns: int | None = None
    mode: int | None = None
    metadata: dict[str, Any] = {}


class ChangeLine(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The line before a change in the body of a batch; `size` bytes of content follow it."""

    kind: Literal["write", "delete", "move"]
    path: str | None = None
    path_base64: str | None = None
    source: str | None = None  # of a move
    source_base64: str | None = None
    size: Annotated[int, msgspec.Meta(ge=0)] = 0
    context: dict[str, Any] = {}


class Move(msgspec.Struct, kw_only=True):
    """The body of a move."""

    source: str | None = None
    source_base64: str | None = None
    path: str | None = None
    path_base64: str | None = None


def encode_path(path: str) -> str:
    """For a URL; slashes stay."""
    return quote(path.encode("utf-8", "surrogateescape"), safe="/")


def decode_path(raw: bytes) -> str:
    return unquote_to_bytes(raw).decode("utf-8", "surrogateescape")


def path_fields(path: str, key: str = "path") -> dict[str, str]:
    """A path in JSON."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return {f"{key}_base64": base64.b64encode(path.encode("utf-8", "surrogateescape")).decode()}
    return {key: path}


def path_from(text: str | None, encoded: str | None) -> str:
    """The path from its two fields. ValueError if there is not exactly one, or no base64."""
    if (text is None) == (encoded is None):
        raise ValueError("a path is needed, as text or in base64")
    if encoded is None:
        return str(text)
    return base64.b64decode(encoded, validate=True).decode("utf-8", "surrogateescape")  # binascii.Error is a ValueError


def ref_to(ref: FileRef) -> Entry:
    fields: dict[str, Any] = {name: getattr(ref, name) for name in FileRef.__struct_fields__ if name != "path"}
    fields |= path_fields(ref.path)
    return Entry(**fields)


def ref_from(entry: Entry, path: str | None = None) -> FileRef:
    """`path`: where the answer need not repeat it."""
    fields = {name: getattr(entry, name) for name in FileRef.__struct_fields__ if name not in ("path", "created_at")}
    known = path_from(entry.path, entry.path_base64) if path is None else path
    return FileRef(path=known, created_at=entry.created_at or datetime.now(UTC), **fields)


def outcome_from(body: bytes, path: str) -> FileRef | dict[str, Any] | None:
    """What a write answered: nothing, metadata, or (an object with a path) a FileRef. ValueError if none of these."""
    found = msgspec.json.decode(body) if body.strip() else None
    return _outcome(found, path)


def outcomes_from(body: bytes, paths: Sequence[str]) -> list[FileRef | dict[str, Any] | None] | None:
    """What a batch answered: nothing, or outcomes, of which `Persistence` checks that there are as many as have to
    be."""
    found = msgspec.json.decode(body) if body.strip() else None
    if found is None:
        return None
    if not isinstance(found, list) or len(found) > len(paths):
        raise ValueError(f"a list of at most {len(paths)} outcomes was expected")
    return [_outcome(one, path) for one, path in zip(found, paths, strict=False)]


def _outcome(found: object, path: str) -> FileRef | dict[str, Any] | None:
    if found is None:
        return None
    if not isinstance(found, dict):
        raise ValueError(f"a JSON object was expected, not {type(found).__name__}")
    if "path" in found or "path_base64" in found:
        return ref_from(msgspec.convert(found, Entry), path)
    return found


def to_header(value: object) -> str:
    """JSON in ASCII. TypeError if the value has no JSON form. Lone surrogates pass, as JSON's escapes."""
    return json.dumps(msgspec.to_builtins(value), ensure_ascii=True, separators=(",", ":"))


def from_header(text: str | None) -> Any:
    """ValueError if it is not JSON. RecursionError, of JSON that is nested too deep, is made one too."""
    try:
        return None if text is None else json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def error_to(error: OSError) -> tuple[int, dict[str, str]]:
    """Status and body of an error."""
    number = error.errno if error.errno is not None else errno.EIO
    body = {"errno": errno.errorcode.get(number, "EIO"), "message": error.strerror or str(error)}
    if isinstance(error, Conflict) and error.found is not None:
        body["found"] = error.found
    return _STATUS.get(number, 500), body


def error_from(status: int, body: bytes, path: str) -> OSError:
    """The error that an answer means, whoever made it."""
    try:
        told = msgspec.json.decode(body, type=dict[str, Any])
    except ValueError:  # a proxy's page, or another framework's
        told = {}
    number = _NAMES.get(str(told.get("errno")), _ERRNO.get(status, errno.EIO))
    if number == errno.ESTALE:
        found = told.get("found")
        return Conflict(path, found if isinstance(found, str) else None)
    message = told.get("message")
    text = message if isinstance(message, str) and message else f"{os.strerror(number)} (HTTP {status})"
    return OSError(number, text[:500], path)
