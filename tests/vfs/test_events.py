"""Events: one order that survives crashes, one for each change, nothing that costs memory, hooks that harm nobody."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from trio.testing import MockClock

from tests.disk import fill, small_tmpfs
from tests.vfs.shelf import Shelf, put, routes
from tests.vfs.snapshot import abandoned
from vfs.event import Event, read_events
from vfs.eventlog import EventLog, Mark
from vfs.fileref import FileRef
from vfs.options import Options
from vfs.policy import Policy
from vfs.rules import RENAME_EXCHANGE, Changes
from vfs.session import KERNEL, Session


class Agent(NamedTuple):
    pid: int = os.getpid()
    uid: int = 1001
    gid: int = 1002


AGENT = Agent()
PROGRAM = Path("/proc/self/comm").read_text().strip()
MARK = Mark(0, 0, 0)


async def told(session: Session, since: int = 0) -> list[Event]:
    """The events so far, with those that are still in memory."""
    session.happened.write_all()
    return [event async for event in session.events(since, follow=False)]


def brief(events: list[Event]) -> list[tuple[str, ...]]:
    return [
        (event.kind, event.path) if event.old_path is None else (event.kind, event.path, event.old_path)
        for event in events
    ]


async def write(session: Session, parent: int, name: bytes, content: bytes = b"content") -> int:
    ino = session.create(parent, name, 0o640, AGENT).ino
    await session.write(ino, 0, content)
    session.release(ino)
    return ino


def read(directory: Path, since: int = 0) -> list[Event]:
    """All that is in the log of a session."""
    found: list[Event] = []
    place = None
    while True:
        page, place = read_events(directory.name, directory / "events", since, place=place, most=100)
        if not page:
            return found
        found += page
        since = page[-1].seq


# ---- what is told


async def test_each_change_is_one_event_with_what_it_was_and_who_did_it(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        directory = session.mkdir(1, b"dir", 0o755, AGENT)
        ino = await write(session, directory.ino, b"notes.md")
        session.link(ino, 1, b"link.md", AGENT)
        session.symlink(1, b"symlink", b"dir", AGENT)
        session.rename(1, b"dir", 1, b"moved", 0, AGENT)
        session.rename(1, b"link.md", 1, b"symlink", RENAME_EXCHANGE, AGENT)
        session.unlink(directory.ino, b"notes.md", AGENT)
        session.rmdir(1, b"moved", AGENT)
        events = await told(session)
        made = session.getattr(ino)
    assert brief(events) == [
        ("created", "/dir"),
        ("created", "/dir/notes.md"),
        ("modified", "/dir/notes.md"),
        ("created", "/link.md"),
        ("created", "/symlink"),
        ("moved", "/moved", "/dir"),
        ("moved", "/symlink", "/link.md"),
        ("moved", "/link.md", "/symlink"),
        ("deleted", "/moved/notes.md"),
        ("deleted", "/moved"),
    ]
    assert [event.seq for event in events] == list(range(1, 11))
    assert [event.type for event in events[:5]] == ["directory", "file", "file", "file", "symlink"]
    modified = events[2]
    assert modified.file is not None
    assert (modified.file.size, modified.file.content_type, modified.file.mode) == (7, "text/markdown", 0o640)
    assert modified.file.mtime_ns == made.mtime_ns
    who = {(event.uid, event.gid, event.pid, event.program, event.container) for event in events}
    assert who == {(1001, 1002, AGENT.pid, PROGRAM, None)}
    assert not any(event.recovered or event.remote for event in events)


async def test_a_file_is_modified_once_for_each_last_close_however_often_it_was_written(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = session.create(1, b"f", 0o644, AGENT).ino
        await session.open_file(ino, os.O_RDONLY, KERNEL)
        for number in range(100):
            await session.write(ino, number, b"x")
        session.release(ino)
        assert brief(await told(session)) == [("created", "/f")], "it is still open"
        session.release(ino)
        await session.open_file(ino, os.O_RDWR, AGENT)
        session.release(ino)
        events = await told(session)
        assert brief(events) == [("created", "/f"), ("modified", "/f")], "closed without a write is no change"
        assert events[1].file is not None and events[1].file.size == 100 and events[1].uid == 1001


async def test_a_file_that_stays_open_is_told_of_once_a_minute(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = session.create(1, b"log", 0o644, AGENT).ino
        for second in range(300):
            await session.write(ino, second, b"x")
            await trio.sleep(1)
        modified = [event for event in await told(session) if event.kind == "modified"]
        assert 4 <= len(modified) <= 5


async def test_what_is_changed_without_being_open_is_told_when_it_is_quiet(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = await write(session, 1, b"f")
        for mode in range(0o600, 0o610):
            await session.setattr(ino, Changes(mode=mode), AGENT)
            await trio.sleep(0.5)
        assert session.happened.log.last == 2
        await trio.sleep(2)
        await session.setattr(ino, Changes(size=3), AGENT)
        await trio.sleep(2)
        await session.setattr(ino, Changes(atime_ns=5), AGENT)
        await trio.sleep(2)
        events = await told(session, 2)
        assert [(event.kind, event.attributes) for event in events] == [("modified", True), ("modified", False)]
        assert events[1].file is not None and events[1].file.size == 3


async def test_a_file_that_takes_anothers_place_through_the_python_api_is_one_event(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        await session.files.write("a", b"one")
        await session.files.write("a", b"three")
        events = await told(session)
        assert [(event.kind, event.path, event.file and event.file.size) for event in events] == [
            ("created", "/a", 3),
            ("modified", "/a", 5),
        ]


async def test_a_name_that_is_no_utf8_is_told_exactly(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        session.mkdir(1, b"\xff", 0o755, AGENT)
        (event,) = await told(session)
        assert (event.path, event.path_base64) == ("/\\xff", "L/8=")


async def test_a_soft_limit_that_is_passed_is_told(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path, policy=Policy(soft_bytes=3)) as session:
        await write(session, 1, b"f")
        limits = [event.limit for event in await told(session) if event.kind == "soft_limit"]
        assert limits == [{"of": "bytes", "used": 7, "limit": 3}]


# ---- the persistence


async def test_what_reaches_the_persistence_is_told_and_what_fails_and_conflicts(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    failing = [True]

    def fault(operation: str, path: str) -> None:
        if failing and path == "/b":
            raise OSError(errno.ENOSPC, "the shelf is full")

    shelf.fault = fault
    async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
        ino = await put(session, "a", b"base")
        await put(session, "b", b"b")
        await trio.sleep(5)
        failing.clear()
        await session.sync()
        shelf.put("/a", b"theirs")
        await session.write(ino, 0, b"ours")
        await session.sync()
        session.unlink(1, b"b", KERNEL)
        await session.sync()
        events = await told(session)
    synced = [event for event in events if event.kind == "synced"]
    assert [event.path for event in synced] == ["/a", "/b", "/a.conflict-s-1", "/b"]
    assert synced[0].file is not None and synced[0].file.version == "v1" and synced[0].file.size == 4
    assert synced[0].file.checksum and synced[3].file is None
    (error,) = [event for event in events if event.kind == "error"]
    assert error.path == "/b" and error.message is not None and "the shelf is full" in error.message
    (conflict,) = [event for event in events if event.kind == "conflict"]
    assert (conflict.path, conflict.old_path) == ("/a", "/a.conflict-s-1")
    assert ("moved", "/a.conflict-s-1", "/a") in brief(events)
    theirs = next(event for event in events if event.remote and event.kind == "created")
    assert theirs.path == "/a"


async def test_what_a_persistence_has_at_opening_is_no_news_and_what_others_add_is(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    shelf.put("/old", b"x")
    async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
        assert await told(session) == []
        shelf.put("/dir/new", b"x")
        await session.refresh()  # type: ignore[attr-defined]
        assert brief(await told(session)) == [("created", "/dir"), ("created", "/dir/new")]
        assert all(event.remote for event in await told(session))


# ---- crashes


async def test_a_crash_loses_no_event_of_what_was_done_before_it(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        old = await write(session, 1, b"old")
        closed = await write(session, 1, b"closed")
        before = await told(session)
        directory = session.mkdir(1, b"dir", 0o755, AGENT)
        await write(session, directory.ino, b"in it")
        session.rename(1, b"dir", 1, b"renamed", 0, AGENT)
        session.unlink(directory.ino, b"in it", AGENT)
        open_one = session.create(1, b"open", 0o644, AGENT)
        await session.write(open_one.ino, 0, b"x")
        await session.open_file(old, os.O_WRONLY, AGENT)
        await session.write(old, 0, b"in place: no record tells of this one")
        await session.setattr(closed, Changes(mode=0o600), AGENT)
        copy = abandoned(session.directory, tmp_path / "again" / "work")
    assert read(copy) == before
    async with Session.open("work", tmp_path / "again") as session:
        again = await told(session)
        await session.happened.finish()
        again = await told(session)
    assert again[:4] == before and [event.seq for event in again] == list(range(1, len(again) + 1))
    assert brief(again[4:9]) == [
        ("created", "/dir"),
        ("created", "/dir/in it"),
        ("moved", "/renamed", "/dir"),
        ("deleted", "/renamed/in it"),
        ("created", "/open"),
    ]
    assert all(event.recovered and event.pid == AGENT.pid for event in again[4:9])
    assert sorted(brief(again[9:])) == [("modified", "/closed"), ("modified", "/old"), ("modified", "/open")]


CHANGES = """
import os, sys, trio
from pathlib import Path
from vfs.session import KERNEL, Session

