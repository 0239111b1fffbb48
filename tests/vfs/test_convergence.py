"""Whatever is done in a session, whatever the persistence does, and wherever the process dies: after a sync the
persistence holds what the session's tree holds, and every receipt is true."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.vfs.shelf import IN_MEMORY, BigShelf, Crash, Crate, Desk, Ledger, Shelf, routes
from vfs.fetch import AGAIN
from vfs.fileref import FileRef
from vfs.inode import Inode
from vfs.options import Options
from vfs.rules import Changes
from vfs.session import Session
from vfs.tree import KERNEL

DIRECTORIES = [b"", b"d", b"e", b"d/f"]
NAMES = [b"a", b"b", b"c"]
paths = st.builds(lambda d, n: d + b"/" + n if d else n, st.sampled_from(DIRECTORIES), st.sampled_from(NAMES))
anything = st.one_of(paths, st.sampled_from([b"d", b"e", b"d/f", b"g"]))

operation = st.one_of(
    st.tuples(st.just("write"), paths, st.integers(0, 3), st.binary(max_size=4)),
    st.tuples(st.just("write"), paths, st.integers(0, 3), st.binary(max_size=4)),
    st.tuples(st.just("truncate"), paths, st.integers(0, 6)),
    st.tuples(st.just("hold"), paths),
    st.tuples(st.just("unlink"), paths),
    st.tuples(st.just("mkdir"), anything),
    st.tuples(st.just("rmdir"), anything),
    st.tuples(st.just("rename"), anything, anything, st.sampled_from([0, 0, 1, 2])),
    st.tuples(st.just("link"), paths, paths),
    st.tuples(st.just("sleep"), st.sampled_from([0.02, 0.3, 1.5, 20.0])),
    st.tuples(st.just("sync")),
    st.tuples(st.just("crash")),
    st.tuples(st.just("evict")),
    st.tuples(st.just("shift"), paths, paths),
)


class Program:
    """Carries out operations as programs do, and knows what each file should hold."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.contents: dict[int, bytes] = {}
        self.held: list[int] = []
        self.session: Any = None

    def parent(self, path: bytes) -> tuple[int, bytes]:
        directory, _, name = path.rpartition(b"/")
        return self.session.namespace.walk(directory).ino, name

    async def do(self, kind: str, *arguments: Any) -> None:
        try:
            await getattr(self, kind)(*arguments)
        except OSError as e:  # a program sees what POSIX says, or that content cannot be had from elsewhere for now
            assert e.errno in range(1, 134)

    async def write(self, path: bytes, offset: int, data: bytes) -> None:
        parent, name = self.parent(path)
        try:
            ino = self.session.lookup(parent, name).ino
            await self.session.open_file(ino, os.O_WRONLY, KERNEL)
        except FileNotFoundError:
            ino = self.session.create(parent, name, 0o644, KERNEL).ino
            self.contents[ino] = b""
        try:
            if data:
                await self.session.write(ino, offset, data)
                before = self.contents[ino].ljust(offset, b"\0")
                self.contents[ino] = before[:offset] + data + before[offset + len(data) :]
        finally:
            self.session.release(ino)

    async def truncate(self, path: bytes, size: int) -> None:
        ino = self.session.lookup(*self.parent(path)).ino
        await self.session.setattr(ino, Changes(size=size), KERNEL)
        if ino in self.contents:
            self.contents[ino] = self.contents[ino][:size].ljust(size, b"\0")

    async def hold(self, path: bytes) -> None:
        """Keep the file open, as a program that works on an unlinked file does."""
        ino = self.session.lookup(*self.parent(path)).ino
        await self.session.open_file(ino, os.O_RDWR, KERNEL)
        self.held.append(ino)

    async def unlink(self, path: bytes) -> None:
        self.session.unlink(*self.parent(path), KERNEL)

    async def mkdir(self, path: bytes) -> None:
        self.session.mkdir(*self.parent(path), 0o755, KERNEL)

    async def rmdir(self, path: bytes) -> None:
        self.session.rmdir(*self.parent(path), KERNEL)

    async def rename(self, old: bytes, new: bytes, flags: int) -> None:
        self.session.rename(*self.parent(old), *self.parent(new), flags, KERNEL)

    async def link(self, old: bytes, new: bytes) -> None:
        self.session.link(self.session.lookup(*self.parent(old)).ino, *self.parent(new), KERNEL)

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def sync(self) -> None:
        receipt = await self.session.sync(within=3600)
        if receipt.pending == 0:
            self.check_shelf(receipt)

    async def evict(self) -> None:
        """The content of all clean files goes: it is in the persistence."""
        self.session.cache.trim(0)

    async def shift(self, old: bytes, new: bytes) -> None:
        """A file whose content is elsewhere only is renamed, and its name is taken by a new one."""
        await self.sync()
        await self.evict()
        await self.rename(old, new, 0)
        await self.write(old, 0, b"new")

    async def crash(self) -> None:
        raise Crash

    def files(self) -> Iterator[tuple[str, Inode]]:
        def below(prefix: str, directory: Inode) -> Iterator[tuple[str, Inode]]:
            for name, dentry in (directory.entries or {}).items():
                path = f"{prefix}/{name.decode()}"
                if dentry.inode.is_file:
                    yield path, dentry.inode
                yield from below(path, dentry.inode)

        return below("", self.session.namespace.root)

    def check_shelf(self, receipt: Any) -> None:
        assert self.shelf.contents == {path: self.contents[inode.ino] for path, inode in self.files()}
        for path, stored in receipt.stored.items():
            assert stored.version in (None, self.shelf.files["/" + path][1])

    async def check_tree(self) -> None:
        fault, lost = self.shelf.fault, self.shelf.lost
        self.shelf.fault, self.shelf.lost = lambda operation, path: None, lambda operation, path: False
        await trio.sleep(AGAIN)  # who waited for nothing a moment ago is not made to wait again
        for path, inode in list(self.files()):
            assert await self.session.read(inode.ino, 0, 1000) == self.contents[inode.ino], path
        for ino in self.held:
            assert await self.session.read(ino, 0, 1000) == self.contents[ino]
        self.shelf.fault, self.shelf.lost = fault, lost


