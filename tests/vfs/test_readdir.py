"""Listings neither repeat nor skip what is there all the time, whatever comes and goes, and across workers."""

from __future__ import annotations

import errno
import gc
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vfs.snapshot import abandoned
from vfs.inode import Dentry, Inode
from vfs.namespace import Namespace
from vfs.records import Make, Rename, Unlink
from vfs.rules import RENAME_EXCHANGE
from vfs.session import KERNEL, Session


def some(session: Session, after: int, count: int, directory: int = 1) -> list[tuple[bytes, int]]:
    """As the kernel asks: so many entries behind a cookie."""
    found = []
    for dentry in session.readdir(directory, after):
        found.append((dentry.name, dentry.cookie))
        if len(found) == count:
            break
    return found


def make(session: Session, name: bytes) -> None:
    session.release(session.create(1, name, 0o644, KERNEL).ino)


async def test_a_listing_in_parts_is_the_listing(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        names = [b"%d" % n for n in range(1000)]
        for name in names:
            make(session, name)
        for count in (1, 7, 999, 1000, 1001):
            seen: list[bytes] = []
            after = 0
            while part := some(session, after, count):
                seen += [name for name, _ in part]
                after = part[-1][1]
            assert seen == names


CHANGES = st.lists(
    st.tuples(st.sampled_from(["make", "remove", "rename", "replace", "exchange"]), st.integers(0, 29)), max_size=30
)


@given(steps=st.lists(CHANGES, min_size=1, max_size=12), count=st.integers(1, 6), listed_before=st.booleans())
def test_what_is_there_all_the_time_comes_once_while_the_rest_comes_and_goes(
    steps: list[list[tuple[str, int]]], count: int, listed_before: bool
) -> None:
    namespace = Namespace()
    root = namespace.root
    assert root.entries is not None

    def make(name: bytes) -> None:
        namespace.apply(Make(1, name, namespace.next_ino, 0o100644, 0, 0, 1))

    def change(what: str, which: int) -> None:
        """To entries whose names say that they may change; those there all the time are between them."""
        assert root.entries is not None
        changing = [name for name in root.entries if name.startswith(b"changes")]
        one = changing[which % len(changing)] if changing else None
        other = changing[which // 2 % len(changing)] if changing else None
        if what == "make" or one is None or other is None or (one == other and what in ("replace", "exchange")):
            make(b"changes %d" % namespace.next_ino)
        elif what == "remove":
            namespace.apply(Unlink(1, one, 1))
        elif what == "rename":
            namespace.apply(Rename(1, one, 1, b"changes too %d" % namespace.next_cookie, 1))
        else:
            namespace.apply(Rename(1, one, 1, other, 1, what == "exchange"))

    for n in range(20):
        make(b"stays %d" % n)
        make(b"changes %d" % n)
    if listed_before:
        list(namespace.list(root, 0))
    seen: list[bytes] = []
    after = 0
    remaining = iter(steps)
    while True:
        part = []
        for dentry in namespace.list(root, after):
            part.append(dentry)
            if len(part) == count:
                break
        if not part:
            break
        seen += [dentry.name for dentry in part]
        after = part[-1].cookie
        for what, which in next(remaining, []):
            change(what, which)
    assert [name for name in seen if name.startswith(b"stays")] == [b"stays %d" % n for n in range(20)]


async def test_replacing_a_file_again_and_again_does_not_repeat_its_name(tmp_path: Path) -> None:
    """What editors do: write aside, rename over. The name keeps its place."""
    async with Session.open("work", tmp_path) as session:
        make(session, b"document")
        make(session, b"last")
        seen = []
        after = 0
        while part := some(session, after, 1):
            seen.append(part[0][0])
            after = part[0][1]
            make(session, b"document.new")
            session.rename(1, b"document.new", 1, b"document", 0, KERNEL)
            make(session, b"other") if len(seen) == 1 else None
            if len(seen) == 1:
                session.rename(1, b"other", 1, b"document", RENAME_EXCHANGE, KERNEL)
                session.unlink(1, b"other", KERNEL)
        assert seen == [b"document", b"last"]


async def test_removing_what_was_listed_empties_a_directory_in_one_pass(tmp_path: Path) -> None:
    """rm -r: list some, remove them, go on from the last cookie."""
    async with Session.open("work", tmp_path) as session:
        for n in range(1000):
            make(session, b"%d" % n)
        after = 0
        while part := some(session, after, 17):
            for name, _ in part:
                session.unlink(1, name, KERNEL)
            after = part[-1][1]
        assert some(session, 0, 1) == []
        assert session.getattr(1).nlink == 2


async def test_a_listing_goes_on_in_the_next_worker(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path / "a") as session:
        for n in range(100):
            make(session, b"%d" % n)
        for n in range(0, 100, 2):
            session.unlink(1, b"%d" % n, KERNEL)
        before = some(session, 0, 1000)
        abandoned(session.directory, tmp_path / "b" / "work")
        session.journal.rotate()
        await session.compaction.run()
        abandoned(session.directory, tmp_path / "c" / "work")
    for state in ("b", "c"):
        async with Session.open("work", tmp_path / state, adopted=True) as session:
            assert some(session, 0, 1000) == before
            assert some(session, before[20][1], 1000) == before[21:]


async def test_a_directory_of_100000_entries_is_listed_and_emptied_in_linear_time(tmp_path: Path) -> None:
    namespace = Namespace()
    for n in range(100_000):
        namespace.apply(Make(1, b"%d" % n, n + 2, 0o100644, 0, 0, 1))

    def passes(size: int) -> int:
        seen, after = 0, 0
        while True:
            part = []
            for dentry in namespace.list(namespace.root, after):
                part.append(dentry)
                if len(part) == size:
                    break
            if not part:
                return seen
            seen += len(part)
            after = part[-1].cookie

    start = time.monotonic()
    assert passes(30) == 100_000
    assert time.monotonic() - start < 5, "with a listing made anew for each part it would be minutes"
    start = time.monotonic()
    for n in range(100_000):
        namespace.apply(Unlink(1, b"%d" % n, 1))
        if n % 30 == 0:
            next(namespace.list(namespace.root, 0), None)
    assert time.monotonic() - start < 10, "skipping what is gone must not be done again for each part"


async def test_what_is_not_a_directory_cannot_be_listed(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = session.create(1, b"file", 0o644, KERNEL).ino
        for number, expected in ((ino, errno.ENOTDIR), (99, errno.ESTALE)):
            with pytest.raises(OSError) as caught:
                session.readdir(number, 0)
            assert caught.value.errno == expected


def living() -> int:
    return sum(isinstance(found, Inode | Dentry) for found in gc.get_objects())


async def test_what_is_removed_from_listed_directories_goes_without_the_collector(tmp_path: Path) -> None:
    """A worker's collector does not look at what it has seen once."""
    async with Session.open("work", tmp_path) as session:
        make(session, b"first")
        some(session, 0, 10)
        gc.collect()
        gc.disable()
        try:
            before = living()
            for _ in range(1000):
                make(session, b"lock")
                session.unlink(1, b"lock", KERNEL)
                directory = session.mkdir(1, b"dir", 0o755, KERNEL).ino
                session.create(directory, b"file", 0o644, KERNEL)
                some(session, 0, 10, directory)
                session.release(session.lookup(directory, b"file").ino)
                session.unlink(directory, b"file", KERNEL)
                session.rmdir(1, b"dir", KERNEL)
            assert living() - before < 400
            assert [name for name, _ in some(session, 0, 10)] == [b"first"]
        finally:
            gc.enable()
