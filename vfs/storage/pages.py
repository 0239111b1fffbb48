"""Pages: a bucket's listing, 1,000 keys at a time.

boto3 parses a page of 1,000 keys in 54 ms, with the GIL; expat does in 4 (measured, 50,000 keys: 2.7 s against 0.22
s). obstore's listing is faster still, but fails as a whole on a key with an empty segment and shows the marker `dir/`
as a file `dir`. So boto3 signs the request and the answer is parsed here. Keys come percent-encoded, for XML cannot
spell all of them."""

from __future__ import annotations

import functools
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

import trio

from vfs.storage.bucket import Bucket, version_of
from vfs.storage.endpoint import Clients
from vfs.storage.failures import Refused, Unavailable

__all__ = ["Entry", "pages"]

SIGNATURE_LIVES = 900


class Entry(NamedTuple):
    """One listed key."""

    key: str
    size: int
    version: str
    modified: datetime


async def pages(bucket: Bucket, prefix: str) -> AsyncIterator[list[Entry]]:
    """All keys that begin with `prefix`, in the server's order, a page at a time."""
    parameters: dict[str, Any] = {"Bucket": bucket.name, "Prefix": prefix, "EncodingType": "url"}
    if bucket.endpoint.requester_pays:
        parameters["RequestPayer"] = "requester"
    token: str | None = ""
    while token is not None:
        entries, token = await bucket.call(prefix, functools.partial(_page, bucket, dict(parameters)), reading=True)
        yield entries
        if token is not None:
            parameters["ContinuationToken"] = token


def _page(bucket: Bucket, parameters: dict[str, Any], clients: Clients) -> tuple[list[Entry], str | None]:
    url = clients.boto.generate_presigned_url("list_objects_v2", Params=parameters, ExpiresIn=SIGNATURE_LIVES)
    headers = {"x-amz-request-payer": "requester"} if bucket.endpoint.requester_pays else {}
    body = trio.from_thread.run(bucket.fetch, url, headers, parameters["Prefix"])
    try:
        return parse(body, parameters["Prefix"])
    except ET.ParseError as e:
        raise Unavailable(parameters["Prefix"], f"the listing is no XML: {e}") from e


def parse(body: bytes, prefix: str) -> tuple[list[Entry], str | None]:
    """A ListObjectsV2 answer's entries, and the token of the page after it."""
    root = ET.fromstring(body)
    namespace = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    if root.tag != f"{namespace}ListBucketResult":
        raise Unavailable(prefix, f"the listing is a {root.tag}")
    plain = root.findtext(f"{namespace}EncodingType") != "url"
    names = [f"{namespace}{name}" for name in ("Key", "Size", "ETag", "LastModified")]
    entries: list[Entry] = []
    for contents in root.iter(f"{namespace}Contents"):
        key, size, etag, modified = (contents.findtext(name, "") for name in names)
        entries.append(Entry(key if plain else unquote_plus(key), int(size), version_of(etag), _time(modified)))
    if root.findtext(f"{namespace}IsTruncated") != "true":
        return entries, None
    token = root.findtext(f"{namespace}NextContinuationToken")
    if not token:
        raise Refused(prefix, "a truncated listing came without a continuation token")
    return entries, token


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
