"""Bucket: single requests to one bucket, each bounded in time, tried again where that may help, and counted.

obstore carries content, and `plain` the ranges that are read over http, in threads that a `Throttle` counts; boto3 says
what obstore cannot (conditional deletes, copies, parts, versions), through `vfs.storage.wire`. Callers are `objects`,
`multipart`, `sweep`, `lease` and `image` beside this module.

Invariants: a read ends within `read_patience`, with its bytes or an OSError; a write is never abandoned while it may
still arrive at the server; FileNotFoundError means that the object is absent, not that the question could not be
asked."""

from __future__ import annotations

import functools
import hashlib
import logging
import random
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import trio

from vfs.callbacks import PIECE
from vfs.errors import Conflict
from vfs.failpoints import reach
from vfs.storage.buffers import Buffers
from vfs.storage.download import Blob, Chunks, Found, Span, begin, etag_of, get, stat, version_of
from vfs.storage.endpoint import Clients, Endpoint, connect
from vfs.storage.failures import (
    AccessDenied,
    BucketMissing,
    NotPartial,
    NotText,
    Unavailable,
    explain,
    explain_answer,
)
from vfs.storage.plain import Incoming, Plain, is_plain
from vfs.storage.precondition import ANY, Condition, Met, Preconditions, require
from vfs.storage.throttle import Budget, Throttle
from vfs.storage.wire import Wire

if TYPE_CHECKING:
    from obstore import PutMode

__all__ = [
    "ANY",
    "HASHED_IN_PLACE",
    "Blob",
    "Bucket",
    "Condition",
    "Found",
    "Put",
    "etag_of",
    "headers_of",
    "version_of",
]

log = logging.getLogger(__name__)

T = TypeVar("T")


CONTENT_IN_MEMORY = 64 << 20
IDLE = 8  # buffers for pieces of streams that are kept for the next ones
MANY_END = 5.0  # seconds after which no other of many objects is begun
FIRST_DELAY = 0.05
LONGEST_DELAY = 3.0
RENEWAL_PAUSE = 2.0  # seconds between two searches for rotated credentials


_MD5 = re.compile(r"[0-9a-f]{32}")
HASHED_IN_PLACE = 64 << 10  # a thread costs more than hashing so few bytes


async def _md5(content: bytes | memoryview) -> str:
    def digest() -> str:
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    return digest() if len(content) <= HASHED_IN_PLACE else await trio.to_thread.run_sync(digest)


def headers_of(condition: Condition) -> dict[str, Any]:
    """A condition as parameters of boto3's writes."""
    if condition is None:
        return {"IfNoneMatch": "*"}
    return {} if condition is ANY else {"IfMatch": etag_of(condition)}


class Put(NamedTuple):
    """An object to be written."""

    key: str
    content: bytes | memoryview
    attributes: dict[str, str]
    condition: Condition


