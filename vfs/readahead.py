"""Read-ahead: how far beyond a read content is fetched, file by file.

It grows with each read that goes on where the last one ended, and is nothing for the others: a random read of 4 KiB
fetches its block and no more. More is asked for when a quarter of what was asked for is used up, so that requests are
large and several are under way while a reader goes through them.
"""

from __future__ import annotations

from vfs.blockmap import BLOCK

__all__ = ["ReadAhead"]

FIRST, MOST = 4, 256  # blocks: 1 MiB, doubled up to 64 MiB


class _Stream:
    __slots__ = ("asked", "expected", "window")

    def __init__(self) -> None:
        self.expected = -1
        self.window = 0
        self.asked = 0


class ReadAhead:
    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}

    def wanted(self, ino: int, offset: int, end: int) -> tuple[int, int] | None:
        """The blocks (first, end) to fetch ahead now that the bytes from `offset` to `end` are read; None: none."""
        stream = self._streams.get(ino)
        if stream is None:
            stream = self._streams[ino] = _Stream()
        sequential = offset == stream.expected
        stream.expected = end
        if not sequential:
            stream.window = stream.asked = 0
            return None
        at = -(-end // BLOCK)
        if stream.asked - at > stream.window - stream.window // 4:
            return None
        stream.window = min(MOST, max(FIRST, 2 * stream.window))
        first = max(at, stream.asked)
        stream.asked = at + stream.window
        return first, stream.asked

    def forget(self, ino: int) -> None:
        self._streams.pop(ino, None)
