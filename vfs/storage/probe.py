"""Probe: does this endpoint honour conditional writes, and conditional deletes?

Some S3-compatible servers accept If-Match and If-None-Match and ignore them (`rclone serve s3`, the JuiceFS gateway),
some on a DELETE only (MinIO). There a second writer cannot be stopped and conflicts are found only if they happened
before we asked; who runs such a server should know. Asked once for each endpoint and bucket in a process; not of AWS
and Tigris, whose documentation promises it."""

from __future__ import annotations

import logging
import secrets
from typing import NamedTuple

import trio

from vfs.errors import Conflict
from vfs.storage.bucket import Bucket
from vfs.storage.endpoint import is_known_conditional
from vfs.storage.failures import AccessDenied, Refused

__all__ = ["probe"]

log = logging.getLogger(__name__)


class _Honoured(NamedTuple):
    writes: bool
    deletes: bool


_answers: dict[tuple[str, str], _Honoured] = {}


async def probe(bucket: Bucket, own: str) -> None:
    """Find out, and set `bucket.conditional` and `bucket.conditional_deletes`. `own` is a prefix that an object may be
    made under."""
    url = (await bucket.clients()).url
    if (known := _answers.get((url, bucket.name))) is None:
        known = _Honoured(True, True) if is_known_conditional(url) else await _ask(bucket, own)
        _answers[url, bucket.name] = known
        if not known.writes:
            log.warning(
                "%s (bucket %s) ignores conditional writes: a second writer cannot be kept out, and what others "
                "write at the same moment may be overwritten",
                *(url, bucket.name),
            )
        elif not known.deletes:
            log.warning(
                "%s (bucket %s) knows no conditional deletes: what others write to a file at the moment when it is "
                "deleted or renamed here may be deleted",
                *(url, bucket.name),
            )
    bucket.conditional, bucket.conditional_deletes = known


async def _ask(bucket: Bucket, own: str) -> _Honoured:
    key = f"{own}probe-{secrets.token_hex(8)}"
    attributes = {"Content-Type": "text/plain"}
    version = await bucket.put(key, b"1", attributes)
    other = f"{version[:-1]}x"
    try:
        writes = await _refused(bucket, key, None) and await _refused(bucket, key, other)
        return _Honoured(writes, await _delete_refused(bucket, key, other))
    finally:
        with trio.CancelScope(shield=True):
            await _delete(bucket, key)


async def _delete(bucket: Bucket, key: str) -> None:
    try:
        await bucket.delete(key)
    except OSError as e:
        log.warning("%s: a probe was left behind: %s; cleanup removes it", bucket.name, e)


async def _refused(bucket: Bucket, key: str, condition: str | None) -> bool:
    try:
        await bucket.put(key, b"2", {"Content-Type": "text/plain"}, condition)
    except Conflict:
        return True
    return False


async def _delete_refused(bucket: Bucket, key: str, condition: str) -> bool:
    try:
        await bucket.delete(key, condition)
    except Conflict:
        return True
    except (Refused, AccessDenied):  # not for what is there: the header is not known, or nothing may be deleted
        return False
    return False
