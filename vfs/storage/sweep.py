"""Sweep: remove everything under a prefix: objects, their versions and delete markers, and unfinished uploads.

In bulk, 1,000 keys a request. What could not be removed is collected and raised at the end, after all else was tried.
What is ours goes last, so that an interrupted sweep still looks like a session and can be swept again."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import trio

from vfs.storage.bucket import Bucket
from vfs.storage.endpoint import Clients
from vfs.storage.failures import AccessDenied, BucketMissing, CleanupIncomplete, Refused
from vfs.storage.pages import pages

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import (
        ListMultipartUploadsOutputTypeDef,
        ListObjectVersionsOutputTypeDef,
        ObjectIdentifierTypeDef,
    )

__all__ = ["sweep"]

BATCH = 1000
PARALLEL = 4


async def sweep(bucket: Bucket, prefix: str, own: str) -> int:
    """Remove all under `prefix`; how many objects and versions that were. CleanupIncomplete says what remains."""
    removed = 0
    hidden: list[str] = []
    while True:
        # Again until nothing is found: pages read while keys go may skip some, and others may still be writing.
        found, remaining = await _sweep_once(bucket, prefix, own, hidden)
        removed += found - len(remaining)
        if found == len(remaining):
            break
    removed -= len(hidden)
    remaining += hidden
    remaining += await _abort_uploads(bucket, prefix)
    if remaining:
        raise CleanupIncomplete(f"{bucket.name}/{prefix}", remaining)
    return removed


async def _sweep_once(bucket: Bucket, prefix: str, own: str, hidden: list[str]) -> tuple[int, list[str]]:
    """Remove what is listed now; how many that were, and which could not be removed. What remains as older versions,
    which no listing will show again, is added to what is `hidden`."""
    remaining: list[str] = []
    count = 0
    last: list[ObjectIdentifierTypeDef] = []
    slots = trio.CapacityLimiter(PARALLEL)

    async def remove(batch: Sequence[ObjectIdentifierTypeDef]) -> None:
        async with slots:
            remaining.extend(await _remove(bucket, batch, hidden))

    async with trio.open_nursery() as nursery:
        async for found in _versions(bucket, prefix):
            count += len(found)
            last += [one for one in found if one["Key"].startswith(own)]
            if batch := [one for one in found if not one["Key"].startswith(own)]:
                nursery.start_soon(remove, batch)
    for start in range(0, len(last), BATCH):
        remaining.extend(await _remove(bucket, last[start : start + BATCH], hidden))
    return count, remaining


async def _versions(bucket: Bucket, prefix: str) -> AsyncIterator[list[ObjectIdentifierTypeDef]]:
    """Every version and delete marker; plain keys from servers that know no versions."""
    position: dict[str, str] = {}
    while True:
        try:
            page = await bucket.call(
                prefix,
                functools.partial(_version_page, bucket, prefix, dict(position)),
                reading=True,
            )
        except BucketMissing:
            raise
        except (Refused, AccessDenied, FileNotFoundError):
            break
        yield [
            {"Key": one["Key"], "VersionId": one["VersionId"]} if "VersionId" in one else {"Key": one["Key"]}
            for one in (*page.get("Versions", ()), *page.get("DeleteMarkers", ()))
        ]
        if not page.get("IsTruncated"):
            return
        position = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page.get("NextVersionIdMarker", "")}
    async for entries in pages(bucket, prefix):
        yield [{"Key": entry.key} for entry in entries]


def _version_page(
    bucket: Bucket, prefix: str, position: dict[str, Any], clients: Clients
) -> ListObjectVersionsOutputTypeDef:
    return clients.boto.list_object_versions(Bucket=bucket.name, Prefix=prefix, **position, **bucket.payer())


async def _remove(bucket: Bucket, batch: Sequence[ObjectIdentifierTypeDef], hidden: list[str]) -> list[str]:
    """Remove a batch; what could not be removed, and why."""
    quiet = all("VersionId" in one for one in batch)
    what = f"{bucket.name} ({len(batch)} objects)"
    try:
        answer = await bucket.call(
            what,
            lambda clients: clients.boto.delete_objects(
                Bucket=bucket.name, Delete={"Objects": list(batch), "Quiet": quiet}, **bucket.payer()
            ),
        )
    except OSError:
        return [failure for one in batch if (failure := await _remove_one(bucket, one, hidden)) is not None]
    deleted = answer.get("Deleted", ())
    hidden += [_hidden(one["Key"]) for one in deleted if one.get("DeleteMarker") and not one.get("VersionId")]
    return [f"{one.get('Key')}: {one.get('Code')} {one.get('Message', '')}" for one in answer.get("Errors", ())]


def _hidden(key: str) -> str:
    """Of a key that was asked to be deleted, and got a delete marker."""
    return f"{key}: its older versions could not be listed, and remain"


async def _remove_one(bucket: Bucket, one: ObjectIdentifierTypeDef, hidden: list[str]) -> str | None:
    """Alone, where the batch was refused as a whole: XML cannot spell every key, and some servers know no batches."""
    version: dict[str, Any] = {"VersionId": one["VersionId"]} if "VersionId" in one else {}
    try:
        answer = await bucket.call(
            one["Key"], lambda clients: clients.boto.delete_object(**bucket.target(one["Key"]), **version)
        )
    except FileNotFoundError:
        return None
    except OSError as e:
        return f"{one['Key']}: {e.strerror}"
    if answer.get("DeleteMarker") and not version:
        hidden.append(_hidden(one["Key"]))
    return None


async def _abort_uploads(bucket: Bucket, prefix: str) -> list[str]:
    remaining: list[str] = []
    position: dict[str, str] = {}
    while True:
        try:
            page = await bucket.call(
                prefix,
                functools.partial(_upload_page, bucket, prefix, dict(position)),
                reading=True,
            )
        except (Refused, FileNotFoundError):
            return remaining  # a server that does not list uploads keeps none that could be found
        except OSError as e:
            return [*remaining, f"{prefix} (unfinished uploads, which could not be listed): {e.strerror}"]
        for one in page.get("Uploads", ()):
            # Some servers ignore the prefix here (moto does): another session's upload is not ours to abort.
            if one["Key"].startswith(prefix) and (failure := await _abort(bucket, one["Key"], one["UploadId"])):
                remaining.append(failure)
        if not page.get("IsTruncated"):
            return remaining
        position = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _upload_page(
    bucket: Bucket, prefix: str, position: dict[str, Any], clients: Clients
) -> ListMultipartUploadsOutputTypeDef:
    return clients.boto.list_multipart_uploads(Bucket=bucket.name, Prefix=prefix, **position, **bucket.payer())


async def _abort(bucket: Bucket, key: str, upload_id: str) -> str | None:
    try:
        await bucket.call(
            key, lambda clients: clients.boto.abort_multipart_upload(**bucket.target(key), UploadId=upload_id)
        )
    except FileNotFoundError:
        return None
    except OSError as e:
        return f"{key} (unfinished upload): {e.strerror}"
    return None
