"""An integrator's persistence, in memory: versions, conditions, moves, ranges, and what can go wrong between us."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, BinaryIO

import trio

from vfs.callbacks import Change, Context
from vfs.errors import Conflict
from vfs.fileref import FileRef
from vfs.persistence import Persistence
from vfs.routes import Route, Routes
from vfs.tree import KERNEL

IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where sessions of random histories live: each sync of one is a syncfs(2), which on a busy disk takes seconds."""


class Crash(Exception):
    """Leaves a session as a crash of its process does: nothing is written back, nothing is closed in good order."""


class Shelf:
    """The four callbacks, async under trio. `log` is what was asked, in order.

    `fault` is called before each callback is carried out and may raise; `lost` answers whether a callback's answer gets
    lost after it was carried out; `delay` is how long it takes there, and back.
    """

    async_library = "trio"
    timeout = 30.0

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, str]] = {}
        self.contexts: dict[str, Context] = {}
        self.log: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], None] = lambda operation, path: None
        self.lost: Callable[[str, str], bool] = lambda operation, path: False
        self.delay: Callable[[], float] = lambda: 0.0
        self.at_once = 0
        self.most_at_once = 0
        self._versions = 0

    @property
    def contents(self) -> dict[str, bytes]:
        return {path: content for path, (content, _) in self.files.items()}

    @property
    def calls(self) -> list[tuple[str, str]]:
        """What was asked for about single files."""
        return [(operation, path) for operation, path in self.log if operation != "list"]

    def put(self, path: str, content: bytes) -> str:
        """Someone else writes."""
        self._versions += 1
        self.files[path] = (content, f"v{self._versions}")
        return f"v{self._versions}"

    async def _carry_out(self, operation: str, path: str, act: Callable[[], Any]) -> Any:
        self.log.append((operation, path))
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await trio.sleep(self.delay())
            self.fault(operation, path)
            answer = act()
            await trio.sleep(self.delay())
            if self.lost(operation, path):
                raise TimeoutError("the answer was lost")
            return answer
        finally:
            self.at_once -= 1

    def _check(self, path: str, context: Context) -> None:
        if "if_version" not in context:
            return
        found = self.files[path][1] if path in self.files else None
        if found != context["if_version"]:
            raise Conflict(path, found)

    def _write(self, path: str, content: bytes, context: Context) -> dict[str, str]:
        self._check(path, context)
        assert hashlib.sha256(content).hexdigest() == context["checksum"]
        self.contexts[path] = context
        return {"version": self.put(path, content)}

    def _delete(self, path: str, context: Context) -> None:
        if path not in self.files:
            raise FileNotFoundError(path)
        self._check(path, context)
        del self.files[path]

    def _read(self, path: str, context: Context) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(path)
        self._check(path, context)
        return self.files[path][0]

    def _list(self) -> list[FileRef]:
        return [self.ref(path) for path in sorted(self.files)]

    def ref(self, path: str) -> FileRef:
        content, version = self.files[path]
        return FileRef(path=path, size=len(content), version=version, created_at=datetime.now(UTC))

    async def on_write(self, scope: object, path: str, content: bytes, context: Context) -> dict[str, str]:
        answer: dict[str, str] = await self._carry_out("write", path, lambda: self._write(path, content, context))
        return answer

    async def on_delete(self, scope: object, path: str, context: Context) -> None:
        await self._carry_out("delete", path, lambda: self._delete(path, context))

    async def on_read(self, scope: object, path: str, context: Context) -> bytes:
        content: bytes = await self._carry_out("read", path, lambda: self._read(path, context))
        return content

    async def on_list(self, scope: object, context: Context) -> list[FileRef]:
        refs: list[FileRef] = await self._carry_out("list", "", self._list)
        return refs


class BigShelf(Shelf):
    """With the extensions."""

    async def on_stat(self, scope: object, path: str, context: Context) -> FileRef | None:
        ref: FileRef | None = await self._carry_out(
            "stat", path, lambda: self.ref(path) if path in self.files else None
        )
        return ref

    async def on_move(self, scope: object, old: str, new: str, context: Context) -> dict[str, str]:
        def act() -> dict[str, str]:
            if old not in self.files:
                raise FileNotFoundError(old)
            self._check(old, context)
            if "if_target" in context:
                self._check(new, {"if_version": context["if_target"]})
            return {"version": self.put(new, self.files.pop(old)[0])}

        answer: dict[str, str] = await self._carry_out("move", f"{old} -> {new}", act)
        return answer

    async def on_read_range(self, scope: object, path: str, offset: int, size: int, context: Context) -> bytes:
        content: bytes = await self._carry_out("read_range", path, lambda: self._read(path, context))
        return content[offset : offset + size]

    async def on_write_file(self, scope: object, path: str, file: BinaryIO, context: Context) -> dict[str, str]:
        content = bytearray()
        while piece := await trio.to_thread.run_sync(file.read, 1 << 18):
            content += piece
            await trio.sleep(self.delay())
        return await self.on_write(scope, path, bytes(content), context)


