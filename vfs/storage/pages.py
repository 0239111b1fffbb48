"""Pages: a bucket's listing, 1,000 keys at a time.

boto3 parses a page of 1,000 keys in 54 ms, with the GIL; expat does in 4 (measured, 50,000 keys: 2.7 s against 0.22
s). obstore's listing is faster still, but fails as a whole on a key with an empty segment and shows the marker `dir/`
as a file `dir`. So boto3 signs the request and the answer is parsed here. Keys come percent-encoded, for XML cannot
spell all of them."""

from __future__ import annotations

import functools
import re
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import unquote_plus
from xml.sax.saxutils import unescape

import trio

from vfs.errors import single
from vfs.storage.bucket import Bucket, version_of
from vfs.storage.endpoint import Clients
from vfs.storage.failures import Refused, Unavailable

__all__ = ["Entry", "each_page", "pages"]

SIGNATURE_LIVES = 900
_END = re.compile(rb"</ListBucketResult>\s*$")
_TRUNCATED = re.compile(rb"<IsTruncated>\s*true\s*</IsTruncated>")
_TOKEN = re.compile(rb"<NextContinuationToken>([^<]+)</NextContinuationToken>")


class Entry(NamedTuple):
    """One listed key."""

    key: str
    size: int
    version: str
    modified: datetime


async def pages(bucket: Bucket, prefix: str) -> AsyncIterator[list[Entry]]:
    """All keys that begin with `prefix`, in the server's order, a page at a time."""
    token: str | None = ""
    while token is not None:
        body, token = await fetch(bucket, prefix, token)
        yield await trio.to_thread.run_sync(parse, body, prefix)


async def each_page(bucket: Bucket, prefix: str, take: Callable[[list[Entry]], None]) -> None:
    """`take` gets page after page, in a thread, while the next one is fetched."""
    send, receive = trio.open_memory_channel[bytes](1)

    async def fetch_all() -> None:
        token: str | None = ""
        async with send:
            while token is not None:
                body, token = await fetch(bucket, prefix, token)
                await send.send(body)

    def parse_and_take(body: bytes) -> None:
        take(parse(body, prefix))

    try:
        async with trio.open_nursery() as nursery, receive:
            nursery.start_soon(fetch_all)
            async for body in receive:
                await trio.to_thread.run_sync(parse_and_take, body)
    except BaseExceptionGroup as group:
        raise single(group) from None


async def fetch(bucket: Bucket, prefix: str, token: str) -> tuple[bytes, str | None]:
    """One page as it comes ("" is the first one's token), and the token of the page after it."""
    parameters: dict[str, Any] = {"Bucket": bucket.name, "Prefix": prefix, "EncodingType": "url", **bucket.payer()}
    if token:
        parameters["ContinuationToken"] = token
    return await bucket.call(prefix, functools.partial(_page, bucket, parameters), reading=True)


def _page(bucket: Bucket, parameters: dict[str, Any], clients: Clients) -> tuple[bytes, str | None]:
    url = clients.boto.generate_presigned_url("list_objects_v2", Params=parameters, ExpiresIn=SIGNATURE_LIVES)
    headers = {"x-amz-request-payer": "requester"} if bucket.endpoint.requester_pays else {}
    prefix: str = parameters["Prefix"]
    body = trio.from_thread.run(bucket.fetch, url, headers, prefix)
    return body, next_token(body, prefix)


def next_token(body: bytes, prefix: str) -> str | None:
    """What the next page is asked for with, found without parsing: it is asked for while this one is parsed."""
    if not _END.search(body):
        raise Unavailable(prefix, f"the listing is not one, or not whole: {body[:60]!r}")
    if not _TRUNCATED.search(body):
        return None
    if (token := _TOKEN.search(body)) is None:
        raise Refused(prefix, "a truncated listing came without a continuation token")
    return unescape(token[1].decode(), {"&quot;": '"', "&apos;": "'"})


def parse(body: bytes, prefix: str) -> list[Entry]:
    """A ListObjectsV2 answer's entries."""
    try:
        root = ET.fromstring(body)
    except ET.ParseError as e:
        raise Unavailable(prefix, f"the listing is no XML: {e}") from e
    namespace = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    if root.tag != f"{namespace}ListBucketResult":
        raise Unavailable(prefix, f"the listing is a {root.tag}")
    plain = root.findtext(f"{namespace}EncodingType") != "url"
    key, size, etag, modified = (f"{namespace}{name}" for name in ("Key", "Size", "ETag", "LastModified"))
    entries: list[Entry] = []
    now = datetime.now(UTC).isoformat()
    try:
        for contents in root.iter(f"{namespace}Contents"):
            said = {field.tag: field.text or "" for field in contents}
            name = said[key] if plain else unquote_plus(said[key])
            entries.append(Entry(name, int(said[size]), version_of(said.get(etag)), _time(said.get(modified, now))))
    except (KeyError, ValueError) as e:
        raise Refused(prefix, f"an entry of the listing lacks something, or says what cannot be: {e}") from e
    return entries


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
