"""What comes again after a worker's death is noted and done beside what is new; what kills workers is found all the
same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from mount import resend
from mount.inflight import InFlight, Place
from mount.repeated import PATIENCE, Repeated
from mount.resend import Request
from mount.suspicion import Suspicion
from vfs.journal import Journal
from vfs.records import Make
from vfs.replay import match

READ = 15


class Operations(pyfuse3.Operations):
    """Reads wait for their storage; names are changed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.reading: list[int] = []
        self.made: list[bytes] = []
        self.arrives = trio.Event()

    async def read(self, fh: int, off: int, size: int) -> bytes:
        self.reading.append(fh)
        await self.arrives.wait()
        return b""

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> Any:
        self.made.append(name)

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> Any:
        return "the entry"


def read(number: int) -> Request:
    return Request(number, READ, number, 100 + number, b"")


def mkdir(number: int, name: bytes) -> Request:
    return Request(number, resend.MKDIR, 1, 100 + number, bytes(8) + name + b"\0")


def by(thread: int) -> Any:
    return SimpleNamespace(pid=thread)


@pytest.fixture(autouse=True)
def _contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyfuse3's own cannot be made."""
    monkeypatch.setattr("mount.suspicion.pyfuse3", SimpleNamespace(RequestContext=SimpleNamespace))


def watching(directory: Path, operations: Operations, requests: list[Request], *, crashed: bool = True) -> Suspicion:
    """That of a worker which follows one that died."""
    suspicion = Suspicion(directory, adopted=True)
    assert suspicion.convict(requests, crashed=crashed) == []
    suspicion.watch(operations, requests)
    return suspicion


async def test_what_is_new_waits_for_nothing_that_comes_again(tmp_path: Path) -> None:
    operations = Operations()
    watching(tmp_path, operations, [read(1), read(2)])
    async with trio.open_nursery() as nursery:
        for number in (1, 2):
            nursery.start_soon(operations.read, number, 0, 10)
        await trio.testing.wait_all_tasks_blocked()
        await operations.mkdir(1, b"new", 0, by(200))
        assert (sorted(operations.reading), operations.made) == ([1, 2], [b"new"])
        operations.arrives.set()
    assert operations.__dict__.keys() == {"reading", "made", "arrives"}, "nothing stands before it any more"


async def test_what_was_in_hand_alone_is_guilty_and_of_several_none_until_they_are_taken_apart(tmp_path: Path) -> None:
    requests = [read(1), read(2)]
    for in_hand_at_death in ([1, 2], [1], [1]):
        operations = Operations()
        watching(tmp_path, operations, requests)
        async with trio.open_nursery() as nursery:
            for number in (1, 2):
                nursery.start_soon(operations.read, number, 0, 10)
                await trio.testing.wait_all_tasks_blocked()
            assert operations.reading == in_hand_at_death
            note = (tmp_path / "suspect").read_bytes()
            nursery.cancel_scope.cancel()
        (tmp_path / "suspect").write_bytes(note)  # as it was when the worker died
    assert Suspicion(tmp_path, adopted=True).convict(requests, crashed=True) == [requests[0]]


async def test_what_waits_is_not_guilty_of_what_something_new_does(tmp_path: Path) -> None:
    operations = Operations()
    watching(tmp_path, operations, [read(1)])
    async with trio.open_nursery() as nursery:
        for number in (1, 9):
            nursery.start_soon(operations.read, number, 0, 10)
        await trio.testing.wait_all_tasks_blocked()
        note = (tmp_path / "suspect").read_bytes()
        operations.arrives.set()
    (tmp_path / "suspect").write_bytes(note)
    for _ in range(3):
        assert Suspicion(tmp_path, adopted=True).convict([read(1)], crashed=True) == []


async def test_what_has_not_come_with_the_others_is_not_waited_for(tmp_path: Path) -> None:
    operations = Operations()
    watching(tmp_path, operations, [mkdir(1, b"killed")])
    for _ in range(3):
        await operations.mkdir(1, b"new", 0, by(200))
    assert "mkdir" not in operations.__dict__


async def test_what_was_carried_out_is_not_done_again_however_long_it_waits_for_its_turn(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    journal, in_flight = Journal(tmp_path, 0), InFlight(tmp_path, False)
    in_flight.begin("task", Place(journal.segment, journal.size))
    journal.append(Make(1, b"made", 2, 0o40755, 0, 0, 5, pid=102))
    requests = [read(1), mkdir(2, b"made")]
    (tmp_path / "suspect").write_bytes(b'{"apart":true}'.ljust(4096, b"\0"))
    operations = Operations()
    known = [found for request in requests if (found := resend.describe(request))]
    repeated = Repeated(operations, in_flight, match(known, in_flight.left_over(tmp_path)))
    suspicion = watching(tmp_path, operations, requests)
    answers = []

    async def settle() -> None:
        await suspicion.settle()
        await repeated.leave_in_time()

    async def make() -> None:
        answers.append(await operations.mkdir(1, b"made", 0, by(102)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(settle)
        nursery.start_soon(operations.read, 1, 0, 10)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(make)
        await trio.sleep(3 * PATIENCE)
        operations.arrives.set()
    assert (answers, operations.made) == (["the entry"], [])


async def test_what_never_comes_is_waited_for_no_longer_than_patience_lasts(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    operations = Operations()
    suspicion = watching(tmp_path, operations, [mkdir(1, b"killed")])
    with trio.fail_after(2 * PATIENCE):
        await suspicion.settle()
    assert "mkdir" not in operations.__dict__