class Desk(Shelf):
    """The same four, sync: they are called in threads, and many in one."""

    timeout = math.inf  # a mocked clock does not wait for threads

    def _at_once(self, operation: str, path: str, act: Callable[[], Any]) -> Any:
        self.log.append((operation, path))
        self.fault(operation, path)
        answer = act()
        if self.lost(operation, path):
            raise TimeoutError("the answer was lost")
        return answer

    def on_write(self, scope: object, path: str, content: bytes, context: Context) -> Any:
        return self._at_once("write", path, lambda: self._write(path, content, context))

    def on_delete(self, scope: object, path: str, context: Context) -> Any:
        return self._at_once("delete", path, lambda: self._delete(path, context))

    def on_read(self, scope: object, path: str, context: Context) -> Any:
        return self._at_once("read", path, lambda: self._read(path, context))

    def on_list(self, scope: object, context: Context) -> Any:
        return self._at_once("list", "", self._list)


class Crate(BigShelf):
    """Small files come many at a time; the first that cannot be written ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.crates: list[tuple[int, int]] = []  # how many came, and how many were written

    async def on_write_many(self, scope: object, changes: Sequence[Change], context: Context) -> list[dict[str, str]]:
        written: list[dict[str, str]] = []
        with contextlib.suppress(OSError):
            for change in changes:
                written.append(await self.on_write(scope, change.path, change.content(), change.context))
        self.crates.append((len(changes), len(written)))
        return written


class Ledger(Shelf):
    """One transaction for everything."""

    async def on_commit(
        self, scope: object, changes: Sequence[Change], context: Context
    ) -> list[dict[str, str] | None]:
        def act() -> list[dict[str, str] | None]:
            before, contexts = dict(self.files), dict(self.contexts)
            try:
                return [self._change(change) for change in changes]
            except BaseException:
                self.files, self.contexts = before, contexts
                raise

        path = " ".join(f"{change.kind}:{change.path}" for change in changes)
        answer: list[dict[str, str] | None] = await self._carry_out("commit", path, act)
        return answer

    def _change(self, change: Change) -> dict[str, str] | None:
        if change.kind == "write":
            self._check(change.path, change.context)
            self.contexts[change.path] = change.context
            return {"version": self.put(change.path, change.content())}
        if change.kind == "move":
            assert change.source is not None
            self._check(change.source, change.context)
            return {"version": self.put(change.path, self.files.pop(change.source)[0])}
        if change.path in self.files:
            self._check(change.path, change.context)
            del self.files[change.path]
        return None


def routes(target: object, **policy: Any) -> Routes:
    timeout = target.timeout if isinstance(target, Shelf) else 30.0
    return Routes([Route("", Persistence(target, name="shelf", timeout=timeout), **policy)])


def flaky(seed: int, rate: float) -> Callable[[str, str], None]:
    """A fault: some calls fail, by chance."""
    chance = random.Random(seed)

    def fault(operation: str, path: str) -> None:
        if operation != "list" and chance.random() < rate:
            raise ConnectionResetError(104, "reset")

    return fault


async def put(session: Any, path: str, content: bytes) -> int:
    """Write a file of the session as a program would: directories, create, write, close."""
    parent = 1
    *directories, name = path.encode().split(b"/")
    for directory in directories:
        try:
            parent = session.lookup(parent, directory).ino
        except FileNotFoundError:
            parent = session.mkdir(parent, directory, 0o755, KERNEL).ino
    try:
        ino = session.lookup(parent, name).ino
        await session.open_file(ino, 0o1001, KERNEL)  # O_WRONLY | O_TRUNC
    except FileNotFoundError:
        ino = session.create(parent, name, 0o644, KERNEL).ino
    if content:
        assert await session.write(ino, 0, content) == len(content)
    session.release(ino)
    return int(ino)


async def content(session: Any, path: str) -> bytes:
    inode = session.namespace.walk(path.encode())
    return bytes(await session.read(inode.ino, 0, 1 << 30))
