"""The image: the same namespace as the journal would give, whole or an error, and no crash in its making matters."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.disk import fill, small_tmpfs
from tests.vfs.snapshot import abandoned, check, snapshot
from vfs import image
from vfs.content import Content
from vfs.errors import DamagedState
from vfs.failpoints import POINTS
from vfs.journal import frames, segment_path, segments
from vfs.namespace import Namespace
from vfs.recovery import recover
from vfs.rules import RENAME_EXCHANGE, Changes
from vfs.session import KERNEL, Session


async def lived_in(session: Session) -> None:
    """One of everything that a namespace can hold."""
    a = session.mkdir(1, b"a", 0o750, KERNEL).ino
    b = session.mkdir(a, b"\xff\xfe" + b"b" * 253, 0o2755, KERNEL).ino
    file = session.create(b, b"file", 0o6755, KERNEL).ino
    await session.write(file, 1_000_000, b"end")
    session.release(file)
    session.link(file, 1, b"second name", KERNEL)
    session.symlink(a, b"link", b"\xff" * 4095, KERNEL)
    session.mknod(a, b"fifo", 0o10600, KERNEL)
    session.mknod(a, b"device", 0o60600, KERNEL, rdev=0x801)
    session.setxattr(a, b"user.x", b"\0\xff" * 500, KERNEL)
    settled = session.create(a, b"settled", 0o600, KERNEL).ino
    await session.write(settled, 0, b"x" * 10_000)
    await session.setattr(settled, Changes(mtime_ns=-1, atime_ns=1 << 60, uid=7, gid=2**32 - 2), KERNEL)
    for name in (b"gone", b"open"):
        ino = session.create(a, name, 0o600, KERNEL).ino
        await session.write(ino, 0, name)
        if name == b"gone":
            session.release(ino)
        session.unlink(a, name, KERNEL)
    session.rename(a, b"fifo", 1, b"second name", RENAME_EXCHANGE, KERNEL)
    for n in range(2500):
        session.release(session.create(1, b"%d" % n, 0o644, KERNEL).ino)
    for n in range(0, 2500, 3):
        session.unlink(1, b"%d" % n, KERNEL)


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """A session that was killed: four segments in its journal, all but the last closed."""

    async def live() -> Path:
        async with Session.open("work", tmp_path) as session:
            await lived_in(session)
            session.journal.rotate()
            session.mkdir(1, b"second segment", 0o700, KERNEL)
            session.journal.rotate()
            session.journal.rotate()
            session.mkdir(1, b"fourth segment", 0o700, KERNEL)
            return abandoned(session.directory, tmp_path / "copy")

    return trio.run(live)


def recovered(directory: Path) -> Namespace:
    content = Content(directory / "content")
    namespace, journal = recover(directory, content, crashed=True)
    journal.close()
    content.close()
    check(namespace)
    return namespace


def compact(directory: Path, upto: int, failpoint: str = "") -> subprocess.CompletedProcess[bytes]:
    """The process that makes images, as the session starts it."""
    environment = os.environ | {"MOUNT_SESSION_FAILPOINT": failpoint}
    reader, writer = os.pipe()
    try:
        return subprocess.run(
            [*image.COMMAND, str(directory), str(upto)], stdin=reader, env=environment, capture_output=True, timeout=60
        )
    finally:
        os.close(reader)
        os.close(writer)


def test_a_namespace_is_the_same_after_it_was_saved_and_loaded(crashed: Path, tmp_path: Path) -> None:
    namespace = recovered(crashed)
    image.save(namespace, tmp_path, 17)
    loaded, segment = image.load(tmp_path)
    loaded.bytes = namespace.bytes
    assert segment == 17
    assert snapshot(loaded) == snapshot(namespace)
    assert (tmp_path / "image").stat().st_mode & 0o077 == 0


def test_without_an_image_the_namespace_is_empty_and_begins_with_the_first_segment(tmp_path: Path) -> None:
    namespace, segment = image.load(tmp_path)
    assert (list(namespace.inodes), segment) == ([1], 0)


def test_the_image_is_what_the_segments_were_and_they_are_gone(crashed: Path) -> None:
    expected = snapshot(recovered(crashed))
    assert segments(crashed) == [0, 1, 2, 3]
    done = compact(crashed, 3)
    assert (done.returncode, done.stderr) == (0, b"")
    assert segments(crashed) == [3]
    assert snapshot(recovered(crashed)) == expected
    assert compact(crashed, 3).returncode == 0
    assert snapshot(recovered(crashed)) == expected


def test_images_of_images_are_the_same(crashed: Path) -> None:
    expected = snapshot(recovered(crashed))
    for upto in (1, 2, 3):
        image.compact(crashed, upto)
        assert segments(crashed)[0] == upto
        assert snapshot(recovered(crashed)) == expected


@pytest.mark.parametrize("point", sorted(point for point in POINTS if point.startswith("image.")))
def test_a_crash_in_the_making_of_an_image_loses_nothing_and_leaves_nothing(crashed: Path, point: str) -> None:
    expected = snapshot(recovered(crashed))
    assert compact(crashed, 3, point).returncode == -signal.SIGKILL, f"{point} was not reached"
    assert snapshot(recovered(crashed)) == expected
    left = {path.name for path in crashed.iterdir() if path.name.startswith(("journal", "image"))} - {"image.lock"}
    if point == "image.before-rename":
        assert left == {"journal.0", "journal.1", "journal.2", "journal.3"}
    else:
        assert left == {"image", "journal.3"}
    assert compact(crashed, 3).returncode == 0
    assert snapshot(recovered(crashed)) == expected


def test_an_image_without_its_end_is_damage(crashed: Path) -> None:
    image.compact(crashed, 3)
    path = crashed / "image"
    content = path.read_bytes()
    ends = [end for end, _ in frames(path, torn_ok=False)]
    for length in {0, 1, *ends[:-1], *(end - 1 for end in ends)}:
        path.write_bytes(content[:length])
        with pytest.raises(DamagedState) as caught:
            image.load(crashed)
        assert caught.value.filename == str(path)


def test_a_changed_byte_anywhere_in_an_image_is_damage(crashed: Path) -> None:
    image.compact(crashed, 3)
    path = crashed / "image"
    content = bytearray(path.read_bytes())
    for at in range(0, len(content), len(content) // 50):
        content[at] ^= 0x10
        path.write_bytes(content)
        with pytest.raises(DamagedState):
            image.load(crashed)
        content[at] ^= 0x10
    path.write_bytes(content)
    image.load(crashed)


def test_a_frame_left_out_of_an_image_is_damage(crashed: Path) -> None:
    image.compact(crashed, 3)
    path = crashed / "image"
    content = path.read_bytes()
    ends = [0, *(end for end, _ in frames(path, torn_ok=False))]
    assert len(ends) > 5
    for before, after in zip(ends, ends[1:], strict=False):
        path.write_bytes(content[:before] + content[after:])
        with pytest.raises(DamagedState):
            image.load(crashed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_tmpfs(tmp_path / "disk", 4 << 20) as path:
        yield path


def test_an_image_for_which_there_is_no_room_takes_none(crashed: Path, small_disk: Path) -> None:
    directory = small_disk / "work"
    abandoned(crashed, directory)
    expected = snapshot(recovered(directory))
    filler = fill(small_disk)
    done = compact(directory, 3)
    assert done.returncode != 0
    assert b"No space left" in done.stderr
    assert not (directory / "image.new").exists()
    assert snapshot(recovered(directory)) == expected
    filler.unlink()
    assert compact(directory, 3).returncode == 0
    assert snapshot(recovered(directory)) == expected


def test_the_process_that_makes_an_image_ends_when_its_worker_does(crashed: Path) -> None:
    reader, writer = os.pipe()
    with image.lock(crashed):
        process = subprocess.Popen([*image.COMMAND, str(crashed), "3"], stdin=reader)
        os.close(reader)
        os.close(writer)
        assert process.wait(timeout=30) == -signal.SIGKILL
    assert segments(crashed) == [0, 1, 2, 3]


def test_a_module_in_the_current_directory_is_not_taken_for_ours(
    crashed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a session's."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    monkeypatch.chdir(foreign)
    for name in ("vfs", "msgspec"):
        (foreign / f"{name}.py").write_text("raise SystemExit('not ours')")
    done = compact(crashed, 3)
    assert (done.returncode, done.stderr) == (0, b"")


async def test_a_session_makes_images_by_itself_and_its_journal_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def journal_bytes() -> int:
        present = [segment_path(session.directory, number) for number in segments(session.directory)]
        return sum(path.stat().st_size for path in present if path.exists())

    monkeypatch.setattr("vfs.tree.SEGMENT_BYTES", 20_000)
    async with Session.open("work", tmp_path) as session:
        end = time.monotonic() + 60
        while not (session.directory / "image").exists() or session.journal.segment < 3 or journal_bytes() > 2_000_000:
            assert time.monotonic() < end
            await trio.sleep(0.1 if journal_bytes() > 500_000 else 0)  # a busy machine is slow to make an image
            for n in range(100):
                session.release(session.create(1, b"%d" % n, 0o644, KERNEL).ino)
                session.unlink(1, b"%d" % n, KERNEL)
            await session.fsync(1)
        session.mkdir(1, b"last", 0o700, KERNEL)
        expected = snapshot(session.namespace)
    async with Session.open("work", tmp_path) as session:
        assert snapshot(session.namespace) == expected
        assert journal_bytes() < 2_100_000


async def test_a_session_goes_on_where_no_image_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vfs.tree.SEGMENT_BYTES", 20_000)
    monkeypatch.setattr("vfs.image.COMMAND", ("/nonexistent/python",))
    async with Session.open("work", tmp_path) as session:
        for n in range(2000):
            session.release(session.create(1, b"%d" % n, 0o644, KERNEL).ino)
            if n % 100 == 0:
                await session.fsync(1)
        expected = snapshot(session.namespace)
    assert "the journal grows on" in caplog.text
    async with Session.open("work", tmp_path) as session:
        assert snapshot(session.namespace) == expected
