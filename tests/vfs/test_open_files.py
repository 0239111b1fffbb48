"""Who holds an inode: names, the kernel's look-ups, opens. Without a name it lives until the last of them is gone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio

from vfs.content import Content
from vfs.inode import Inode
from vfs.records import Record
from vfs.rules import RENAME_EXCHANGE
from vfs.session import KERNEL, Session


def backing(session: Session, ino: int) -> bool:
    return (session.directory / "content" / str(ino)).exists()


async def file(session: Session, name: bytes = b"file", content: bytes = b"content") -> int:
    ino = session.create(1, name, 0o644, KERNEL).ino
    await session.write(ino, 0, content)
    return ino


def is_gone(session: Session, ino: int) -> bool:
    return ino not in session.namespace.inodes and not backing(session, ino)


async def test_an_unlinked_file_is_read_and_written_until_its_last_close(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = await file(session)
        await session.open_file(ino, 0, KERNEL)
        session.unlink(1, b"file", KERNEL)
        assert session.getattr(ino).nlink == 0
        session.release(ino)
        await session.write(ino, 7, b" and more")
        assert await session.read(ino, 0, 100) == b"content and more"
        session.release(ino)
        assert is_gone(session, ino)


async def test_an_unlinked_file_that_nobody_has_is_gone_at_once(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = await file(session)
        session.release(ino)
        session.unlink(1, b"file", KERNEL)
        assert is_gone(session, ino)


async def test_a_file_that_was_replaced_is_gone_or_kept_like_one_that_was_unlinked(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        replaced, held = await file(session, b"replaced"), await file(session, b"held")
        session.release(replaced)
        for name in (b"replaced", b"held"):
            session.release(await file(session, b"new"))
            session.rename(1, b"new", 1, name, 0, KERNEL)
        assert is_gone(session, replaced)
        assert await session.read(held, 0, 100) == b"content"
        session.rename(1, b"replaced", 1, b"held", RENAME_EXCHANGE, KERNEL)
        assert len(session.namespace.inodes) == 4


async def test_the_kernel_holds_an_inode_for_as_often_as_it_was_told_of_it(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = await file(session)
        for _ in range(3):
            session.remember(ino)
        session.release(ino)
        session.unlink(1, b"file", KERNEL)
        session.forget([(ino, 2)])
        assert await session.read(ino, 0, 100) == b"content"
        session.forget([(ino, 1)])
        assert is_gone(session, ino)


async def test_the_kernel_forgets_what_has_a_name_and_nothing_happens(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = await file(session)
        session.release(ino)
        session.remember(ino)
        session.forget([(ino, 1), (99, 5)])
        assert session.getattr(ino).nlink == 1
        session.unlink(1, b"file", KERNEL)
        assert is_gone(session, ino)


async def test_one_of_two_names_less_is_a_file_with_one_name(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = await file(session)
        session.release(ino)
        session.link(ino, 1, b"second", KERNEL)
        session.unlink(1, b"file", KERNEL)
        assert session.getattr(ino).nlink == 1
        assert session.lookup(1, b"second").ino == ino
        assert await session.read(ino, 0, 100) == b"content"


async def test_a_removed_directory_is_kept_while_someone_is_in_it(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = session.mkdir(1, b"d", 0o755, KERNEL).ino
        session.remember(ino)
        session.rmdir(1, b"d", KERNEL)
        assert list(session.readdir(ino, 0)) == []
        with pytest.raises(FileNotFoundError):
            session.mkdir(ino, b"x", 0o755, KERNEL)
        session.forget([(ino, 1)])
        assert ino not in session.namespace.inodes


async def test_a_number_is_never_used_again(tmp_path: Path) -> None:
    seen: set[int] = set()
    for _ in range(3):
        async with Session.open("work", tmp_path) as session:
            for _ in range(5):
                ino = session.create(1, b"file", 0o644, KERNEL).ino
                assert ino not in seen
                seen.add(ino)
                session.release(ino)
                session.unlink(1, b"file", KERNEL)


async def test_files_held_by_nobody_but_the_kernel_of_an_earlier_worker_wait_for_its_forget(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path, adopted=True) as session:
        ino = await file(session)
        session.release(ino)
        session.unlink(1, b"file", KERNEL)
        assert await session.read(ino, 0, 100) == b"content"
        session.forget([(ino, 4)])
        assert is_gone(session, ino)


async def test_more_files_than_descriptors_are_open_at_once(tmp_path: Path) -> None:
    content = Content(tmp_path / "content", max_open=4)
    for n in range(50):
        content.write(n, 0, b"%d" % n)
    for n in range(50):
        assert content.read(n, 0, 10) == b"%d" % n
    with content.lease(0) as fd:
        for n in range(50):
            content.write(n, 0, b"again")
        assert await trio.to_thread.run_sync(content.read_waiting, fd, 0, 10) == b"again"
    assert len(os.listdir("/proc/self/fd")) < 50
    content.close()


async def test_what_is_read_beyond_the_end_is_nothing_and_holes_are_zeros(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = session.create(1, b"file", 0o644, KERNEL).ino
        assert await session.read(ino, 0, 10) == b""
        await session.write(ino, 1 << 40, b"end")
        assert session.getattr(ino).size == (1 << 40) + 3
        assert await session.read(ino, (1 << 40) - 2, 100) == b"\0\0end"
        assert await session.read(ino, 1 << 50, 1) == b""
        assert session.blocks(session.getattr(ino)) < 100


class Noting:
    """An observer: what it was told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def committed(self, record: Record, inode: Inode | None) -> None:
        self.told.append(type(record).__name__)

    def written(self, inode: Inode) -> None:
        self.told.append("written")

    def released(self, inode: Inode) -> None:
        self.told.append("released")


async def test_an_observer_is_told_of_every_change_in_order_and_of_the_last_close(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        noting = Noting()
        session.observers.append(noting)
        ino = await file(session)
        await session.write(ino, 0, b"x")
        await session.open_file(ino, 0, KERNEL)
        session.release(ino)
        session.release(ino)
        session.unlink(1, b"file", KERNEL)
        assert noting.told == ["Make", "Dirty", "written", "written", "released", "Unlink", "Reclaim"]


async def test_what_the_block_raises_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Session.open("work", tmp_path) as session:
            session.mkdir(1, b"d", 0o755, KERNEL)
            raise ZeroDivisionError
    async with Session.open("work", tmp_path) as session:
        assert session.lookup(1, b"d").is_dir


async def test_a_number_that_means_nothing_is_estale(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        for call in (session.getattr, session.readlink, session.listxattr):
            with pytest.raises(OSError) as caught:
                call(4711)
            assert caught.value.errno == errno.ESTALE