async def main(state, begin):
    async with Session.open("work", state) as session:
        for number in range(begin, begin + 100000):
            ino = session.create(1, b"%d" % number, 0o644, KERNEL).ino
            await session.write(ino, 0, b"x")
            session.release(ino)
            os.write(1, b"%d\\n" % number)
            if number % 3 == 0:
                await trio.sleep(0.001)

trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
"""


def test_kill9_at_any_time_gives_no_number_twice_and_every_change_its_event(tmp_path: Path) -> None:
    acknowledged: list[int] = []
    seen: list[Event] = []
    for enough in (40, 3, 150):
        begin = acknowledged[-1] + 2 if acknowledged else 0  # one may be there that was not acknowledged
        command = [sys.executable, "-c", CHANGES, str(tmp_path), str(begin)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for line in process.stdout:
                acknowledged.append(int(line))
                if acknowledged[-1] == begin + enough:
                    seen = _extended(seen, read(tmp_path / "work"))
                    process.send_signal(signal.SIGKILL)
        seen = _extended(seen, read(tmp_path / "work"))

    async def reopen() -> None:
        async with Session.open("work", tmp_path):
            pass

    trio.run(reopen)
    seen = _extended(seen, read(tmp_path / "work"))
    for kind in ("created", "modified"):
        names = [int(event.path[1:]) for event in seen if event.kind == kind]
        assert set(acknowledged) <= set(names), kind
    created = [event.path for event in seen if event.kind == "created"]
    assert len(set(created)) == len(created)
    assert any(event.recovered for event in seen)


def _extended(before: list[Event], now: list[Event]) -> list[Event]:
    """What is read now, if it is what was read before and more."""
    assert now[: len(before)] == before
    assert [event.seq for event in now] == list(range(1, len(now) + 1))
    return now


async def test_a_log_that_was_cut_anywhere_goes_on_with_whole_events(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path / "a") as session:
        for number in range(3):
            await write(session, 1, b"%d" % number)
            session.happened.write_all()
        whole = brief(await told(session))
        copy = abandoned(session.directory, tmp_path / "b" / "work")
    (segment,) = (copy / "events").iterdir()
    content = segment.read_bytes()
    for cut in range(0, len(content), 29):
        segment.write_bytes(content[:cut])
        log = EventLog(copy / "events", 1 << 20)
        log.append([("created", 0, b"next", None, None, 0, 0, 0, 0, None, None, None)], MARK, {})
        log.close()
        events = read(copy)
        assert brief(events[:-1]) == whole[: len(events) - 1] and events[-1].path == "/next"
        assert [event.seq for event in events] == list(range(1, len(events) + 1))


async def test_after_power_loss_no_number_that_may_have_been_read_comes_again(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path / "a") as session:
        await write(session, 1, b"f")
        await told(session)
        copy = abandoned(session.directory, tmp_path / "b" / "work")
    (copy / "lock").write_bytes(b"0" * 36)
    async with Session.open("work", tmp_path / "b") as session:
        session.mkdir(1, b"dir", 0o755, AGENT)
        events = await told(session)
        assert brief(events)[:2] == [("created", "/f"), ("modified", "/f")] and brief(events)[-1] == ("created", "/dir")
        assert events[-1].seq > 1_000_000


async def test_a_full_disk_keeps_events_until_there_is_room(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "disk", 4 << 20) as disk:
        async with Session.open("work", disk) as session:
            await write(session, 1, b"f")
            await told(session)
            filler = fill(disk)
            with pytest.raises(OSError):
                for _ in range(1000):
                    session.setxattr(1, b"user.x", b"x" * 1000, KERNEL)
            session.unlink(1, b"f", AGENT)
            while session.happened.write():  # the log's last block may have room for some
                session.happened.failed(b"f", OSError(errno.EIO, "x" * 100))
            filler.unlink()
            kinds = [event.kind for event in await told(session)]
            assert kinds[:3] == ["created", "modified", "deleted"]


# ---- readers


async def test_who_follows_is_told_of_what_comes(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        session.mkdir(1, b"before", 0o755, AGENT)
        session.happened.write_all()
        events = session.events(since=None)
        async with trio.open_nursery() as nursery:
            found: list[Event] = []

            async def follow() -> None:
                with trio.fail_after(10):
                    found.append(await anext(events))
                    found.append(await anext(events))

            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked()
            session.mkdir(1, b"a", 0o755, AGENT)
            session.mkdir(1, b"b", 0o755, AGENT)
        await events.aclose()  # type: ignore[attr-defined]
        assert brief(found) == [("created", "/a"), ("created", "/b")]


async def test_the_log_is_bounded_and_who_is_behind_it_is_told_what_was_lost(tmp_path: Path) -> None:
    limit = 256 << 10
    async with Session.open("work", tmp_path, options=Options(event_bytes=limit)) as session:
        for number in range(4000):
            session.mkdir(1, b"%0100d" % number, 0o755, AGENT)
        events = await told(session)
        size = sum(file.stat().st_size for file in (session.directory / "events").iterdir())
        assert size <= limit + (128 << 10)
        assert events[0].kind == "lost" and events[0].missed == events[0].seq > 0
        assert [event.seq for event in events] == list(range(events[0].seq, 4001))
        assert brief(await told(session, 3999)) == [("created", f"/{3999:0100d}")]
        ahead = await told(session, 10_000)
        assert ahead[0].kind == "lost" and ahead[1:] == events[1:], "the number is another log's"


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_half_a_million_events_are_replayed_to_a_slow_reader_without_growth(tmp_path: Path) -> None:
    many = 500_000
    async with Session.open("work", tmp_path, options=Options(event_bytes=1 << 30)) as session:
        row = ("created", 0, b"dir/some-file-of-an-agent.py", None, 0o100644, 4096, 0, 0, 0, 1001, 1001, None)
        for _ in range(0, many, 10_000):
            session.happened.log.append([row] * 10_000, MARK, {})
        events = session.events(follow=True)
        for _ in range(1000):
            await anext(events)
        begin = resident()
        seq = most = 0
        for count in range(1000, many):
            seq = (await anext(events)).seq
            if count % 20_000 == 0:  # the session goes on meanwhile
                most = max(most, resident())
                session.mkdir(1, b"%d" % count, 0o755, AGENT)
        await events.aclose()  # type: ignore[attr-defined]
        assert seq == many
        print(f"{(most - begin) / 1e6:.1f} MB more at most")
        assert most - begin < 16 << 20


# ---- hooks


class Recorder:
    """Hooks of each kind; the session must not notice that one fails."""

    def __init__(self, failure: BaseException) -> None:
        self.failure = failure
        self.told: list[tuple[Any, ...]] = []

    def on_file_created(self, file: FileRef, session_id: str) -> None:
        self.told.append(("created", file.path, session_id))
        if file.path == "/bad":
            raise self.failure

    async def on_file_modified(self, file: FileRef, session_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append(("modified", file.path, file.size))

    def on_file_moved(self, file: FileRef, session_id: str, old_path: str) -> None:
        self.told.append(("moved", file.path, old_path))

    def on_file_deleted(self, file: FileRef, session_id: str) -> None:
        self.told.append(("deleted", file.path))


@pytest.mark.parametrize("failure", [RuntimeError, asyncio.CancelledError])
async def test_hooks_are_called_in_order_and_one_that_fails_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, failure: type[BaseException]
) -> None:
    hooks = Recorder(failure("a hook that fails"))
    async with Session.open("work", tmp_path, options=Options(hooks=hooks)) as session:
        await write(session, 1, b"bad")
        session.mkdir(1, b"no file", 0o755, AGENT)
        session.rename(1, b"bad", 1, b"good", 0, AGENT)
        session.unlink(1, b"good", AGENT)
    assert hooks.told == [
        ("created", "/bad", "work"),
        ("modified", "/bad", 7),
        ("moved", "/good", "/bad"),
        ("deleted", "/good"),
    ]
    assert "a hook that fails" in caplog.text and "on_file_created" in caplog.text


async def test_the_synced_hook_is_told_what_the_persistence_has(tmp_path: Path) -> None:
    synced: list[tuple[str, str | None]] = []
    hooks: dict[str, Callable[..., None]] = {"on_file_synced": lambda file, _: synced.append((file.path, file.version))}
    async with Session.open("s", tmp_path, routes=routes(Shelf()), options=Options(hooks=hooks)) as session:
        await put(session, "a", b"x")
        await session.sync()
    assert synced == [("/a", "v1")]


async def test_a_hook_that_cannot_be_called_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="on_file_created"):
        async with Session.open("work", tmp_path, options=Options(hooks={"on_file_created": 5})):
            raise AssertionError("opened")
