"""Fresh bytes: what was just fetched, kept in memory for the reader that it was fetched for.

They are in the backing file too; reading them there again would cost a copy for each request. A generation of a file
has one content, so bytes kept for a generation are right as long as the file is of it, whatever is evicted or fetched
anew. A span goes when it has been read to its end, when the file is closed, or when there is too much: then what is
furthest ahead in the file that is here longest.
"""

from __future__ import annotations

from vfs.inode import Inode

__all__ = ["Fresh"]

MOST = 96 << 20  # bytes


class _Span:
    __slots__ = ("end", "generation", "start", "view")

    def __init__(self, generation: int, start: int, view: memoryview) -> None:
        self.generation = generation
        self.start = start
        self.end = start + len(view)
        self.view = view


class Fresh:
    def __init__(self) -> None:
        self.bytes = 0
        self._spans: dict[int, list[_Span]] = {}

    def keep(self, inode: Inode, generation: int, start: int, content: bytes | memoryview) -> None:
        self._spans.setdefault(inode.ino, []).append(_Span(generation, start, memoryview(content)))
        self.bytes += len(content)
        while self.bytes > MOST:
            oldest = next(iter(self._spans))
            self._drop(oldest, max(self._spans[oldest], key=lambda span: span.start))

    def has(self, inode: Inode, offset: int, end: int) -> bool:
        return bool(self._covering(inode, offset, end))

    def read(self, inode: Inode, offset: int, size: int) -> bytes | memoryview | None:
        """The bytes, where all of them are here."""
        end = min(offset + size, inode.size)
        found = self._covering(inode, offset, end)
        views = [span.view[at - span.start : end - span.start] for span, at in found]
        for span, _ in found:
            if span.end <= end:
                self._drop(inode.ino, span)
        return None if not views else views[0] if len(views) == 1 else b"".join(views)

    def _covering(self, inode: Inode, at: int, end: int) -> list[tuple[_Span, int]]:
        """Spans that have the bytes together, and from where on each is needed; none where some bytes are missing.
        Spans may overlap: what was evicted is fetched again in other portions."""
        here = [span for span in self._spans.get(inode.ino, ()) if span.generation == inode.generation]
        found: list[tuple[_Span, int]] = []
        while at < end:
            span = next((span for span in here if span.start <= at < span.end), None)
            if span is None:
                return []
            found.append((span, at))
            at = span.end
        return found

    def forget(self, ino: int) -> None:
        if self._spans:
            self.bytes -= sum(len(span.view) for span in self._spans.pop(ino, ()))

    def _drop(self, ino: int, span: _Span) -> None:
        spans = self._spans[ino]
        spans.remove(span)
        self.bytes -= len(span.view)
        if not spans:
            del self._spans[ino]
