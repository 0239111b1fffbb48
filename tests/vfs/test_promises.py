"""What the contract promises integrators of a persistence, seen from a whole session."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.vfs.shelf import BigShelf, Shelf, routes
from vfs.callbacks import Context
from vfs.options import Options
from vfs.persistence import Persistence
from vfs.policy import Policy
from vfs.routes import Route, Routes
from vfs.session import Session
from vfs.telemetry import Call


@pytest.mark.parametrize(
    "callbacks", [("on_write",), ("on_read",), ("on_delete",), ("on_list",), ("on_list", "on_read")]
)
async def test_each_callback_is_optional_and_what_it_would_do_stays_in_the_session(
    tmp_path: Path, callbacks: tuple[str, ...]
) -> None:
    shelf = Shelf()
    shelf.put("/there", b"before")
    target = {name: getattr(shelf, name) for name in callbacks}
    async with Session.open("s", tmp_path, routes=routes(target)) as session:
        await session.files.write("new", b"1")
        await session.files.write("gone", b"1")
        assert (await session.sync()).pending == 0
        await session.files.delete("gone")
        assert (await session.sync()).pending == 0
        assert await session.files.exists("there") is ("on_list" in callbacks)
        assert (shelf.contents.get("/new") == b"1") is ("on_write" in callbacks)
        if callbacks == ("on_list", "on_read"):
            assert await session.files.read("there") == b"before"
    async with Session.open("s", tmp_path, routes=routes(target)) as session:
        assert await session.files.read("new") == b"1"
        assert not await session.files.exists("gone")


class Scope:
    """An integrator's own: it can be neither copied, compared, printed nor serialised."""

    def _refuse(self, *arguments: Any) -> Any:
        raise AssertionError("someone looked at the scope")

    __reduce_ex__ = __eq__ = __repr__ = __str__ = __bool__ = __copy__ = __deepcopy__ = _refuse
    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("make", [Scope, lambda: None])
async def test_the_scope_comes_first_as_it_is_and_nobody_looks_at_it(tmp_path: Path, make: Any) -> None:
    scope, seen = make(), []

    shelf = Shelf()
    shelf.put("/there", b"1")

    def noting(name: str) -> Any:
        async def noted(given: object, *arguments: Any) -> Any:
            seen.append((name, given))
            return await getattr(shelf, name)(given, *arguments)

        return noted

    names = ("on_list", "on_read", "on_write", "on_delete")
    persistence = Persistence({name: noting(name) for name in names}, scope, async_library="trio")
    async with Session.open("s", tmp_path, routes=Routes([Route("", persistence)])) as session:
        await session.files.write("new", b"1")
        await session.files.read("there")
        await session.sync()
        await session.files.delete("new")
    assert {name for name, _ in seen} == set(names)
    assert all(given is scope for _, given in seen)


async def test_options_of_a_route_reach_its_callbacks(tmp_path: Path) -> None:
    shelf = Shelf()
    context: Context = {"session_id": "s", "agent_id": "a", "options": {"table": "files"}}
    async with Session.open(
        "s", tmp_path, routes=Routes([Route("data", Persistence(shelf, base_directory="data", context=context))])
    ) as session:
        await session.files.write("data/f", b"1")
        await session.sync()
    told = shelf.contexts["/data/f"]
    assert (told["options"], told["agent_id"], told["base_directory"]) == ({"table": "files"}, "a", "data")
    assert told["operation"] == "write"


async def test_a_listing_has_what_is_here_and_what_is_there_sorted(tmp_path: Path) -> None:
    shelf = Shelf()
    for path in ("/b", "/d/x", "/going"):
        shelf.put(path, b"1")
    async with Session.open("s", tmp_path, routes=routes(shelf, local_only=["tmp"])) as session:
        shelf.fault = lambda operation, path: (_ for _ in ()).throw(ConnectionError(104, "down"))
        await session.files.write("c", b"not there yet")
        await session.files.write("tmp/a", b"never there")
        await session.files.delete("going")
        assert [ref.path for ref in await session.files.list()] == ["b", "c", "d/x", "tmp/a"]
        shelf.fault = lambda operation, path: None


async def test_a_delete_takes_back_the_write_that_was_waiting(tmp_path: Path, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05  # threads of the session are at work while nothing else is
    shelf = Shelf()
    async with Session.open("s", tmp_path, routes=routes(shelf, debounce=50, max_wait=50)) as session:
        await session.files.write("f", b"1")
        await session.sync()
        await session.files.append("f", b"2")
        await session.files.delete("f")
        await trio.sleep(100)
        assert shelf.contents == {}
        assert [one for one in shelf.log if one[0] != "list"] == [("write", "/f"), ("delete", "/f")]


async def test_fsync_waits_for_the_persistence_where_durability_is_remote(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05  # threads of the session are at work while nothing else is
    shelf = BigShelf()
    policy = Policy(durability="remote")
    slow = routes(shelf, debounce=1000, max_wait=1000)
    async with Session.open("s", tmp_path, policy=policy, routes=slow, options=Options(read_timeout=20)) as session:
        await session.files.write("f", b"1")
        await session.sync()
        await session.files.append("f", b"2")
        ino = session.namespace.walk(b"f").ino
        await session.fsync(ino)
        assert shelf.contents == {"/f": b"12"}
        await session.files.append("f", b"3")

        def refuse(operation: str, path: str) -> None:
            raise PermissionError(errno.EACCES, "not yours")

        shelf.fault = refuse
        with pytest.raises(PermissionError, match="not yours"):
            await session.fsync(ino)
        shelf.fault = lambda operation, path: (_ for _ in ()).throw(ConnectionError(104, "down"))
        with pytest.raises(OSError, match="not persisted in time"):
            await session.fsync(ino)
        shelf.fault = lambda operation, path: None
        await session.fsync(ino)
        assert shelf.contents == {"/f": b"123"}


async def test_each_call_of_a_persistence_is_counted_and_told_with_its_failures(tmp_path: Path) -> None:
    shelf = BigShelf()
    shelf.put("/there", b"12345")
    persistence = Persistence(shelf, name="shelf")
    calls: list[Call] = []
    persistence.telemetry.observers.append(calls.append)
    options = Options(refresh_interval=None)
    async with Session.open("s", tmp_path, routes=Routes([Route("", persistence)]), options=options) as session:
        failures = [ConnectionError(104, "down")]

        def once(operation: str, path: str) -> None:
            if operation == "write" and failures:
                raise failures.pop()

        shelf.fault = once
        await session.files.write("f", b"123")
        await session.files.read("there")
        await session.sync()
        await session.files.delete("f")
    tallies = persistence.telemetry.tallies
    counted = {name: (tally.calls, tally.failures, tally.bytes) for name, tally in tallies.items()}
    assert counted == {
        "on_list": (1, 0, 0),
        "on_read_range": (1, 0, 5),
        "on_write": (2, 1, 3),
        "on_delete": (1, 0, 0),
    }
    assert [(call.path, call.error) for call in calls if call.callback == "on_write"] == [("f", 104), ("f", None)]
    assert all(call.seconds > 0 and call.persistence == "shelf" for call in calls)