class Bucket:
    """Requests to `endpoint`. `counts` has the number of requests, retries, failures and bytes, by name."""

    def __init__(self, endpoint: Endpoint, *, concurrency: int = 64) -> None:
        self.endpoint = endpoint
        self.reads = Throttle(concurrency)
        self.writes = Throttle(concurrency)
        self.memory = Budget(CONTENT_IN_MEMORY)
        self.counts: Counter[str] = Counter()
        self.last_failure: str | None = None
        self.conditional = True  # False where the endpoint ignores If-Match and If-None-Match: `vfs.storage.probe`
        self.conditional_deletes = True  # False where it does so, or refuses it, on a DELETE
        self.plain_ranges = False
        self._buffers = Buffers(PIECE, IDLE)
        self._plain = Plain(endpoint, self._buffers)
        self._md5_etags: bool | None = None  # learned from the first write, or from a read
        self._preconditions = Preconditions()
        self._clients: Clients | None = None
        self._connecting = trio.Lock()
        self._renewed_at = float("-inf")
        self._wire = Wire(endpoint)

    @property
    def name(self) -> str:
        return self.endpoint.bucket

    async def aclose(self) -> None:
        self._plain.close()
        await self._wire.aclose()

    async def clients(self) -> Clients:
        """What requests are made with; found at the first call."""
        if self._clients is None:
            async with self._connecting:
                if self._clients is None:
                    self._clients = await self._connect()
        return self._clients

    async def _connect(self) -> Clients:
        clients = await trio.to_thread.run_sync(connect, self.endpoint)
        self._wire.carry(clients.boto)
        self.plain_ranges = self.plain_ranges or is_plain(clients.url)
        return clients

    # One object

    async def get(self, key: str, *, span: Span | None = None, version: str | None = None) -> Blob:
        """The object, or the bytes `span` of it. Conflict where it is not of `version`."""
        by_obstore, by_plain = functools.partial(get, key=key, span=span, version=version), None
        if span is not None:
            by_plain = functools.partial(self._plain.get, target=self.target(key), span=span, version=version)
        read = functools.partial(self._read_range, key, by_obstore, by_plain)
        try:
            blob = await read()
        except NotText:
            found = await self.stat(key)
            if not found.size:
                return Blob.of(found, memoryview(b""))
            return await self.get(key, span=(0, found.size), version=found.version if version is None else version)
        if await self._is_spoiled(blob):
            again = await read()
            # Read the same twice it is what the server has, whatever its ETag means (that of SSE-KMS looks like an
            # MD5).
            if again.view != blob.view:
                self.counts["spoiled answers"] += 1
                if await self._is_spoiled(again):
                    raise Unavailable(key, "the content does not have the MD5 that is its ETag")
            blob = again
        self.counts["bytes read"] += len(blob.view)
        return blob

    async def stream(self, key: str, span: Span, version: str | None) -> AsyncGenerator[memoryview]:
        """The bytes `span`, or those of them that there are, in one request and pieces of PIECE bytes. What has come is
        whole and of `version` whatever fails later; then nothing is tried again."""
        by_obstore = functools.partial(begin, key=key, span=span, version=version, buffers=self._buffers)
        by_plain = functools.partial(self._plain.begin, target=self.target(key), span=span, version=version)
        stream: Incoming | Chunks | None = await self._read_range(key, by_obstore, by_plain)
        if stream is None:
            return
        try:
            while stream.left:
                deadline = trio.current_time() + self.endpoint.read_patience
                piece = await self._attempt(key, functools.partial(stream.piece, PIECE), self.reads, deadline)
                self.counts["bytes read"] += len(piece)
                yield piece
        finally:
            stream.close()

    async def _read_range(
        self, key: str, by_obstore: Callable[[Clients], T], by_plain: Callable[[Clients], T] | None
    ) -> T:
        """By the sockets of our own where there is a way by them, and they are better or obstore refuses the answer."""
        if by_plain is None:
            return await self._read(key, by_obstore)
        if not self.plain_ranges:
            try:
                return await self._read(key, by_obstore)
            except NotText:
                log.debug("%s: by sockets of our own, as obstore refuses its metadata", key)
            except NotPartial:
                self.plain_ranges = True
                log.info("%s answers ranged reads with status 200, which obstore refuses", self.name)
        return await self._read(key, by_plain)

    async def _is_spoiled(self, blob: Blob) -> bool:
        """Whether a whole object's content contradicts its ETag, on a server whose ETags are MD5s."""
        if self._md5_etags is False or len(blob.view) != blob.size or not _MD5.fullmatch(blob.version):
            return False
        is_whole = await _md5(blob.view) == blob.version
        self._md5_etags = self._md5_etags or is_whole or None  # what differs may have come from elsewhere
        return not is_whole and self._md5_etags is not None

    async def stat(self, key: str) -> Found:
        try:
            return await self._read(key, functools.partial(stat, key=key))
        except FileNotFoundError:
            await self._confirm_bucket()
            raise

    async def _confirm_bucket(self) -> None:
        """An answer to HEAD has no body that could tell a missing object from a missing bucket."""
        await self.call(self.name, lambda clients: clients.boto.head_bucket(Bucket=self.name), reading=True, head=True)

    async def put(
        self, key: str, content: bytes | memoryview, attributes: Mapping[str, str], condition: Condition = ANY
    ) -> str:
        """Write the object in one request; its version. Conflict where `condition` does not hold."""
        put = Put(key, content, dict(attributes), condition)
        try:
            version = await self.call(key, functools.partial(self._put, put))
        except FileNotFoundError as e:
            raise Conflict(key) from e  # AWS, where the object that If-Match names is gone
        self.counts["bytes written"] += len(content)
        if self._md5_etags is None:
            self._md5_etags = await _md5(content) == version
        return version

    async def put_many(self, puts: Sequence[Put]) -> list[str]:
        """Write objects one after the other; the versions of the first of them, up to one that fails. Where that is the
        very first, it is tried again, and raises, as with `put`."""

        def request(clients: Clients) -> list[str]:
            versions: list[str] = []
            met = Met() if self.conditional else self._preconditions.met(clients, ((p.key, p.condition) for p in puts))
            end = time.monotonic() + MANY_END
            for put in puts:
                try:
                    versions.append(self._put(put, clients, is_met=put.key in met))
                except Exception:
                    if not versions:
                        raise
                    break
                reach("s3.many.one-written")
                if time.monotonic() > end:
                    break
            return versions

        versions = await self.call(puts[0].key, request)
        self.counts["requests"] += len(versions) - 1
        self.counts["bytes written"] += sum(len(put.content) for put in puts[: len(versions)])
        return versions

    def _put(self, put: Put, clients: Clients, *, is_met: bool = False) -> str:
        key, content, attributes, condition = put
        if not (self.conditional or is_met):
            # In the same thread: the way there and back costs more than the question.
            require(clients, key, condition)
        mode: PutMode = "overwrite" if condition is ANY else "create"
        if isinstance(condition, str):
            mode = {"e_tag": etag_of(condition)}
        result = clients.store.put(key, content, attributes=attributes, mode=mode, use_multipart=False)
        return version_of(result["e_tag"])

    async def delete(self, key: str, condition: Condition = ANY) -> None:
        """Delete the object if it is there. Conflict where `condition` does not hold."""
        extra: dict[str, Any] = {}
        try:
            if isinstance(condition, str):
                await self.check(key, condition, always=not self.conditional_deletes)
                extra = headers_of(condition) if self.conditional_deletes else {}
            await self.call(key, lambda clients: clients.boto.delete_object(**self.target(key), **extra))
        except FileNotFoundError:
            self.counts["deletes of absent objects"] += 1

    async def check(self, key: str, condition: Condition, *, always: bool = False) -> None:
        """Where the endpoint ignores conditions: ask first. It leaves a gap, but finds what happened before."""
        if condition is not ANY and (always or not self.conditional):
            await self._read(key, functools.partial(require, key=key, condition=condition))

    async def fetch(self, url: str, headers: Mapping[str, str], what: str) -> bytes:
        """The answer's body to a GET of a presigned URL; OSError where it is no success."""
        answer = await self._wire.send("GET", url, dict(headers))
        if answer.status_code == 200:
            return answer.content
        raise explain_answer(answer.status_code, answer.text, what)

    def target(self, key: str) -> dict[str, Any]:
        """The parameters that name `key` to boto3."""
        return {"Bucket": self.name, "Key": key, **self.payer()}

    def payer(self) -> dict[str, Any]:
        return {"RequestPayer": "requester"} if self.endpoint.requester_pays else {}

    def encryption(self) -> dict[str, Any]:
        """The parameters for boto3's writes that create an object."""
        found = {"ServerSideEncryption": self.endpoint.sse, "SSEKMSKeyId": self.endpoint.sse_kms_key_id}
        return {name: value for name, value in found.items() if value is not None}

    # The way of every request

    async def _read(self, what: str, request: Callable[[Clients], T]) -> T:
        return await self.call(what, request, reading=True)

    async def call(self, what: str, request: Callable[[Clients], T], *, reading: bool = False, head: bool = False) -> T:
        """Run `request` in a thread until it succeeds, fails for good, or patience ends; then an OSError.

        `head`: a 404 without a code is the bucket's.
        """
        patience = self.endpoint.read_patience if reading else self.endpoint.write_patience
        deadline = trio.current_time() + patience
        throttle = self.reads if reading else self.writes
        attempt, renewed = 0, False
        while True:
            clients = await self.clients()
            try:
                now = functools.partial(request, clients)
                answer = await self._attempt(what, now, throttle, deadline if reading else None)
                throttle.succeeded()
                self.counts["requests"] += 1
                return answer
            except OSError as e:
                failure = BucketMissing(what) if head and isinstance(e, FileNotFoundError) else e
            attempt += 1
            if isinstance(failure, AccessDenied) and not renewed:
                renewed = True
                if await self._renew(clients):
                    continue
            if not isinstance(failure, Unavailable):
                raise failure
            self.last_failure = str(failure)
            if failure.slow_down:
                throttle.slow_down()
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2**attempt) * random.uniform(0.5, 1)
            if trio.current_time() + delay >= deadline:
                self.counts["failures"] += 1
                raise failure
            self.counts["retries"] += 1
            self.counts["retried writes"] += not reading
            await trio.sleep(delay)

    async def _attempt(self, what: str, request: Callable[[], T], throttle: Throttle, deadline: float | None) -> T:
        with trio.CancelScope(deadline=float("inf") if deadline is None else deadline) as scope:
            try:
                return await trio.to_thread.run_sync(
                    request, limiter=throttle.limiter, abandon_on_cancel=deadline is not None
                )
            except trio.Cancelled:
                raise
            except Exception as e:
                raise explain(e, what) from e
        if not scope.cancelled_caught:
            raise AssertionError("unreachable")
        raise Unavailable(what, f"no answer within {self.endpoint.read_patience:g} s")

    async def _renew(self, used: Clients) -> bool:
        """Look for credentials anew after a refusal; whether there are others than those that were `used`."""
        async with self._connecting:
            if self._clients is not used:
                return True
            if trio.current_time() - self._renewed_at < RENEWAL_PAUSE:
                return False
            self._renewed_at = trio.current_time()
            fresh = await self._connect()
            if fresh.credentials == used.credentials:
                return False
            self._clients = fresh
            self.counts["credentials rotated"] += 1
            return True