class Plain(Shelf):
    """Neither versions nor conditions: what a first integrator writes."""

    def _check(self, path: str, context: Any) -> None:
        pass

    async def on_write(self, scope: object, path: str, content: bytes, context: Any) -> Any:
        await super().on_write(scope, path, content, context)

    def ref(self, path: str) -> FileRef:
        return msgspec.structs.replace(super().ref(path), version=None)


async def run(program: Program, operations: list[tuple[Any, ...]], directory: Path) -> None:
    shelf = program.shelf
    operations = list(operations)
    options = Options(stop_timeout=0)
    if isinstance(shelf, Crate | Desk):  # so that a few files are many
        options = Options(stop_timeout=0, concurrency=1, max_concurrency=1, read_timeout=shelf.timeout)
    while True:
        try:
            async with Session.open("s", directory, routes=routes(shelf), options=options) as session:
                program.session = session
                program.held = []
                await program.check_tree()
                while operations:
                    await program.do(*operations.pop(0))
                shelf.fault = lambda operation, path: None
                shelf.lost = lambda operation, path: False
                receipt = await session.sync()
                assert receipt.pending == 0
                program.check_shelf(receipt)
                await program.check_tree()
                return
        except Crash:
            pass


@pytest.mark.parametrize("kind", [Plain, Shelf, BigShelf, Crate, Desk, Ledger])
@settings(max_examples=150)
@given(st.lists(operation, max_size=40), st.integers(0, 1 << 30), st.sampled_from([0.0, 0.3]))
def test_the_persistence_ends_up_with_what_the_tree_says(
    kind: type[Shelf], operations: list[tuple[Any, ...]], seed: int, rate: float
) -> None:
    chance = random.Random(seed)
    shelf = kind()
    shelf.delay = lambda: chance.choice([0.0, 0.0, 0.05, 0.7])
    if rate:

        def fault(operation: str, path: str) -> None:
            if operation != "list" and chance.random() < rate:
                raise ConnectionResetError(104, "reset")

        shelf.fault = fault
        if kind is not Plain:  # without versions nobody can tell a late write of ours from another's
            shelf.lost = lambda operation, path: operation != "list" and chance.random() < rate
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as directory:
        clock = MockClock(autojump_threshold=0.001)
        trio.run(run, Program(shelf), operations, Path(directory), clock=clock)
