"""Multipart: objects made of parts, by upload or by copy on the server, in bounded memory.

obstore uploads parts but cannot make completion conditional, so these go through boto3. An upload that does not
complete is aborted; one that a crash left behind is aborted by `vfs.storage.sweep`. Nobody sees anything of an upload
before its completion."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import trio

from vfs.errors import Conflict, error
from vfs.failpoints import reach
from vfs.storage.bucket import ANY, Bucket, Condition, etag_of, headers_of, version_of
from vfs.storage.failures import Unavailable

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import CompletedPartTypeDef

__all__ = ["COPY_AT_ONCE", "PART", "Source", "copy_in_parts", "upload"]

MIB = 1 << 20
PART = 8 * MIB
PARTS_MAX = 10_000  # docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
PARALLEL = 8
TRIES = 6  # of a part that a slow link does not carry in time; meanwhile the throttle lets fewer through at once
COPY_AT_ONCE = 512 * MIB  # S3 takes 5 GiB; but one request has one deadline, and a copy takes its time
COPY_PART = 64 * MIB
HEADERS = {
    "Content-Type": "ContentType",
    "Cache-Control": "CacheControl",
    "Content-Disposition": "ContentDisposition",
    "Content-Encoding": "ContentEncoding",
    "Content-Language": "ContentLanguage",
}
"""The attributes that are no user metadata, and boto3's names for them."""

Numbered = tuple[int, int, int]  # part number, offset, size


class Source:
    """A file that an upload reads by position, from several threads, in any order."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        try:
            self._descriptor: int | None = file.fileno()
        except (OSError, AttributeError):
            self._descriptor = None
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes; ESTALE if the file has become shorter."""
        content = self._read(offset, size)
        if len(content) != size:
            raise error(116, why="the file became shorter while it was uploaded")
        return content

    def _read(self, offset: int, size: int) -> bytes:
        if self._descriptor is None:
            with self._lock:
                self._file.seek(offset)
                return self._file.read(size)
        pieces: list[bytes] = []
        while size > 0 and (piece := os.pread(self._descriptor, size, offset)):
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return b"".join(pieces) if len(pieces) != 1 else pieces[0]


