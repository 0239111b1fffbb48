"""Probe: does this endpoint honour conditional writes?

Some S3-compatible servers accept If-Match and If-None-Match and ignore them (`rclone serve s3`, the JuiceFS gateway).
There a second writer cannot be stopped and conflicts are found only if they happened before we asked; who runs such a
server should know. Asked once for each endpoint and bucket in a process; not of AWS and Tigris, whose documentation
promises it."""

from __future__ import annotations

import logging
import secrets

import trio

from vfs.errors import Conflict
from vfs.storage.bucket import Bucket
from vfs.storage.endpoint import is_known_conditional

__all__ = ["probe"]

log = logging.getLogger(__name__)

_answers: dict[tuple[str, str], bool] = {}


async def probe(bucket: Bucket, own: str) -> bool:
    """Find out, and set `bucket.conditional`. `own` is a prefix that an object may be made under."""
    url = (await bucket.clients()).url
    if (known := _answers.get((url, bucket.name))) is None:
        known = _answers[url, bucket.name] = is_known_conditional(url) or await _ask(bucket, own)
        if not known:
            log.warning(
                "%s (bucket %s) ignores conditional writes: a second writer cannot be kept out, and what others "
                "write at the same moment may be overwritten",
                *(url, bucket.name),
            )
    bucket.conditional = known
    return known


async def _ask(bucket: Bucket, own: str) -> bool:
    key = f"{own}probe-{secrets.token_hex(8)}"
    attributes = {"Content-Type": "text/plain"}
    version = await bucket.put(key, b"1", attributes)
    try:
        return await _refused(bucket, key, None) and await _refused(bucket, key, f"{version[:-1]}x")
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
