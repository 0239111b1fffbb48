"""Remote: what the persistences are known to hold, path by path.

Part of the namespace: it changes only by applying records (`Stored`, `Removed` and what `refresh` finds), each appended
when a persistence has answered, so after a crash it says less than is there, never more. The difference between it and
the names of the namespace is what write-back has to do.

An attempt is an upload that began and whose answer is not known yet. If the persistence then holds something that we
did not expect, the attempts tell what of it is our own.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

__all__ = ["UNKNOWN_SIZE", "Attempt", "Entry", "Remote"]

UNKNOWN_SIZE = -1
ATTEMPTS = 16  # remembered for each path; a retry of the same content is the same attempt


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One file there: `generation` of inode `ino`, as `version`; `size` in bytes or UNKNOWN_SIZE."""

    ino: int
    generation: int
    version: str | None = None
    size: int = UNKNOWN_SIZE
    metadata: dict[str, str] | None = None


class Attempt(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`checksum` is the SHA-256 of what is being written; b"" for a move of `source`, whose content nobody read."""

    ino: int
    generation: int
    size: int
    checksum: bytes
    source: bytes = b""


class Remote:
    """Entries by path (relative, no leading slash), by inode, and by directory."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.attempts: dict[bytes, list[Attempt]] = {}
        self._paths: dict[int, list[bytes]] = {}
        self._below: dict[bytes, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, path: bytes) -> Entry | None:
        return self.entries.get(path)

    def put(self, path: bytes, entry: Entry) -> None:
        before = self.entries.get(path)
        if before is None:
            self._enter(path)
        elif before.ino != entry.ino:
            self._forget(before.ino, path)
        self.entries[path] = entry
        paths = self._paths.setdefault(entry.ino, [])
        if path not in paths:
            paths.append(path)
        self.attempts.pop(path, None)

    def remove(self, path: bytes) -> None:
        self.attempts.pop(path, None)
        before = self.entries.pop(path, None)
        if before is not None:
            self._forget(before.ino, path)
        self._leave(path)

    def attempt(self, path: bytes, attempt: Attempt) -> None:
        attempts = self.attempts.get(path)
        if attempts is None:
            attempts = self.attempts[path] = []
            self._enter(path)
        if attempt not in attempts:
            attempts.append(attempt)
            del attempts[:-ATTEMPTS]

    def paths(self, ino: int) -> list[bytes]:
        """Where content of the inode is held."""
        return self._paths.get(ino, [])

    def holding(self, ino: int, generation: int) -> bytes | None:
        """A path that holds this very generation."""
        for path in self._paths.get(ino, ()):
            if self.entries[path].generation == generation:
                return path
        return None

    def is_doubtful(self, path: bytes) -> bool:
        """Whether a write of another file there, whose answer is not known, may have replaced what the path held."""
        held = self.entries.get(path)
        return held is not None and any(attempt.ino != held.ino for attempt in self.attempts.get(path, ()))

    def leaving(self, path: bytes) -> Iterator[tuple[bytes, Attempt]]:
        """Where moves, whose answers are not known, may have taken what the path holds."""
        held = self.entries.get(path)
        for target, attempts in self.attempts.items():
            for attempt in attempts:
                if attempt.source == path and held is not None and attempt.ino == held.ino:
                    yield target, attempt

    def arriving(self, path: bytes) -> Attempt | None:
        """The move, whose answer is not known, that may have brought there what its source holds."""
        for attempt in self.attempts.get(path, ()):
            if attempt.source and (held := self.entries.get(attempt.source)) is not None and held.ino == attempt.ino:
                return attempt
        return None

    def newest(self, ino: int) -> tuple[bytes, Entry] | None:
        """The path that holds the newest generation of the inode; of several the one that had it last."""
        held = [(path, self.entries[path]) for path in reversed(self._paths.get(ino, ()))]
        return max(held, key=lambda found: found[1].generation, default=None)

    def under(self, prefix: bytes) -> Iterator[bytes]:
        """Paths of entries and attempts at `prefix` and below; b"": all."""
        stack = [prefix]
        while stack:
            path = stack.pop()
            if path in self.entries or path in self.attempts:
                yield path
            stack.extend(self._below.get(path, ()))

    def _forget(self, ino: int, path: bytes) -> None:
        paths = self._paths[ino]
        paths.remove(path)
        if not paths:
            del self._paths[ino]

    def _enter(self, path: bytes) -> None:
        while path:
            parent = path.rpartition(b"/")[0]
            below = self._below.setdefault(parent, set())
            if path in below:
                return
            below.add(path)
            path = parent

    def _leave(self, path: bytes) -> None:
        while path and path not in self.entries and path not in self.attempts and path not in self._below:
            parent = path.rpartition(b"/")[0]
            below = self._below.get(parent, set())
            below.discard(path)
            if below:
                return
            self._below.pop(parent, None)
            path = parent
