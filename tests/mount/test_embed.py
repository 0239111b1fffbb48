"""A session mounted from a program in three lines, whatever it runs on, with its live objects as the persistence."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from mount.embed import RouteConfig, mounted
from vfs.blockmap import BLOCK
from vfs.callbacks import Context
from vfs.errors import Conflict
from vfs.fileref import FileRef

pytestmark = pytest.mark.mount


class Shelf:
    """Files in a dictionary; async callbacks, which note where they were carried out."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.scopes: set[Any] = set()
        self.threads: set[int] = set()

    async def on_list(self, scope: Any, context: Context) -> list[str]:
        return list(self.files)

    async def on_read(self, scope: Any, path: str, context: Context) -> bytes:
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    async def on_write(self, scope: Any, path: str, content: bytes, context: Context) -> None:
        self.scopes.add(scope)
        self.threads.add(threading.get_ident())
        self.files[path] = content

    async def on_delete(self, scope: Any, path: str, context: Context) -> None:
        self.files.pop(path, None)


class User:
    """A scope that cannot be serialised."""


@pytest.fixture
def places(tmp_path: Path) -> Iterator[dict[str, Any]]:
    (tmp_path / "mnt").mkdir()
    yield {"mountpoint": tmp_path / "mnt", "state": tmp_path / "state"}


def test_a_synchronous_program_mounts_in_three_lines(places: dict[str, Any]) -> None:
    shelf, user = Shelf(), User()
    shelf.files["/there"] = b"before"
    with mounted("s", **places, callbacks=shelf, scope=user) as session:
        assert (session.path / "there").read_bytes() == b"before"
        (session.path / "made").write_bytes(b"here")
        receipt = session.sync()
        assert receipt.pending == 0
        assert shelf.files["/made"] == b"here"
        assert shelf.scopes == {user}
    assert session.receipt is not None
    assert session.receipt.pending == 0
    assert not places["mountpoint"].is_mount()


class Versions:
    """One file, read by ranges of one version. Who asks for bytes of `held` waits until it is let go."""

    def __init__(self, content: bytes) -> None:
        self.content, self.version = content, 1
        self.held = range(0)
        self.asked, self.let_go = threading.Event(), threading.Event()

    def on_list(self, scope: Any, context: Context) -> list[FileRef]:
        made = datetime.now(UTC)
        return [FileRef(path="/file", size=len(self.content), version=str(self.version), created_at=made)]

    def on_read_range(self, scope: Any, path: str, offset: int, size: int, context: Context) -> bytes:
        if offset in self.held:
            self.asked.set()
            assert self.let_go.wait(30)
        if context["if_version"] != str(self.version):
            raise Conflict(path, str(self.version))
        return self.content[offset : offset + size]


def test_who_opens_a_file_that_changed_elsewhere_sees_no_page_of_the_old_one(places: dict[str, Any]) -> None:
    """The kernel forgets pages in their order, and waits at one that is being read. Those behind it are old so long."""
    last, end = 8 * BLOCK - 4096, 8 * BLOCK
    store = Versions(b"o" * end)
    seen: dict[str, bytes] = {}

    def look(who: str, offset: int) -> None:
        with (places["mountpoint"] / "file").open("rb", buffering=0) as file:
            seen[who] = os.pread(file.fileno(), 4096, offset)

    def begin(who: str, offset: int) -> threading.Thread:
        thread = threading.Thread(target=look, args=(who, offset))
        thread.start()
        return thread

    with mounted("s", **places, callbacks=store) as session:
        look("before", last)
        store.held = range(2 * BLOCK, 4 * BLOCK)
        slow = begin("meanwhile", 3 * BLOCK)
        assert store.asked.wait(30)
        store.content, store.version = b"n" * (end + 4096), 2
        assert session.refresh().changed == 1
        quick = begin("after", last)
        quick.join(0.5)
        store.let_go.set()
        slow.join(30)
        quick.join(30)
        assert (session.path / "file").read_bytes() == store.content
    assert seen == {"before": b"o" * 4096, "meanwhile": b"n" * 4096, "after": b"n" * 4096}


def test_asyncio_callbacks_run_in_the_loop_that_mounted(places: dict[str, Any]) -> None:
    shelf = Shelf()

    async def program() -> None:
        async with mounted("s", **places, callbacks=shelf) as session:
            await asyncio.to_thread((session.path / "made").write_bytes, b"here")
            with pytest.raises(RuntimeError, match="use `synced`"):
                session.sync()
            assert (await session.synced()).pending == 0
        assert shelf.threads == {threading.get_ident()}

    asyncio.run(program())
    assert shelf.files == {"/made": b"here"}


