"""Image: the object that says what single objects cannot: directories, links, owners, xattrs.

It is `.mount-session/image` under the session's prefix, replaced as a whole, each time on the condition that it still
is the one that was read or written last. A frame before the content carries the epoch of the lease under which it was
written: two equal contents of different epochs have different ETags, so `fence` is enough to make a former holder's
next save fail."""

from __future__ import annotations

import struct
from typing import Final

from vfs.errors import Conflict
from vfs.failpoints import reach
from vfs.storage.bucket import ANY, Blob, Bucket, Condition
from vfs.storage.failures import Refused

__all__ = ["Image"]

MAGIC: Final = b"MSIMAGE1"
_FRAME: Final = struct.Struct("<8sQ")
ATTRIBUTES: Final = {"Content-Type": "application/x-mount-session-image"}


class Image:
    """The image under one prefix. `epoch` is written with each save."""

    def __init__(self, bucket: Bucket, own: str) -> None:
        self.key = f"{own}image"
        self.epoch = 0
        self._bucket = bucket

    async def load(self) -> tuple[bytes, str] | None:
        """The content that was saved last and its version; None if nothing was, ever."""
        blob = await self._read()
        if blob is None or len(blob.content) == _FRAME.size:
            return None
        return blob.content[_FRAME.size :], blob.version

    async def save(self, content: bytes, condition: Condition = ANY) -> str:
        """Replace the content; the new version. Conflict where another has saved, or has fenced us."""
        reach("s3.image.before-save")
        version = await self._write(content, await self._resolve(condition))
        reach("s3.image.saved")
        return version

    async def fence(self, epoch: int) -> None:
        """Take over: whoever loaded or saved the image before can save no more."""
        self.epoch = epoch
        if await self._is_ours():
            return
        blob = await self._read()
        if blob is None:
            await self._write(b"", None)
        else:
            await self._write(blob.content[_FRAME.size :], blob.version)

    async def _is_ours(self) -> bool:
        """Whether what is there was written under this very epoch: by an earlier process of the same holder."""
        try:
            frame = await self._bucket.get(self.key, span=(0, _FRAME.size))
        except FileNotFoundError:
            return False
        return frame.content == _FRAME.pack(MAGIC, self.epoch)

    async def _resolve(self, condition: Condition) -> Condition:
        """A first save expects nothing; what `fence` left of our own epoch counts as nothing."""
        if condition is not None or self.epoch == 0:
            return condition
        blob = await self._read()
        ours = blob is not None and blob.content == _FRAME.pack(MAGIC, self.epoch)
        return blob.version if blob is not None and ours else None

    async def _read(self) -> Blob | None:
        try:
            blob = await self._bucket.get(self.key)
        except FileNotFoundError:
            return None
        if len(blob.content) < _FRAME.size or blob.content[:8] != MAGIC:
            raise Refused(self.key, "this is not an image of mount-session")
        return blob

    async def _write(self, content: bytes, condition: Condition) -> str:
        framed = _FRAME.pack(MAGIC, self.epoch) + content
        try:
            return await self._bucket.put(self.key, framed, ATTRIBUTES, condition)
        except Conflict:
            # The answer to an earlier try of the very same write may have been lost.
            blob = await self._read()
            if blob is not None and blob.content == framed:
                return blob.version
            raise
