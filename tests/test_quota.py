"""A quota is an error at the change that goes beyond it, never later and never at a delete."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfs.namespace import ROOT
from vfs.policy import Policy
from vfs.quota import SoftLimit
from vfs.rules import Changes
from vfs.session import KERNEL, Session


def refused(number: int, call: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(OSError) as caught:
        call(*arguments)
    assert caught.value.errno == number


async def refused_later(number: int, call: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(OSError) as caught:
        await call(*arguments)
    assert caught.value.errno == number


def create(session: Session, name: bytes) -> int:
    ino = session.create(ROOT, name, 0o644, KERNEL).ino
    session.release(ino)
    return ino


def counted(session: Session) -> int:
    return sum(inode.size for inode in session.namespace.inodes.values() if inode.is_file)


async def test_a_write_beyond_the_quota_takes_what_fits_and_then_edquot(tmp_path: Path) -> None:
    async with Session.open("s", tmp_path, policy=Policy(quota_bytes=10_000)) as session:
        ino = create(session, b"f")
        assert await session.write(ino, 0, b"x" * 8000) == 8000
        assert await session.write(ino, 8000, b"y" * 8000) == 2000
        await refused_later(errno.EDQUOT, session.write, ino, 10_000, b"z")
        assert await session.write(ino, 0, b"over" * 2500) == 10_000, "what is there already may be written over"
        other = create(session, b"g")
        await refused_later(errno.EDQUOT, session.write, other, 0, b"z")
        await refused_later(errno.EDQUOT, session.setattr, other, Changes(size=1), KERNEL)
        session.unlink(ROOT, b"f", KERNEL)
        assert await session.write(other, 0, b"z" * 10_000) == 10_000


async def test_a_create_beyond_the_quota_is_edquot_and_a_delete_makes_room(tmp_path: Path) -> None:
    async with Session.open("s", tmp_path, policy=Policy(quota_inodes=3)) as session:
        create(session, b"a")
        session.mkdir(ROOT, b"b", 0o755, KERNEL)
        session.symlink(ROOT, b"c", b"a", KERNEL)
        for make in (session.create, session.mkdir):
            refused(errno.EDQUOT, make, ROOT, b"d", 0o644, KERNEL)
        refused(errno.EDQUOT, session.symlink, ROOT, b"d", b"a", KERNEL)
        session.link(session.lookup(ROOT, b"a").ino, ROOT, b"another name", KERNEL)
        session.rmdir(ROOT, b"b", KERNEL)
        create(session, b"d")


async def test_a_file_beyond_the_file_size_limit_is_efbig(tmp_path: Path) -> None:
    async with Session.open("s", tmp_path, policy=Policy(max_file_bytes=100)) as session:
        ino = create(session, b"f")
        assert await session.write(ino, 50, b"x" * 80) == 50
        await refused_later(errno.EFBIG, session.write, ino, 100, b"x")
        await refused_later(errno.EFBIG, session.setattr, ino, Changes(size=101), KERNEL)
        session.apply(Policy(max_file_bytes=10))
        assert await session.write(ino, 90, b"y" * 20) == 10
        await session.setattr(ino, Changes(size=5), KERNEL)


async def test_deletes_and_truncation_work_above_a_limit_that_was_lowered(tmp_path: Path) -> None:
    async with Session.open("s", tmp_path) as session:
        files = [create(session, b"%d" % n) for n in range(10)]
        for ino in files:
            await session.write(ino, 0, b"x" * 1000)
        session.apply(Policy(quota_bytes=100, quota_inodes=2))
        await session.setattr(files[0], Changes(size=10), KERNEL)
        await refused_later(errno.EDQUOT, session.write, files[0], 10, b"x")
        for n in range(10):
            session.unlink(ROOT, b"%d" % n, KERNEL)
        assert session.namespace.bytes == 0
        create(session, b"again")


async def test_statvfs_tells_the_quota_and_what_is_left_of_it(tmp_path: Path) -> None:
    async with Session.open("s", tmp_path, policy=Policy(quota_bytes=1 << 20, quota_inodes=100)) as session:
        ino = create(session, b"f")
        await session.write(ino, 0, b"x" * (1 << 18))
        told = session.statvfs()
        assert told.f_blocks * told.f_frsize == 1 << 20
        assert told.f_bavail * told.f_frsize == told.f_bfree * told.f_frsize == 3 << 18
        assert (told.f_files, told.f_ffree, told.f_favail) == (100, 99, 99)


async def test_passing_a_soft_limit_is_told_once_until_it_was_below_again(tmp_path: Path) -> None:
    told: list[SoftLimit] = []
    async with Session.open("s", tmp_path, policy=Policy(soft_bytes=1000, soft_inodes=2)) as session:
        session.on_soft_limit = told.append
        ino = create(session, b"f")
        for n in range(5):
            assert await session.write(ino, n * 500, b"x" * 500) == 500
        assert told == [SoftLimit("bytes", 1500, 1000, ino)]
        await session.setattr(ino, Changes(size=0), KERNEL)
        await session.write(ino, 0, b"x")
        await session.write(ino, 0, b"x" * 1001)
        assert told[1:] == [SoftLimit("bytes", 1001, 1000, ino)]
        create(session, b"g")
        create(session, b"h")
        create(session, b"i")
        assert told[2:] == [SoftLimit("inodes", 3, 2)]


async def test_an_open_file_without_a_name_counts_until_it_is_let_go_of(tmp_path: Path) -> None:
    async with Session.open("s", tmp_path, policy=Policy(quota_bytes=100)) as session:
        ino = session.create(ROOT, b"f", 0o644, KERNEL).ino
        session.remember(ino)
        await session.write(ino, 0, b"x" * 100)
        session.unlink(ROOT, b"f", KERNEL)
        other = create(session, b"g")
        await refused_later(errno.EDQUOT, session.write, other, 0, b"x")
        session.release(ino)
        session.forget([(ino, 1)])
        assert await session.write(other, 0, b"x" * 100) == 100


_step = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 4), st.integers(0, 3000), st.integers(1, 2000)),
    st.tuples(st.just("size"), st.integers(0, 4), st.integers(0, 5000), st.just(0)),
    st.tuples(st.just("unlink"), st.integers(0, 4), st.just(0), st.just(0)),
    st.tuples(st.just("rename"), st.integers(0, 4), st.integers(0, 4), st.just(0)),
    st.tuples(st.just("link"), st.integers(0, 4), st.integers(5, 6), st.just(0)),
    st.tuples(st.just("reopen"), st.just(0), st.just(0), st.just(0)),
)


@given(steps=st.lists(_step, max_size=30))
async def test_what_is_counted_is_what_is_there_also_after_recovery(
    steps: list[tuple[str, int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    state = tmp_path_factory.mktemp("quota")
    while True:
        async with Session.open("s", state, policy=Policy(quota_bytes=8000, quota_inodes=6)) as session:
            assert session.namespace.bytes == counted(session)
            while steps:
                kind, a, b, length = steps.pop(0)
                if kind == "reopen":
                    break
                try:
                    await _take(session, kind, b"%d" % a, b, length)
                except OSError as e:
                    assert e.errno in (errno.EDQUOT, errno.ENOENT, errno.EEXIST)
                assert session.namespace.bytes == counted(session) <= 8000
                assert len(session.namespace.inodes) - 1 <= 6
            else:
                return


async def _take(session: Session, kind: str, name: bytes, b: int, length: int) -> None:
    if kind == "unlink":
        session.unlink(ROOT, name, KERNEL)
    elif kind == "rename":
        session.rename(ROOT, name, ROOT, b"%d" % b, 0, KERNEL)
    elif kind == "link":
        session.link(session.lookup(ROOT, name).ino, ROOT, b"%d" % b, KERNEL)
    else:
        entries = session.namespace.root.entries
        assert entries is not None
        ino = entries[name].inode.ino if name in entries else create(session, name)
        if kind == "write":
            await session.write(ino, b, b"x" * length)
        else:
            await session.setattr(ino, Changes(size=b), KERNEL)
