"""Read-ahead: how far beyond a read content is fetched, file by file.

It grows with each read that goes on where the last one ended, and is nothing for the others: a random read of 4 KiB
fetches its block and no more. More is asked for when a quarter of what was asked for is used up, so that requests are
large and several are under way while a reader goes through them. Beyond 64 MiB it is no more than what was read.
"""

from __future__ import annotations

from collections.abc import Callable

from vfs.blockmap import BLOCK

__all__ = ["MUCH", "ReadAhead"]

FIRST, MUCH = 4, 256  # blocks: 1 MiB, doubled up to 64 MiB


class _Stream:
    __slots__ = ("asked", "began", "expected", "window")

    def __init__(self) -> None:
        self.began = 0
        self.expected = -1
        self.window = 0
        self.asked = 0


class ReadAhead:
    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}

    def wanted(self, ino: int, offset: int, end: int, most: Callable[[], int]) -> tuple[int, int] | None:
        """The blocks (first, end) to fetch ahead, `most` of them, now that the bytes from `offset` to `end` are read;
        None: none, as for most reads, for which `most` is not asked."""
        stream = self._streams.get(ino)
        if stream is None:
            stream = self._streams[ino] = _Stream()
        sequential = offset == stream.expected
        stream.expected = end
        if not sequential:
            stream.began, stream.window, stream.asked = offset, 0, 0
            return None
        at = -(-end // BLOCK)
        if stream.asked - at > stream.window - stream.window // 4:
            return None
        read = (end - stream.began) // BLOCK
        stream.window = min(most(), max(MUCH, read), max(FIRST, 2 * stream.window))
        first = max(at, stream.asked)
        stream.asked = at + stream.window
        return first, stream.asked

    def forget(self, ino: int) -> None:
        self._streams.pop(ino, None)
