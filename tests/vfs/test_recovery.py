"""Recovery: what was answered before a crash is there after it, exactly; what was left behind is not."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from tests.vfs.snapshot import abandoned, check, snapshot
from vfs.content import Content
from vfs.errors import DamagedState
from vfs.inode import Inode
from vfs.journal import frames, segment_path, segments
from vfs.namespace import Namespace
from vfs.recovery import recover
from vfs.rules import Changes
from vfs.session import KERNEL, Session


def recovered(directory: Path, *, powered_off: bool = False) -> Namespace:
    content = Content(directory / "content")
    namespace, journal = recover(directory, content, crashed=True, powered_off=powered_off)
    journal.close()
    content.close()
    check(namespace)
    return namespace


def at(namespace: Namespace, path: bytes) -> Inode:
    return namespace.walk(path)


async def written(session: Session, name: bytes, content: bytes, offset: int = 0) -> int:
    ino = session.create(1, name, 0o644, KERNEL).ino
    await session.write(ino, offset, content)
    session.release(ino)
    return ino


async def test_sizes_and_times_of_files_that_are_being_written_are_exact_after_a_crash(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        grown = await written(session, b"grown", b"x" * 10)
        for n in range(20):
            await session.write(grown, n * 1000, b"y" * 10)
        sparse = await written(session, b"sparse", b"end", offset=1 << 40)
        cut = await written(session, b"cut", b"x" * 100_000)
        await session.setattr(cut, Changes(size=5), KERNEL)
        await session.write(cut, 3, b"zz")
        dated = await written(session, b"dated", b"x" * 100)
        await session.setattr(dated, Changes(mtime_ns=1_000_000_001, atime_ns=-7), KERNEL)
        redated = await written(session, b"redated", b"x" * 100)
        await session.setattr(redated, Changes(mtime_ns=1), KERNEL)
        await session.write(redated, 0, b"y")
        changed = await written(session, b"changed", b"x")
        await session.setattr(changed, Changes(mode=0o600, uid=12, gid=13), KERNEL)
        stretched = session.create(1, b"stretched", 0o600, KERNEL).ino
        await session.setattr(stretched, Changes(size=12345), KERNEL)
        await written(session, b"stretched too", b"x")
        both = session.lookup(1, b"stretched too").ino
        await session.setattr(both, Changes(size=5000), KERNEL)
        await session.write(both, 0, b"y")
        assert session.getattr(both).size == 5000
        expected = snapshot(session.namespace)
        contents = {ino: await session.read(ino, 0, 1 << 20) for ino in (grown, cut, dated, redated, changed)}
        copy = abandoned(session.directory, tmp_path / "again" / "work")
    namespace = recovered(copy)
    assert snapshot(namespace) == expected
    assert at(namespace, b"sparse").size == (1 << 40) + 3 and sparse
    assert at(namespace, b"stretched").size == 12345
    async with Session.open("work", tmp_path / "again") as session:
        assert snapshot(session.namespace) == expected
        for ino, content in contents.items():
            assert await session.read(ino, 0, 1 << 20) == content


async def test_everything_is_the_same_after_a_clean_end(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = await written(session, b"file", b"content")
        session.setxattr(ino, b"user.x", b"y", KERNEL)
        session.mkdir(1, b"empty", 0o700, KERNEL)
        expected = snapshot(session.namespace)
    for _ in range(2):
        async with Session.open("work", tmp_path) as session:
            assert snapshot(session.namespace) == expected
            assert await session.read(ino, 0, 100) == b"content"


async def test_a_truncation_that_was_recorded_and_not_carried_out_is_carried_out(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = await written(session, b"file", b"x" * 1000)
        await session.setattr(ino, Changes(size=10), KERNEL)
        mtime_ns = session.getattr(ino).mtime_ns
        copy = abandoned(session.directory, tmp_path / "copy")
    backing = copy / "content" / str(ino)
    backing.write_bytes(b"x" * 1000)
    assert at(recovered(copy), b"file").size == 10
    assert backing.read_bytes() == b"x" * 10
    assert backing.stat().st_mtime_ns == mtime_ns


async def test_a_write_that_was_begun_and_not_carried_out_changes_nothing(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = await written(session, b"file", b"x" * 10)
        await session.setattr(ino, Changes(mtime_ns=5), KERNEL)
        before = snapshot(session.namespace)["inodes"][ino][0]
        session._begin_write(session.getattr(ino))
        new = session.create(1, b"new", 0o600, KERNEL)
        session._begin_write(new)
        copy = abandoned(session.directory, tmp_path / "copy")
    namespace = recovered(copy)
    after = snapshot(namespace)["inodes"][ino][0]
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"generation", "unsettled"}
    assert at(namespace, b"new").size == 0


async def test_content_without_an_inode_is_swept_and_the_rest_is_not(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = await written(session, b"file", b"content")
        copy = abandoned(session.directory, tmp_path / "copy")
    (copy / "content" / "99").write_bytes(b"of a create whose record was torn")
    recovered(copy)
    assert [path.name for path in (copy / "content").iterdir()] == [str(ino)]


async def test_files_that_were_open_without_a_name_are_gone_after_a_crash(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path / "a") as session:
        ino = await written(session, b"file", b"content")
        session.remember(ino)
        session.unlink(1, b"file", KERNEL)
        assert await session.read(ino, 0, 100) == b"content"
        abandoned(session.directory, tmp_path / "b" / "work")
    async with Session.open("work", tmp_path / "b") as session:
        assert list(session.namespace.inodes) == [1]
        assert list((session.directory / "content").iterdir()) == []


async def test_the_next_worker_of_a_mount_keeps_files_without_a_name_until_the_kernel_lets_go(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path / "a") as session:
        ino = await written(session, b"file", b"content")
        session.remember(ino)
        session.unlink(1, b"file", KERNEL)
        abandoned(session.directory, tmp_path / "b" / "work")
    async with Session.open("work", tmp_path / "b", adopted=True) as session:
        assert await session.read(ino, 0, 100) == b"content"
        await session.write(ino, 7, b" and more")
        assert await session.read(ino, 0, 100) == b"content and more"
        session.forget([(ino, 1)])
        with pytest.raises(OSError) as caught:
            session.getattr(ino)
        assert caught.value.errno == errno.ESTALE


async def test_numbers_and_cookies_go_on_where_they_were(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path / "a") as session:
        session.mkdir(1, b"kept", 0o700, KERNEL)
        last = session.mkdir(1, b"removed", 0o700, KERNEL).ino
        cookie = [entry.cookie for entry in session.readdir(1, 0)][-1]
        session.rmdir(1, b"removed", KERNEL)
        abandoned(session.directory, tmp_path / "b" / "work")
    async with Session.open("work", tmp_path / "b") as session:
        assert session.mkdir(1, b"new", 0o700, KERNEL).ino > last
        assert [entry.cookie for entry in session.readdir(1, 0)][-1] > cookie


@pytest.fixture
def three_segments(tmp_path: Path) -> Path:
    async def live() -> Path:
        async with Session.open("work", tmp_path) as session:
            session.mkdir(1, b"first", 0o700, KERNEL)
            session.journal.rotate()
            session.mkdir(1, b"second", 0o700, KERNEL)
            session.journal.rotate()
            session.mkdir(1, b"third", 0o700, KERNEL)
            return abandoned(session.directory, tmp_path / "copy")

    return trio.run(live)


def names(namespace: Namespace) -> list[bytes]:
    return [dentry.name for dentry in namespace.list(namespace.root, 0)]


@pytest.mark.parametrize("segment", [0, 1])
@pytest.mark.parametrize("powered_off", [False, True])
def test_a_segment_that_has_gone_is_an_error_that_names_it(
    three_segments: Path, segment: int, powered_off: bool
) -> None:
    path = segment_path(three_segments, segment)
    path.unlink()
    with pytest.raises(DamagedState) as caught:
        recovered(three_segments, powered_off=powered_off)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("segment", [0, 1])
def test_a_closed_segment_that_lost_its_end_is_damage_but_after_power_loss_the_end_of_history(
    three_segments: Path, segment: int
) -> None:
    path = segment_path(three_segments, segment)
    for length in (path.stat().st_size - 1, [end for end, _ in frames(path, torn_ok=False)][-2]):
        os.truncate(path, length)
        with pytest.raises(DamagedState):
            recovered(three_segments)
        assert segments(three_segments) == [0, 1, 2]
    namespace = recovered(three_segments, powered_off=True)
    assert names(namespace) == [b"first", b"second", b"third"][:segment]
    assert segments(three_segments) == list(range(segment + 1))
    assert snapshot(recovered(three_segments)) == snapshot(namespace)


@pytest.mark.parametrize("length", [0, 5])
def test_a_segment_that_a_crash_kept_from_beginning_is_begun_again(three_segments: Path, length: int) -> None:
    os.truncate(segment_path(three_segments, 2), length)
    assert names(recovered(three_segments)) == [b"first", b"second"]
    assert segments(three_segments) == [0, 1]


def test_damage_leaves_all_files_as_they_were(three_segments: Path) -> None:
    path = segment_path(three_segments, 0)
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    (three_segments / "image.lock").touch()
    before = {path: path.read_bytes() for path in three_segments.iterdir() if path.is_file()}
    with pytest.raises(DamagedState) as caught:
        recovered(three_segments)
    assert caught.value.filename == str(path)
    assert {path: path.read_bytes() for path in three_segments.iterdir() if path.is_file()} == before


def test_a_crash_in_recovery_is_recovered_from(three_segments: Path) -> None:
    (three_segments / "content" / "99").write_bytes(b"left behind")
    program = (
        "import sys; from pathlib import Path; from vfs.content import Content; from vfs.recovery import recover\n"
        "recover(Path(sys.argv[1]), Content(Path(sys.argv[1], 'content')), crashed=True)"
    )
    environment = os.environ | {"MOUNT_SESSION_FAILPOINT": "recovery.before-end"}
    done = subprocess.run([sys.executable, "-c", program, three_segments], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert names(recovered(three_segments)) == [b"first", b"second", b"third"]


@pytest.mark.slow
async def test_a_hundred_thousand_files_are_recovered_in_seconds(tmp_path: Path) -> None:
    """From the journal, and from an image; every file has content, and a size that no record holds."""
    async with Session.open("work", tmp_path) as session:
        directories = [session.mkdir(1, b"d%d" % n, 0o755, KERNEL).ino for n in range(100)]
        for n in range(100_000):
            ino = session.create(directories[n % 100], b"file %d" % n, 0o644, KERNEL).ino
            session._begin_write(session.getattr(ino))
            os.close(os.open(session.content.directory / str(ino), os.O_WRONLY | os.O_CREAT, 0o600))
            session.release(ino)
    assert await seconds_to_open(tmp_path) < 10
    async with Session.open("work", tmp_path) as session:
        session.journal.rotate()
        await session.compaction.run()
        assert segments(session.directory) == [session.journal.segment]
        assert session.journal.size < 100
    assert await seconds_to_open(tmp_path) < 10
    shutil.rmtree(tmp_path / "work")


async def seconds_to_open(state: Path) -> float:
    """After a crash, with 100,000 files in it."""
    (state / "work" / "lock").write_bytes(b"x" * 36)
    start = time.monotonic()
    async with Session.open("work", state) as session:
        elapsed = time.monotonic() - start
        assert len(session.namespace.inodes) == 100_101
    return elapsed