async def test_trio_callbacks_run_in_the_loop_that_mounted(places: dict[str, Any]) -> None:
    shelf = Shelf()
    async with mounted("s", **places, callbacks=shelf) as session:
        await trio.to_thread.run_sync((session.path / "made").write_bytes, b"here")
        assert (await session.synced()).pending == 0
    assert shelf.files == {"/made": b"here"}
    assert shelf.threads == {threading.get_ident()}


def test_what_up_refuses_is_refused(places: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a/b"), mounted("a/b", **places):
        pass
    places["mountpoint"].rmdir()
    with pytest.raises(FileNotFoundError), mounted("s", **places):
        pass


def test_nothing_is_mounted_after_an_exception(places: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="mine"), mounted("s", **places) as session:
        (session.path / "made").write_bytes(b"here")
        raise RuntimeError("mine")
    assert not places["mountpoint"].is_mount()
    with mounted("s", **places) as session:
        assert (session.path / "made").read_bytes() == b"here"


def test_a_program_whose_standard_error_is_no_file_can_mount(
    places: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with mounted("s", **places) as session:
        (session.path / "made").write_bytes(b"here")
    assert session.receipt is not None
    assert session.receipt.files == 1


def test_a_task_cancelled_while_it_mounts_leaves_no_mount(places: dict[str, Any]) -> None:
    async def program() -> None:
        entering = asyncio.ensure_future(mounted("s", **places).__aenter__())
        await asyncio.sleep(0)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert not places["mountpoint"].is_mount()

    asyncio.run(program())
    with mounted("s", **places) as session:
        (session.path / "made").write_bytes(b"here")


def test_who_interrupts_a_program_that_is_mounting_ends_it_and_leaves_no_mount(places: dict[str, Any]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            mounted("s", **places, callbacks="tests.mount.interrupting", scope=os.getpid()).__enter__()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not places["mountpoint"].is_mount()
    with mounted("s", **places) as session:
        (session.path / "made").write_bytes(b"here")


class Hooked(Shelf):
    """With hooks, which note what they are told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, str]] = []

    def on_file_created(self, file: FileRef, session_id: str) -> None:
        self.told.append(("created", file.path))

    async def on_file_modified(self, file: FileRef, session_id: str) -> None:
        self.threads.add(threading.get_ident())
        self.told.append(("modified", file.path))

    def on_file_synced(self, file: FileRef, session_id: str) -> None:
        self.told.append(("synced", file.path))
        raise RuntimeError("harms nothing")

    def on_file_deleted(self, file: FileRef, session_id: str) -> None:
        self.told.append(("deleted", file.path))


def work(directory: Path) -> None:
    (directory / "a").write_bytes(b"1")
    (directory / "b").write_bytes(b"2")
    (directory / "b").unlink()


@pytest.mark.parametrize("library", ["none", "asyncio", "trio"])
def test_hooks_of_a_live_object_are_called_in_this_program(places: dict[str, Any], library: str) -> None:
    shelf = Hooked()

    async def main() -> None:
        async with mounted("s", **places, callbacks=shelf) as session:
            work(session.path)

    if library == "none":
        with mounted("s", **places, callbacks=shelf) as session:
            work(session.path)
    elif library == "asyncio":
        asyncio.run(main())
    else:
        trio.run(main)
    assert [what for what in shelf.told if what[1] == "/a"] == [("created", "/a"), ("modified", "/a"), ("synced", "/a")]
    assert [what for what in shelf.told if what[1] == "/b"][:1] == [("created", "/b")]
    assert ("deleted", "/b") in shelf.told
    assert shelf.files == {"/a": b"1"}
    assert library == "none" or shelf.threads == {threading.get_ident()}


def test_directories_are_kept_elsewhere_from_the_start_or_from_now_on(places: dict[str, Any], tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "b").mkdir(parents=True)
    (store / "b" / "there").write_bytes(b"2")
    first, second = (
        RouteConfig(
            base=base,
            callbacks="tests.stores:Directory",
            scope=base,
            strip_base=True,
            options={"directory": str(store)},
        )
        for base in "ab"
    )
    with mounted("s", **places, routes=[first]) as session:
        (session.path / "a" / "file").write_bytes(b"1")
        assert session.add_route(second).new == 1
        assert (session.path / "b" / "there").read_bytes() == b"2"
    assert (store / "a" / "file").read_bytes() == b"1"
