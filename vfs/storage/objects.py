"""Objects: a session's files as objects, by relative path.

What `Bucket` does with keys this does with paths and contexts: listing with what cannot be a file set apart, ranged
reads of one version, writes of any size, moves on the server. `S3Storage` is the one caller.

Every write carries a condition where the caller names a version. A refused one is looked at before it is called a
conflict: if the object's content is what we wanted to write, an earlier try arrived and its answer was lost (a reset,
a crash), and the write is done."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import BinaryIO
from urllib.parse import quote

import trio

from vfs.callbacks import Context
from vfs.errors import Conflict
from vfs.failpoints import reach
from vfs.fileref import FileRef, compute_checksum, guess_content_type
from vfs.storage.base import FileRefs
from vfs.storage.bucket import (
    ANY,
    HASHED_IN_PLACE,
    Blob,
    Bucket,
    Condition,
    Found,
    Put,
    etag_of,
    headers_of,
    version_of,
)
from vfs.storage.endpoint import Clients
from vfs.storage.failures import Refused, Unavailable
from vfs.storage.keys import Keys, Misfit, directories_of, is_marker
from vfs.storage.metadata import attributes_of, parse
from vfs.storage.multipart import COPY_AT_ONCE, PART, Source, copy_in_parts, upload
from vfs.storage.pages import Entry, each_page

__all__ = ["Listing", "Objects"]

AT_ONCE = 2 * PART
COMPARED_AT_ONCE = 8 << 20


@dataclass(slots=True)
class Listing:
    """What is under a session's prefix."""

    files: list[FileRef] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)  # of which an empty object `dir/` says that they are there
    misfits: list[Misfit] = field(default_factory=list)
    has_own: bool = False  # whether something of the session's own is there: the image, the lease