def cut(size: int, part: int) -> list[Numbered]:
    """`size` bytes as numbered parts of `part` bytes, or more where that would be too many parts."""
    part = max(part, -(-size // PARTS_MAX // MIB) * MIB, -(-size // PARTS_MAX))
    return [(number + 1, offset, min(part, size - offset)) for number, offset in enumerate(range(0, size, part))]


async def upload(
    bucket: Bucket,
    key: str,
    source: Source,
    attributes: Mapping[str, str],
    condition: Condition = ANY,
    part: int = PART,
) -> str:
    """Upload `source` as one object; its version. Conflict where `condition` does not hold at completion."""

    async def send(upload_id: str, numbered: Numbered) -> str:
        number, offset, size = numbered
        async with bucket.memory.hold(size):
            content = await trio.to_thread.run_sync(source.read, offset, size)
            for tries in range(1, TRIES + 1):
                try:
                    answer = await bucket.call(
                        key,
                        lambda clients: clients.boto.upload_part(
                            **bucket.target(key), UploadId=upload_id, PartNumber=number, Body=content
                        ),
                    )
                    break
                except Unavailable as e:
                    if tries == TRIES or not e.slow_down:
                        raise
        bucket.counts["bytes written"] += size
        return answer["ETag"]

    await bucket.check(key, condition, always=True)  # rather than after hours of uploading
    return await _assemble(bucket, key, cut(source.size, part), attributes, condition, send)


async def copy_in_parts(
    bucket: Bucket,
    old: str,
    new: str,
    size: int,
    attributes: Mapping[str, str],
    source_version: str,
    condition: Condition = ANY,
    part: int = COPY_PART,
) -> str:
    """Copy an object of any size on the server; the copy's version. Conflict where `condition`, which is about the
    new key, does not hold at completion."""

    async def send(upload_id: str, numbered: Numbered) -> str:
        number, offset, size = numbered
        answer = await bucket.call(
            new,
            lambda clients: clients.boto.upload_part_copy(
                **bucket.target(new),
                UploadId=upload_id,
                PartNumber=number,
                CopySource={"Bucket": bucket.name, "Key": old},
                CopySourceRange=f"bytes={offset}-{offset + size - 1}",
                CopySourceIfMatch=etag_of(source_version),
            ),
        )
        return answer["CopyPartResult"]["ETag"]

    return await _assemble(bucket, new, cut(size, part), attributes, condition, send)


async def _assemble(
    bucket: Bucket,
    key: str,
    parts: list[Numbered],
    attributes: Mapping[str, str],
    condition: Condition,
    send: Callable[[str, Numbered], Awaitable[str]],
) -> str:
    upload_id = await _create(bucket, key, attributes)
    try:
        reach("s3.multipart.created")
        etags = await _send_all(upload_id, parts, send)
        reach("s3.multipart.before-complete")
        version = await _complete(bucket, key, upload_id, parts, etags, condition)
    except BaseException:
        with trio.CancelScope(shield=True):
            await _abort(bucket, key, upload_id)
        raise
    reach("s3.multipart.completed")
    return version


async def _create(bucket: Bucket, key: str, attributes: Mapping[str, str]) -> str:
    headers: dict[str, Any] = {HEADERS[name]: value for name, value in attributes.items() if name in HEADERS}
    metadata = {name: value for name, value in attributes.items() if name not in HEADERS}
    answer = await bucket.call(
        key,
        lambda clients: clients.boto.create_multipart_upload(
            **bucket.target(key), **bucket.encryption(), **headers, Metadata=metadata
        ),
    )
    return answer["UploadId"]


async def _send_all(
    upload_id: str, parts: list[Numbered], send: Callable[[str, Numbered], Awaitable[str]]
) -> list[str]:
    etags = [""] * len(parts)
    failures: list[OSError] = []
    waiting = iter(parts)

    async def sender(cancel: trio.CancelScope) -> None:
        try:
            for part in waiting:
                etags[part[0] - 1] = await send(upload_id, part)
        except OSError as e:
            failures.append(e)
            cancel.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(min(PARALLEL, len(parts))):
            nursery.start_soon(sender, nursery.cancel_scope)
    if failures:
        raise failures[0]
    return etags


async def _complete(
    bucket: Bucket, key: str, upload_id: str, parts: list[Numbered], etags: list[str], condition: Condition
) -> str:
    listed: list[CompletedPartTypeDef] = [
        {"PartNumber": number, "ETag": etag} for (number, _, _), etag in zip(parts, etags, strict=True)
    ]
    # Some servers honour conditions on single writes and ignore them here (moto 5.2 does).
    await bucket.check(key, condition, always=True)
    try:
        answer = await bucket.call(
            key,
            lambda clients: clients.boto.complete_multipart_upload(
                **bucket.target(key), UploadId=upload_id, MultipartUpload={"Parts": listed}, **headers_of(condition)
            ),
        )
    except FileNotFoundError as e:
        # An answer that was lost: the upload is gone because it was completed, or the key that If-Match names is.
        raise Conflict(key) from e
    if not bucket.conditional:
        # Such a server may also answer with an ETag that it never says again (`rclone serve s3` does).
        return (await bucket.stat(key)).version
    return version_of(answer["ETag"])


async def _abort(bucket: Bucket, key: str, upload_id: str) -> None:
    try:
        await bucket.call(
            key, lambda clients: clients.boto.abort_multipart_upload(**bucket.target(key), UploadId=upload_id)
        )
    except OSError as e:
        # What it leaves costs space, not correctness; sweeping or a lifecycle rule removes it.
        bucket.counts["uploads left unaborted"] += 1
        bucket.last_failure = str(e)
