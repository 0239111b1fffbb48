"""Downloads: an object, a part of it, or what a HEAD says of it, in one request through obstore.

These run in threads; `Bucket` starts and repeats them. What comes is checked: the length that was asked for, of the
version that was asked for, as some servers ignore If-Match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from vfs.errors import Conflict
from vfs.storage.buffers import Buffers
from vfs.storage.endpoint import Clients
from vfs.storage.failures import NotPartial, NotText, Unavailable, is_not_text, is_out_of_range

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult

__all__ = ["Blob", "Chunks", "Found", "Span", "begin", "etag_of", "get", "nothing_there", "same", "stat", "version_of"]

CHUNK = 1 << 20  # bytes that obstore gathers of a stream before they are copied

Span = tuple[int, int]
"""The bytes `span[0] <= i < span[1]`."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a HEAD says of an object."""

    size: int
    version: str
    modified: datetime
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Blob(Found):
    """An object's content, or the part of it that was asked for; `size` is the whole object's. `view` is the content
    where it came, without a copy."""

    view: memoryview = field(default_factory=lambda: memoryview(b""))

    @classmethod
    def of(cls, found: Found, view: memoryview) -> Blob:
        return cls(found.size, found.version, found.modified, found.metadata, view)

    @property
    def content(self) -> bytes:
        return bytes(self.view)


def version_of(etag: str | None) -> str:
    """An ETag as a version: without its quotes, and without the `W/` that a compressing proxy puts before it, for
    If-Match never holds of a weak one."""
    return (etag or "").removeprefix("W/").strip('"')


def etag_of(version: str) -> str:
    """A version as If-Match wants it."""
    return f'"{version}"'


class Chunks:
    """A range on its way through obstore; as `vfs.storage.plain.Incoming`."""

    def __init__(self, key: str, answer: _Answer, buffers: Buffers) -> None:
        self.left = answer.size
        self._key = key
        self._chunks = iter(answer.result.stream(min_chunk_size=CHUNK))
        self._rest = memoryview(b"")
        self._buffers = buffers

    def piece(self, size: int) -> memoryview:
        """The next `size` bytes, or those that are left. Blocks."""
        body, at = self._buffers.take(min(size, self.left)), 0
        while at < len(body):
            if not self._rest:
                self._rest = memoryview(next(self._chunks, b""))
                if not self._rest:
                    raise Unavailable(self._key, f"{len(body) - at} bytes less came than were promised")
            part = self._rest[: len(body) - at]
            body[at : at + len(part)] = part
            at += len(part)
            self._rest = self._rest[len(part) :]
        self.left -= len(body)
        return body.toreadonly()

    def close(self) -> None:
        """Nothing more is read; obstore ends the request when nobody has its stream any more."""


class _Answer(NamedTuple):
    """To a request for an object or `size` bytes of it."""

    result: GetResult
    found: Found
    size: int


def get(clients: Clients, *, key: str, span: Span | None, version: str | None) -> Blob:
    answer = _ask(clients, key, span, version)
    if answer is None:
        return nothing_there(clients, key, version)
    content = memoryview(answer.result.bytes())
    if len(content) != answer.size:
        raise Unavailable(key, f"{len(content)} bytes came instead of {answer.size}")
    return Blob.of(answer.found, content)


def begin(clients: Clients, *, key: str, span: Span, version: str | None, buffers: Buffers) -> Chunks | None:
    """As `get`, to be read piece by piece; None where the object ends before the span."""
    answer = _ask(clients, key, span, version)
    return None if answer is None else Chunks(key, answer, buffers)


def _ask(clients: Clients, key: str, span: Span | None, version: str | None) -> _Answer | None:
    """None: the span begins at the object's end or behind it."""
    options: GetOptions = {}
    if span is not None:
        options["range"] = span
    if version is not None:
        options["if_match"] = etag_of(version)
    try:
        result = clients.store.get(key, options=options)
    except Exception as e:
        if span is not None and is_out_of_range(e):
            return None
        if "non-partial" in str(e):
            raise NotPartial(key) from e
        if is_not_text(e):
            raise NotText(key) from e
        raise
    meta = result.meta
    found = same(key, version, version_of(meta["e_tag"]))
    first, last = (0, meta["size"]) if span is None else (span[0], min(span[1], meta["size"]))
    if result.range != (first, last):
        raise Unavailable(key, f"bytes {result.range} came instead of {(first, last)}")
    return _Answer(result, Found(meta["size"], found, meta["last_modified"], dict(result.attributes)), last - first)


def nothing_there(clients: Clients, key: str, version: str | None) -> Blob:
    """What a range has that begins at the object's end or behind it."""
    found = stat(clients, key=key)
    return Blob(found.size, same(key, version, found.version), found.modified, found.metadata)


def stat(clients: Clients, *, key: str) -> Found:
    try:
        result = clients.store.get(key, options={"head": True})
    except Exception as e:
        if is_not_text(e):
            return _stat_by_boto(clients, key)
        raise
    meta = result.meta
    return Found(meta["size"], version_of(meta["e_tag"]), meta["last_modified"], dict(result.attributes))


def _stat_by_boto(clients: Clients, key: str) -> Found:
    config: Mapping[str, Any] = clients.store.config
    payer: dict[str, Any] = {"RequestPayer": "requester"} if config.get("request_payer") == "true" else {}
    said = clients.boto.head_object(Bucket=config["bucket"], Key=key, **payer)
    metadata = {**said["Metadata"], "Content-Type": said.get("ContentType", "")}
    return Found(said["ContentLength"], version_of(said["ETag"]), said["LastModified"], metadata)


def same(key: str, wanted: str | None, found: str) -> str:
    """`found`, where it is what was `wanted`."""
    if wanted is not None and found != wanted:
        raise Conflict(key, found)
    return found