class Objects:
    """The files of one session."""

    def __init__(self, bucket: Bucket, keys: Keys) -> None:
        self.bucket = bucket
        self.keys = keys
        self._base: str | None = None

    async def list(self) -> Listing:
        """All files. A key that cannot be a file's, or that other keys need as a directory, is a misfit."""
        found = Listing()
        base = await self._url_base()
        await each_page(self.bucket, self.keys.prefix, lambda page: self._sort(page, found, base))
        directories = directories_of(ref.path for ref in found.files) | set(found.directories)
        if any(ref.path in directories for ref in found.files):
            found.misfits += [
                Misfit(self.keys.key_of(ref.path), "is a directory of other keys")
                for ref in found.files
                if ref.path in directories
            ]
            found.files = [ref for ref in found.files if ref.path not in directories]
        return found

    def _sort(self, page: Sequence[Entry], found: Listing, base: str) -> None:
        for entry in page:
            path = self.keys.path_of(entry.key)
            if path is None:
                found.has_own = found.has_own or entry.key.startswith(self.keys.own)
                continue
            if isinstance(path, Misfit):
                found.misfits.append(path)
            elif is_marker(entry.key, entry.size):
                found.directories.append(path)
            elif entry.key.endswith("/"):
                found.misfits.append(Misfit(entry.key, "ends with a slash, and is not empty"))
            else:
                found.files.append(
                    FileRef(
                        path=path,
                        size=entry.size,
                        content_type=guess_content_type(path),
                        storage_url=base + quote(entry.key),
                        created_at=entry.modified,
                        version=entry.version,
                    )
                )

    async def stat(self, path: str) -> FileRef:
        """The file as its object's metadata tells it."""
        return await self._ref(path, await self.bucket.stat(self.keys.key_of(path)))

    async def read(self, path: str, version: str | None = None) -> Blob:
        return await self.bucket.get(self.keys.key_of(path), version=version)

    async def read_range(self, path: str, offset: int, size: int, version: str | None = None) -> Blob:
        """Up to `size` bytes from `offset`; fewer only at the end. Conflict where the object is not of `version`."""
        return await self.bucket.get(self.keys.key_of(path), span=(offset, offset + size), version=version)

    def read_stream(self, path: str, offset: int, size: int, version: str | None) -> AsyncGenerator[memoryview]:
        """As `read_range`, in one request and many pieces."""
        return self.bucket.stream(self.keys.key_of(path), (offset, offset + size), version)

    async def write(self, path: str, content: bytes, context: Context) -> FileRef:
        """Create or replace the object."""
        return await self._write(path, Source(io.BytesIO(content)), content, context)

    async def write_file(self, path: str, file: BinaryIO, context: Context) -> FileRef:
        """Create or replace the object from a seekable file, in bounded memory."""
        source = await trio.to_thread.run_sync(Source, file)
        return await self._write(path, source, None, context)

    async def write_many(self, writes: Sequence[tuple[str, bytes, Context]]) -> FileRefs:
        """Write small objects, one after the other in one thread: where each had a task and a thread of its own, these
        would cost more than the requests. Answers for the first of them, as many as were written."""
        reach("s3.write.before")
        puts = [
            Put(self.keys.key_of(path), content, attributes_of(path, context), context.get("if_version", ANY))
            for path, content, context in writes
        ]
        async with self.bucket.memory.hold(sum(len(put.content) for put in puts)):
            versions = await self.bucket.put_many(puts)
        reach("s3.write.done")
        refs: FileRefs = []
        for (path, content, context), put, version in zip(writes, puts, versions, strict=False):
            found = Found(len(content), version, datetime.now(UTC), put.attributes)
            refs.append(await self._ref(path, found, context.get("checksum")))
        return refs

    async def _write(self, path: str, source: Source, content: bytes | None, context: Context) -> FileRef:
        key, condition = self.keys.key_of(path), context.get("if_version", ANY)
        attributes = attributes_of(path, context)
        checksum = context.get("checksum")
        reach("s3.write.before")
        try:
            if source.size > AT_ONCE:
                version = await upload(self.bucket, key, source, attributes, condition)
            else:
                async with self.bucket.memory.hold(source.size):
                    if content is None:
                        content = await trio.to_thread.run_sync(source.read, 0, source.size)
                    version = await self.bucket.put(key, content, attributes, condition)
                    checksum = checksum or await _checksum(content)
        except Conflict as e:
            version = await self._arrived_before(key, source, path, condition, e)
        reach("s3.write.done")
        found = Found(source.size, version, datetime.now(UTC), attributes)
        return await self._ref(path, found, checksum)

    async def _arrived_before(
        self, key: str, source: Source, path: str, condition: Condition, conflict: Conflict
    ) -> str:
        try:
            found = await self.bucket.stat(key)
        except FileNotFoundError:
            raise _refusal(path, None, condition) from conflict
        if found.size == source.size and await self._has_content(key, found, source):
            self.bucket.counts["writes that had arrived before"] += 1
            return found.version
        raise _refusal(path, found.version, condition) from conflict

    async def _has_content(self, key: str, found: Found, source: Source) -> bool:
        if source.size <= AT_ONCE:
            content = await trio.to_thread.run_sync(source.read, 0, source.size)
            if hashlib.md5(content, usedforsecurity=False).hexdigest() == found.version:
                return True

        async def read(offset: int, size: int) -> bytes:
            return await trio.to_thread.run_sync(source.read, offset, size)

        return await self._same_content(key, found, read)

    async def _same_content(
        self, key: str, found: Found, read: Callable[[int, int], Awaitable[bytes | memoryview]]
    ) -> bool:
        """Whether what is `found` at the key has the content that is `read`, of the same size."""
        for offset in range(0, found.size, COMPARED_AT_ONCE):
            size = min(COMPARED_AT_ONCE, found.size - offset)
            try:
                theirs = await self.bucket.get(key, span=(offset, offset + size), version=found.version)
            except (Conflict, FileNotFoundError):
                return False
            if theirs.view != await read(offset, size):
                return False
        return True

    async def delete(self, path: str, context: Context) -> None:
        """Delete the object; one that is not there counts as deleted."""
        reach("s3.delete.before")
        condition = context.get("if_version", ANY)
        try:
            await self.bucket.delete(self.keys.key_of(path), ANY if condition is None else condition)
        except Conflict as e:
            try:
                found = await self.bucket.stat(self.keys.key_of(path))
            except FileNotFoundError:
                return
            raise _refusal(path, found.version, condition) from e
        reach("s3.delete.done")

    async def move(self, old: str, new: str, context: Context) -> FileRef:
        """Copy on the server, then delete the old object. After a crash in between both are there, and it can be
        repeated."""
        source, target = self.keys.key_of(old), self.keys.key_of(new)
        wanted = context.get("if_version")
        try:
            found = await self.bucket.stat(source)
        except FileNotFoundError:
            return await self._moved_before(new, wanted)
        if wanted is not None and found.version != wanted:
            raise Conflict(old, found.version)
        reach("s3.move.before-copy")
        expected = context.get("if_target", ANY)
        try:
            version = await self._copy(source, target, found, expected)
        except Conflict as e:
            version = await self._copied_before(source, target, found, e)
        reach("s3.move.copied")
        await self.bucket.delete(source, found.version)
        reach("s3.move.deleted")
        return await self._ref(new, Found(found.size, version, datetime.now(UTC), found.metadata))

    async def _moved_before(self, new: str, wanted: str | None) -> FileRef:
        moved = await self.stat(new)
        if wanted is None or moved.version != wanted:
            raise FileNotFoundError(2, "no such object", new)
        return moved

    async def _copied_before(self, source: str, target: str, found: Found, conflict: Conflict) -> str:
        """A copy whose answer was lost meets itself when it is tried again."""

        async def read(offset: int, size: int) -> memoryview:
            return (await self.bucket.get(source, span=(offset, offset + size), version=found.version)).view

        with contextlib.suppress(FileNotFoundError, Conflict):
            there = await self.bucket.stat(target)
            if there.size == found.size and (
                there.version == found.version or await self._same_content(target, there, read)
            ):
                self.bucket.counts["writes that had arrived before"] += 1
                return there.version
        raise conflict

    async def _copy(self, source: str, target: str, found: Found, condition: Condition) -> str:
        """The copy's version. Conflict where the source has changed, or the target is not what `condition` says."""
        if found.size > COPY_AT_ONCE:
            attributes = {"Content-Type": "application/octet-stream", **found.metadata}
            return await copy_in_parts(self.bucket, source, target, found.size, attributes, found.version, condition)

        def copy(clients: Clients, condition: Condition = condition) -> str:
            answer = clients.boto.copy_object(
                **self.bucket.target(target),
                CopySource={"Bucket": self.bucket.name, "Key": source},
                CopySourceIfMatch=etag_of(found.version),
                MetadataDirective="COPY",
                **self.bucket.encryption(),
                **headers_of(condition),
            )
            return version_of(answer["CopyObjectResult"]["ETag"])

        try:
            return await self.bucket.call(target, copy)
        except Refused:
            if condition is ANY:
                raise
            # A server that knows no conditions on a copy's target.
            return await self.bucket.call(target, functools.partial(copy, condition=ANY))

    async def url(self, path: str) -> str:
        """Where the object is, for someone who may read it."""
        return await self._url_base() + quote(self.keys.key_of(path))

    async def presigned_url(self, path: str, *, expires: int = 3600, method: str = "get_object") -> str:
        """A URL that lets anyone who has it read (`get_object`) or write (`put_object`) the object for `expires`
        seconds."""
        clients = await self.bucket.clients()
        make: Callable[..., str] = clients.boto.generate_presigned_url
        parameters = self.bucket.target(self.keys.key_of(path))
        return await trio.to_thread.run_sync(lambda: make(method, Params=parameters, ExpiresIn=expires))

    async def _url_base(self) -> str:
        if self._base is None:
            self._base = f"{(await self.bucket.clients()).url.rstrip('/')}/{self.bucket.name}/"
        return self._base

    async def _ref(self, path: str, found: Found, checksum: str | None = None) -> FileRef:
        attributes = parse(found.metadata)
        return FileRef(
            path=path,
            size=found.size,
            content_type=found.metadata.get("Content-Type") or guess_content_type(path),
            checksum=checksum,
            storage_url=await self.url(path),
            created_at=found.modified,
            version=found.version,
            mtime_ns=attributes.mtime_ns,
            mode=attributes.mode,
            metadata=attributes.rest,
        )


def _refusal(path: str, found: str | None, condition: Condition) -> OSError:
    """What a refused request failed for. Where its condition holds nobody has changed anything: no conflict."""
    if found == condition:
        return Unavailable(path, "refused, though it is the version that was expected")
    return Conflict(path, found)


async def _checksum(content: bytes) -> str:
    if len(content) <= HASHED_IN_PLACE:
        return compute_checksum(content)
    return await trio.to_thread.run_sync(compute_checksum, content)
