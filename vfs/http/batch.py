"""A batch on its way in: one body that holds many changes, each a line of JSON and then its content.

Contents go to temporary files as they come, so a batch of large files needs no memory. ValueError says what in the
body is not in the format; nothing has been called then.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import BinaryIO, cast

import msgspec
import trio

from vfs import listing
from vfs.callbacks import Change, Context
from vfs.http import wire

__all__ = ["IN_MEMORY", "body_file", "parse_context", "read_batch"]

IN_MEMORY = 1 << 20  # bytes of a content, before it goes to a file
LINE_MAX = 64 << 10
CHANGES_MAX = 100_000


async def body_file(stream: AsyncIterator[bytes], files: ExitStack, limit: int) -> BinaryIO:
    """The body as a file at its beginning, closed with `files`. OverflowError above `limit` bytes."""
    file = _temporary(files)
    size = 0
    async for chunk in stream:
        size += len(chunk)
        if size > limit:
            raise OverflowError(f"more than {limit} bytes")
        await _append(file, chunk, size)
    file.seek(0)
    return file


async def read_batch(stream: AsyncIterator[bytes], files: ExitStack, limit: int) -> list[Change]:
    body = _Body(stream, limit)
    changes: list[Change] = []
    while (line := await body.line()) is not None:
        if len(changes) == CHANGES_MAX:
            raise ValueError(f"more than {CHANGES_MAX} changes")
        change = msgspec.json.decode(line, type=wire.ChangeLine)
        path = _path(change.path, change.path_base64)
        context = parse_context({**change.context, "operation": change.kind})
        match change.kind:
            case "write":
                file = _temporary(files)
                await body.content(file, change.size)
                changes.append(Change("write", path, context, file=file))
            case "move":
                changes.append(Change("move", path, context, source=_path(change.source, change.source_base64)))
            case "delete":
                changes.append(Change("delete", path, context))
    return changes


def parse_context(told: object) -> Context:
    """ValueError if it is no context. What this version does not know is left out."""
    return msgspec.convert({} if told is None else told, Context)


def _path(text: str | None, encoded: str | None) -> str:
    path = wire.path_from(text, encoded).removeprefix("/")
    listing.check_path(path)
    return path


class _Body:
    """A body that is read by lines and by lengths, in turn."""

    def __init__(self, stream: AsyncIterator[bytes], limit: int) -> None:
        self._stream = stream
        self._left = limit
        self._rest = b""

    async def line(self) -> bytes | None:
        """The next line; None at the end."""
        while b"\n" not in self._rest:
            if len(self._rest) > LINE_MAX:
                raise ValueError(f"a line of more than {LINE_MAX} bytes")
            if not await self._more():
                if self._rest:
                    raise ValueError("the body ends in the middle of a line")
                return None
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    async def content(self, file: BinaryIO, size: int) -> None:
        """The next `size` bytes, to `file`, which is left at its beginning."""
        written = 0
        while written < size:
            if not self._rest and not await self._more():
                raise ValueError(f"the body ends {size - written} bytes early")
            chunk, self._rest = self._rest[: size - written], self._rest[size - written :]
            written += len(chunk)
            await _append(file, chunk, written)
        file.seek(0)

    async def _more(self) -> bool:
        async for chunk in self._stream:
            if chunk:
                break
        else:
            return False
        self._left -= len(chunk)
        if self._left < 0:
            raise OverflowError("the batch is too large")
        self._rest += chunk
        return True


def _temporary(files: ExitStack) -> BinaryIO:
    return cast(BinaryIO, files.enter_context(tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)))


async def _append(file: BinaryIO, chunk: bytes, size: int) -> None:
    if size <= IN_MEMORY:  # still in memory: no thread is worth that
        file.write(chunk)
    else:
        await trio.to_thread.run_sync(file.write, chunk)
