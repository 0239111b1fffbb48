"""What is done in a session reaches its persistence: when, in which order, and whatever fails on the way."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.vfs.shelf import BigShelf, Crash, Shelf, content, flaky, put, routes
from vfs.errors import Conflict
from vfs.notes import MOST
from vfs.options import Options
from vfs.pace import PATIENCE
from vfs.policy import Policy
from vfs.session import Session
from vfs.tree import KERNEL


def opened(tmp_path: Path, target: object, options: Options | None = None, **policy: Any) -> Any:
    return Session.open("s", tmp_path, routes=routes(target, **policy), options=options)


async def test_a_new_file_is_written_at_its_last_close(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf, debounce=100, max_wait=1000) as session:
        ino = session.create(1, b"a", 0o644, KERNEL).ino
        await session.write(ino, 0, b"hello")
        await trio.sleep(50)
        assert shelf.contents == {}
        session.release(ino)
        await trio.sleep(0.1)
        assert shelf.contents == {"/a": b"hello"}
        assert shelf.contexts["/a"]["size"] == 5
        assert shelf.contexts["/a"]["if_version"] is None


async def test_more_changes_than_are_kept_for_later_all_arrive(tmp_path: Path) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf) as session:
        for n in range(MOST // 2 + 1):
            session.release(session.create(1, b"%d" % n, 0o644, KERNEL).ino)
            session.rename(1, b"%d" % n, 1, b"renamed %d" % n, 0, KERNEL)
        await session.sync()
        assert set(shelf.contents) == {f"/renamed {n}" for n in range(MOST // 2 + 1)}


async def test_a_sync_without_time_loses_nothing_and_says_that_there_is_more(tmp_path: Path) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf) as session:
        for n in range(300):
            await put(session, f"d/{n}", b"x")
        assert (await session.sync()).pending == 0
        asked = itertools.count()
        session.requests = lambda: next(asked)  # programs go on, so write-back does not look by itself
        session.rename(1, b"d", 1, b"e", 0, KERNEL)
        assert (await session.sync(within=0)).pending >= 300
        assert (await session.sync()).pending == 0
        assert set(shelf.contents) == {f"/e/{n}" for n in range(300)}


async def test_an_edit_in_the_middle_of_much_work_waits_like_any_other(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf, debounce=2, max_wait=8) as session:
        ino = await put(session, "a", b"whole")
        await session.sync()
        asked = itertools.count()
        session.requests = lambda: next(asked)
        session.mkdir(1, b"d", 0o755, KERNEL)
        await trio.sleep(PATIENCE - 0.5)
        await session.write(ino, 0, b"half")
        await trio.sleep(1)
        assert shelf.contents == {"/a": b"whole"}


async def test_an_edit_waits_until_nobody_has_written_for_the_debounce(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf, debounce=5, max_wait=60) as session:
        ino = await put(session, "a", b"one")
        await session.sync()
        for n in range(3):
            await trio.sleep(4)
            await session.write(ino, 0, b"%03d" % n)
        assert shelf.contents == {"/a": b"one"}
        await trio.sleep(5.1)
        assert shelf.contents == {"/a": b"002"}
        assert [operation for operation, _ in shelf.calls] == ["write", "write"]


async def test_a_file_that_is_written_all_the_time_goes_out_after_the_maximum_wait(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf, debounce=5, max_wait=20) as session:
        ino = await put(session, "a", b"")
        await session.sync()
        for n in range(25):
            await session.write(ino, n, b"x")
            await trio.sleep(1)
        assert 19 <= len(shelf.contents["/a"]) <= 22


async def test_a_delete_and_a_rename_go_out_at_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf, debounce=100, max_wait=1000) as session:
        await put(session, "a", b"a")
        await put(session, "b", b"b")
        await session.sync()
        session.unlink(1, b"a", KERNEL)
        session.rename(1, b"b", 1, b"c", 0, KERNEL)
        await trio.sleep(0.2)
        assert shelf.contents == {"/c": b"b"}
        assert shelf.log.index(("write", "/c")) < shelf.log.index(("delete", "/b"))


async def test_a_renamed_directory_is_moved_file_by_file_in_the_persistence(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        for n in range(5):
            await put(session, f"old/d/{n}", b"%d" % n)
        await session.sync()
        shelf.log.clear()
        session.rename(1, b"old", 1, b"new", 0, KERNEL)
        receipt = await session.sync()
        assert receipt.pending == 0
        assert shelf.contents == {f"/new/d/{n}": b"%d" % n for n in range(5)}
        assert {operation for operation, _ in shelf.calls} == {"stat", "move"}


async def test_a_large_file_may_take_its_time_to_be_copied_there(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        await put(session, "old", b"x" * (20 << 20))
        await session.sync()
        shelf.log.clear()
        # there, and back: longer than the 30 s that a small one has
        shelf.delay = lambda: 22.0 if shelf.log[-1][0] == "move" else 0.0
        session.rename(1, b"old", 1, b"new", 0, KERNEL)
        assert (await session.sync()).pending == 0
        assert [operation for operation, _ in shelf.calls if operation == "move"] == ["move"]


async def test_a_swap_of_two_files_ends_with_the_right_contents(tmp_path: Path, autojump_clock: MockClock) -> None:
    for kind in (Shelf, BigShelf):
        shelf = kind()
        async with Session.open(kind.__name__, tmp_path, routes=routes(shelf)) as session:
            await put(session, "a", b"a")
            await put(session, "b", b"b")
            await session.sync()
            session.rename(1, b"a", 1, b"b", 2, KERNEL)  # RENAME_EXCHANGE
            assert (await session.sync()).pending == 0
            assert shelf.contents == {"/a": b"b", "/b": b"a"}


async def test_an_upload_never_marks_newer_bytes_clean(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.delay = lambda: 10.0
    async with opened(tmp_path, shelf, debounce=1) as session:
        ino = await put(session, "a", b"old")
        await trio.sleep(5)
        assert shelf.calls == [("write", "/a")]
        await session.write(ino, 0, b"new")
        await trio.sleep(6)
        assert shelf.contents == {"/a": b"old"}
        await session.sync()
        assert shelf.contents == {"/a": b"new"}


async def test_what_was_written_after_a_synced_crash_is_not_taken_for_synced(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    with pytest.raises(Crash):
        async with opened(tmp_path, shelf) as session:
            ino = await put(session, "a", b"old")
            await session.sync()
            raise Crash
    async with opened(tmp_path, shelf) as session:
        await session.write(ino, 0, b"new")
        await session.sync()
        assert shelf.contents == {"/a": b"new"}


async def test_a_large_file_that_is_written_during_its_upload_never_arrives_half_old(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.02  # the content is read in threads, which the clock does not wait for
    shelf = BigShelf()
    shelf.delay = lambda: 0.5
    seen: list[bytes] = []
    async with opened(tmp_path, shelf, debounce=1, max_wait=3) as session:
        ino = await put(session, "a", b"0" * (3 << 20))
        for n in range(1, 30):
            await trio.sleep(0.7)
            digit = b"%d" % (n % 10)
            for at in (2, 1, 0):
                await session.write(ino, at << 20, digit * (1 << 20))
            if "/a" in shelf.files:
                seen.append(shelf.contents["/a"])
        await session.sync()
        assert shelf.contents["/a"] == b"9" * (3 << 20)
    assert seen, "a file that is never left in peace must arrive all the same"
    assert all(len(set(content)) == 1 for content in seen)


async def test_a_persistence_that_is_down_for_an_hour_stops_nobody_and_all_arrives(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    down = True

    def fault(operation: str, path: str) -> None:
        if down and operation != "list":
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    shelf.fault = fault
    async with opened(tmp_path, shelf) as session:
        for n in range(20):
            await put(session, f"f{n}", b"%d" % n)
        await trio.sleep(3600)
        assert await content(session, "f7") == b"7"
        receipt = session.receipt()
        assert receipt.pending == 20
        assert "refused" in receipt.reasons[0].error
        tries = len(shelf.calls)
        assert 20 * 60 < tries < 20 * 400
        down = False
        await trio.sleep(61)
        assert len(shelf.contents) == 20
        assert session.receipt().pending == 0


async def test_what_is_in_vain_each_time_is_tried_with_pauses_and_says_why(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = BigShelf()

    def fault(operation: str, path: str) -> None:
        if operation == "move":
            raise Conflict(path)

    async with opened(tmp_path, shelf) as session:
        await put(session, "a", b"here")
        await session.sync()
        shelf.delay, shelf.fault = lambda: 0.01, fault
        session.rename(1, b"a", 1, b"b", 0, KERNEL)
        receipt = await session.sync(within=60)
        [why] = [pending.error for pending in receipt.reasons if pending.path == "b"]
        assert "something else comes first" in why
        assert len(shelf.calls) < 200
        shelf.fault = lambda operation, path: None
        assert (await session.sync()).pending == 0
        assert shelf.contents == {"/b": b"here"}


async def test_an_error_that_will_not_pass_ends_a_sync_with_the_reason(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()

    def fault(operation: str, path: str) -> None:
        if path == "/bad":
            raise PermissionError(errno.EACCES, "not yours")

    shelf.fault = fault
    async with opened(tmp_path, shelf) as session:
        await put(session, "bad", b"1")
        await put(session, "good", b"2")
        receipt = await session.sync()
        assert receipt.pending == 1
        assert [(reason.path, reason.tries > 0) for reason in receipt.reasons] == [("bad", True)]
        assert "not yours" in receipt.reasons[0].error
        assert receipt.stored.keys() == {"good"}


async def test_a_sync_with_a_limit_says_what_is_pending(tmp_path: Path, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.02
    shelf = Shelf()
    shelf.delay = lambda: 12.0
    async with opened(tmp_path, shelf) as session:
        await put(session, "a", b"1")
        receipt = await session.sync(within=5)
        assert (receipt.pending, receipt.reasons[0].path) == (1, "a")
        assert (await session.sync()).pending == 0


async def test_a_deletion_that_was_not_carried_out_survives_a_crash(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    with pytest.raises(Crash):
        async with opened(tmp_path, shelf) as session:
            await put(session, "a", b"a")
            await session.sync()
            session.unlink(1, b"a", KERNEL)
            raise Crash
    assert shelf.contents == {"/a": b"a"}
    async with opened(tmp_path, shelf) as session:
        await session.sync()
        assert shelf.contents == {}


async def test_an_upload_whose_answer_was_lost_is_no_conflict(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    lose = True
    shelf.lost = lambda operation, path: lose and operation == "write"
    with pytest.raises(Crash):
        async with opened(tmp_path, shelf) as session:
            ino = await put(session, "a", b"first")
            await trio.sleep(0.1)
            assert shelf.contents == {"/a": b"first"}
            raise Crash
    lose = False
    async with opened(tmp_path, shelf) as session:
        await session.write(ino, 0, b"later")
        assert (await session.sync()).pending == 0
        assert shelf.contents == {"/a": b"later"}


async def test_the_end_of_a_session_is_a_sync(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf, debounce=100, max_wait=1000) as session:
        ino = session.create(1, b"a", 0o644, KERNEL).ino
        await session.write(ino, 0, b"still open")
    assert shelf.contents == {"/a": b"still open"}


async def test_the_end_of_a_session_waits_no_longer_than_it_may(tmp_path: Path, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.02
    shelf = Shelf()
    shelf.fault = flaky(1, 1.0)
    began = trio.current_time()
    async with opened(tmp_path, shelf, Options(stop_timeout=7)) as session:
        await put(session, "a", b"1")
    assert 7 <= trio.current_time() - began < 8


async def test_both_names_of_a_hard_link_are_files_there(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf) as session:
        ino = await put(session, "a", b"one")
        session.link(ino, 1, b"b", KERNEL)
        await session.sync()
        assert shelf.contents == {"/a": b"one", "/b": b"one"}
        await session.write(ino, 0, b"two")
        await session.sync()
        assert shelf.contents == {"/a": b"two", "/b": b"two"}


async def test_a_file_in_whose_place_a_directory_is_goes_from_the_persistence(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf) as session:
        await put(session, "a", b"file")
        await session.sync()
        session.unlink(1, b"a", KERNEL)
        await put(session, "a/b", b"below")
        await session.sync()
        assert shelf.contents == {"/a/b": b"below"}


async def test_what_is_local_only_is_never_written(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf, local_only=["node_modules"]) as session:
        await put(session, "node_modules/x/y", b"1")
        await put(session, "src/y", b"2")
        await session.sync()
        assert shelf.contents == {"/src/y": b"2"}
        node_modules = session.lookup(1, b"node_modules").ino
        session.rename(node_modules, b"x", 1, b"x", 0, KERNEL)
        await session.sync()
        assert shelf.contents == {"/src/y": b"2", "/x/y": b"1"}


async def test_at_most_so_many_at_once_as_the_options_say(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.delay = lambda: 0.1
    async with opened(tmp_path, shelf, Options(concurrency=4, max_concurrency=6)) as session:
        for n in range(100):
            await put(session, f"{n}", b"x")
        await session.sync()
        assert 4 <= shelf.most_at_once <= 6


async def test_ten_thousand_small_files_are_there_within_ten_seconds(tmp_path: Path) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf) as session:
        directory = session.mkdir(1, b"d", 0o755, KERNEL).ino
        for n in range(10_000):
            ino = session.create(directory, b"%d" % n, 0o644, KERNEL).ino
            await session.write(ino, 0, b"x" * 4096)
            session.release(ino)
        began = trio.current_time()
        receipt = await session.sync()
        assert receipt.pending == 0
        assert len(shelf.files) == 10_000
        assert trio.current_time() - began < 10


async def test_with_remote_durability_fsync_answers_when_the_persistence_has_the_file(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.02
    shelf = Shelf()
    async with Session.open(
        "s", tmp_path, routes=routes(shelf, debounce=50, max_wait=100), policy=Policy(durability="remote")
    ) as session:
        ino = session.create(1, b"a", 0o644, KERNEL).ino
        await session.write(ino, 0, b"x")
        await session.fsync(ino)
        assert shelf.contents == {"/a": b"x"}

        def fault(operation: str, path: str) -> None:
            raise PermissionError(errno.EACCES, "no")

        shelf.fault = fault
        await session.write(ino, 0, b"y")
        with pytest.raises(PermissionError):
            await session.fsync(ino)
        shelf.fault = lambda operation, path: None


@pytest.mark.parametrize("crash", [False, True])
async def test_a_file_deleted_before_the_lost_answer_to_its_upload_does_not_stay_there(
    tmp_path: Path, autojump_clock: MockClock, crash: bool
) -> None:
    shelf = Shelf()
    shelf.lost = lambda operation, path: operation == "write"
    ended = False
    try:
        async with opened(tmp_path, shelf, Options(refresh_interval=None)) as session:
            await put(session, "a", b"a")
            await trio.sleep(0.05)
            assert shelf.contents == {"/a": b"a"}
            session.unlink(1, b"a", KERNEL)
            if crash:
                raise Crash
            assert (await session.sync()).pending == 0
            ended = True
    except Crash:
        async with opened(tmp_path, shelf) as session:
            assert (await session.sync()).pending == 0
            assert not session.namespace.root.entries
    assert ended is not crash
    assert shelf.contents == {}


async def test_a_session_that_another_process_goes_on_with_waits_for_nothing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.02
    shelf = Shelf()
    async with opened(tmp_path, shelf) as session:
        shelf.delay = lambda: 10.0
        await put(session, "a", b"x")
        session.leaving = True
        began = trio.current_time()
    assert trio.current_time() - began < 1
    shelf.delay = lambda: 0.0
    async with opened(tmp_path, shelf) as session:
        assert (await session.sync()).pending == 0
        assert shelf.contents == {"/a": b"x"}
