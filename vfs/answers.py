"""Answers: what callbacks said about files and their content, checked.

A wrong type is EIO, with a log line that names the callback and the path, never a surprise further in. `Persistence`
is who asks."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeGuard

from vfs import listing
from vfs.call import Caller
from vfs.callbacks import PIECE, Context
from vfs.fileref import FileRef
from vfs.listing import UNKNOWN_SIZE
from vfs.metadata import normalised, plain

__all__ = ["Answers", "is_sequence"]


class Answers:
    """Of the callbacks that `caller` calls."""

    def __init__(self, caller: Caller) -> None:
        self.name = caller.name
        self._bad = caller.bad_answer

    def content(self, callback: str, path: str, answer: object) -> bytes:
        if isinstance(answer, bytes):
            return answer
        if isinstance(answer, bytearray | memoryview):
            return bytes(answer)
        raise self._bad(callback, path, "bytes", answer)

    def view(self, callback: str, path: str, answer: object, most: int) -> bytes | memoryview:
        """At most so many bytes; not copied where nobody changes them."""
        content = answer if _is_still(answer) else self.content(callback, path, answer)
        if len(content) > most:
            raise self._bad(callback, path, f"at most {most} bytes", content)
        return content

    async def pieces(
        self, callback: str, path: str, answers: AsyncIterable[Any], most: int
    ) -> AsyncGenerator[bytes | memoryview]:
        """At most so many bytes that come in pieces of any size, in pieces of PIECE bytes; what comes so is not
        copied."""
        rest, left = bytearray(), most
        async for answer in answers:
            view = memoryview(self.view(callback, path, answer, most))
            left -= len(view)
            if left < 0:
                raise self._bad(callback, path, f"at most {most} bytes in all", answer)
            while len(rest) + len(view) >= PIECE:
                cut = PIECE - len(rest)
                yield bytes(rest + view[:cut]) if rest else view[:cut]
                rest.clear()
                view = view[cut:]
            if view and not rest and left == 0:
                yield view
            else:
                rest += view
        if rest:
            yield bytes(rest)

    def version(self, callback: str, version: object) -> str:
        """Of an image."""
        if isinstance(version, str):
            with contextlib.suppress(ValueError):
                return plain(version)
        raise self._bad(callback, "/", "a version (text)", version)

    def ref(self, callback: str, path: str, ref: FileRef) -> FileRef:
        try:
            return listing.sound(ref, path, f"{self.name}: {callback}")
        except ValueError as e:
            raise self._bad(callback, path, f"a sound FileRef ({e})", ref) from None

    def outcome(self, callback: str, path: str, answer: object, context: Context) -> FileRef:
        """What the callback said about a file that it wrote, completed by what we know."""
        if isinstance(answer, FileRef):
            return self.ref(callback, path, answer)
        if not (answer is None or isinstance(answer, Mapping)):
            raise self._bad(callback, path, "metadata (a mapping), FileRef or None", answer)
        metadata = normalised(answer or {}, f"{self.name}: {callback}({path!r})")
        return FileRef(
            path=path,
            size=context.get("size", UNKNOWN_SIZE),
            content_type=context.get("content_type"),
            checksum=context.get("checksum"),
            created_at=datetime.now(UTC),
            version=metadata.get("version"),
            mtime_ns=context.get("mtime_ns"),
            mode=context.get("mode"),
            metadata=metadata,
        )


def is_sequence(answer: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(answer, Sequence) and not isinstance(answer, str | bytes)


def _is_still(answer: object) -> TypeGuard[memoryview]:
    return isinstance(answer, memoryview) and answer.readonly and answer.format == "B" and answer.c_contiguous
