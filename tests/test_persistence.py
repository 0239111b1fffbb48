"""Any object with callbacks becomes a persistence; what it does wrong is an error with a name, and harms no more."""

from __future__ import annotations

import asyncio
import collections
import errno
import functools
import gc
import io
import itertools
import math
import os
import socket
import threading
import types
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from typing import Any, BinaryIO

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from vfs.callbacks import Change, Context, FileSystemCallbacks, discover, load
from vfs.errors import Conflict
from vfs.fileref import FileRef
from vfs.persistence import UNKNOWN_SIZE, Persistence
from vfs.telemetry import Call

Log = pytest.LogCaptureFixture


class Dictionary:
    """Files in a dict, by path."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.contexts: list[Context] = []

    def on_list(self, scope: object, context: Context) -> list[str]:
        self.contexts.append(context)
        return sorted(self.files)

    def on_read(self, scope: object, path: str, context: Context) -> bytes:
        if path not in self.files:
            raise FileNotFoundError
        return self.files[path]

    def on_write(self, scope: object, path: str, content: bytes, context: Context) -> dict[str, object]:
        self.contexts.append(context)
        self.files[path] = content
        return {"version": len(self.contexts)}

    def on_delete(self, scope: object, path: str, context: Context) -> None:
        if self.files.pop(path, None) is None:
            raise FileNotFoundError(path)


def ref(path: str, size: int = 0, **fields: Any) -> FileRef:
    return FileRef(path=path, size=size, created_at=datetime.now(UTC), **fields)


def written(**functions: Callable[..., Any]) -> Persistence:
    return Persistence(functions, name="bad")


async def raised(call: Callable[..., Any], *arguments: object) -> OSError:
    with pytest.raises(OSError) as caught:
        await call(*arguments)
    return caught.value


# Any object


async def test_the_four_callbacks_work_with_the_paths_and_scope_of_the_contract() -> None:
    seen: list[tuple[object, ...]] = []
    scope = object()
    target = {
        "on_list": lambda *a: [seen.append(("list", a[0])), "/a/b", "c"][1:],  # type: ignore[func-returns-value]
        "on_read": lambda *a: (seen.append(("read", *a[:2])), b"x")[1],  # type: ignore[func-returns-value]
        "on_write": lambda *a: seen.append(("write", *a[:3])),
        "on_delete": lambda *a: seen.append(("delete", *a[:2])),
    }
    files = Persistence(target, scope)
    assert [r.path for r in await files.list()] == ["a/b", "c"]
    assert await files.read("a/b") == b"x"
    await files.write("a/b", b"y")
    await files.delete("a/b")
    assert seen == [("list", scope), ("read", scope, "/a/b"), ("write", scope, "/a/b", b"y"), ("delete", scope, "/a/b")]


class Static:
    @staticmethod
    def on_read(scope: object, path: str, context: Context) -> bytes:
        return b"static"


class SeedStyle:
    def on_read(scope: object, path: str, context: Context) -> bytes:
        return b"seed"


class ByClass:
    @classmethod
    def on_read(cls, scope: object, path: str, context: Context) -> bytes:
        return cls.__name__.encode()


class Made:
    def __init__(self) -> None:
        self.content = b"instance"

    def on_read(self, scope: object, path: str, context: Context) -> bytes:
        return self.content


class Inheriting(FileSystemCallbacks):
    def on_read(self, scope: object, path: str, context: Context) -> bytes:
        return b"inherits"


class InheritingStatic(FileSystemCallbacks):
    def on_read(scope: object, path: str, context: Context) -> bytes:  # type: ignore[override]
        return b"inherits"


MODULE = types.ModuleType("files")
MODULE.on_read = lambda scope, path, context: b"module"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("target", "content"),
    [
        (Static, b"static"),
        (SeedStyle, b"seed"),
        (ByClass, b"ByClass"),
        (Made, b"instance"),
        (Made(), b"instance"),
        (Inheriting, b"inherits"),
        (InheritingStatic, b"inherits"),
        (MODULE, b"module"),
        ({"on_read": functools.partial(lambda content, *_: content, b"partial")}, b"partial"),
    ],
)
async def test_callbacks_are_found_on_any_object(target: object, content: bytes) -> None:
    files = Persistence(target)
    assert files.can == {"on_read"}
    assert await files.read("a") == content


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (object(), "no callback in a object"),
        ({}, "no callback"),
        ({"on_reed": print}, "not callbacks: on_reed"),
        ({"on_read": 5}, "on_read of a dict cannot be called"),
        ({"on_read": lambda path: b""}, r"cannot be called as on_read\(scope, path, context\)"),
    ],
)
def test_what_has_no_usable_callbacks_is_refused_at_once(target: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        discover(target)


def test_load_names_a_module_or_what_is_in_it() -> None:
    assert load("os.path:join") is os.path.join
    assert load("os.path") is os.path
    assert load("io:BytesIO.read") is io.BytesIO.read
    with pytest.raises(ValueError, match="cannot import 'no_such_module'"):
        load("no_such_module:x")
    with pytest.raises(ValueError, match="no attribute 'nothing'"):
        load("os:nothing")


async def test_an_absent_callback_is_enosys() -> None:
    files = Persistence({"on_read": lambda *_: b""})
    assert not files.writes
    assert files.reads
    for call in (files.list(), files.stat("a"), files.write("a", b""), files.delete("a"), files.move("a", "b")):
        with pytest.raises(OSError) as caught:
            await call
        assert caught.value.errno == errno.ENOSYS


# Async libraries


async def trio_read(scope: object, path: str, context: Context) -> bytes:
    await trio.lowlevel.checkpoint()
    return path.encode()


async def asyncio_read(scope: object, path: str, context: Context) -> bytes:
    await asyncio.sleep(0)
    return threading.current_thread().name.encode()


asyncio_read.async_library = "asyncio"  # type: ignore[attr-defined]


class Undeclared:
    """Neither it nor its module says trio: `exec` gives it a module of its own."""

    namespace: dict[str, Any] = {"asyncio": asyncio}
    exec(
        "async def on_read(scope, path, context):\n await asyncio.sleep(0)\n return b'asyncio'\n"
        "async def on_list(scope, context):\n"
        "    for name in ('a', 'b'):\n        await asyncio.sleep(0)\n        yield name\n",
        namespace,
    )


async def test_trio_callbacks_are_awaited_where_their_module_imports_trio() -> None:
    assert await Persistence({"on_read": trio_read}).read("a") == b"/a"


async def test_asyncio_callbacks_run_in_a_loop_of_their_own() -> None:
    files = Persistence({"on_read": asyncio_read}, name="mine")
    assert await files.read("a") == b"asyncio callbacks of mine"
    await files.aclose()
    assert not [t for t in threading.enumerate() if t.name == "asyncio callbacks of mine"]


async def test_the_thread_of_asyncio_callbacks_ends_with_the_last_who_may_call_them() -> None:
    threads: list[threading.Thread] = []

    async def on_read(scope: object, path: str, context: Context) -> bytes:
        threads.append(threading.current_thread())
        return b""

    files = Persistence({"on_read": on_read}, async_library="asyncio")
    await files.read("a")
    other = files.for_scope("other")
    del files
    gc.collect()
    await other.read("a")
    await other.aclose()
    await other.read("a")
    assert threads[0] is threads[1] is not threads[2]
    del other
    gc.collect()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


async def test_async_callbacks_whose_module_does_not_import_trio_are_run_by_asyncio() -> None:
    names = Undeclared.namespace
    files = Persistence({"on_read": names["on_read"], "on_list": names["on_list"]})
    assert await files.read("a") == b"asyncio"
    assert [r.path for r in await files.list()] == ["a", "b"]
    await files.aclose()


async def test_callbacks_can_run_in_the_applications_own_asyncio_loop() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def on_read(scope: object, path: str, context: Context) -> bytes:
        loops.append(asyncio.get_running_loop())
        return b""

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        await Persistence({"on_read": on_read}, async_library=loop).read("a")
        assert loops == [loop]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    error = await raised(Persistence({"on_read": on_read}, async_library=loop).read, "a")
    assert error.errno == errno.EIO


async def test_generators_and_async_generators_may_list() -> None:
    def sync(scope: object, context: Context) -> Iterator[str]:
        yield "a"

    async def stream(scope: object, context: Context) -> AsyncIterator[str]:
        await trio.lowlevel.checkpoint()
        yield "b"

    async def answer(scope: object, context: Context) -> AsyncIterator[str]:
        return stream(scope, context)

    for on_list, path in ((sync, "a"), (stream, "b"), (answer, "b")):
        assert [r.path for r in await Persistence({"on_list": on_list}).list()] == [path]


class Query:
    """Runs when it is gone through, as those of an ORM."""

    def __init__(self, *rows: Any) -> None:
        self.rows = rows
        self.thread = 0

    def __iter__(self) -> Iterator[str]:
        self.thread = threading.get_ident()
        return (row["path"] for row in self.rows)


@pytest.mark.parametrize("library", ["sync", "trio", "asyncio"])
async def test_a_lazy_listing_is_gone_through_where_its_callback_runs(library: Any, caplog: Log) -> None:
    def listing(answer: object) -> Persistence:
        async def on_list(*_: object) -> object:
            return answer

        if library == "sync":
            return Persistence({"on_list": lambda *_: answer})
        return Persistence({"on_list": on_list}, async_library=library)

    query = Query({"path": "a"}, {"path": "/b"})
    files = listing(query)
    assert [r.path for r in await files.list()] == ["a", "b"]
    assert (query.thread == threading.get_ident()) == (library == "trio")
    await files.aclose()
    for failing in (Query({"path": "a"}, {}), map(int, ["five"])):
        files = listing(failing)
        assert (await raised(files.list)).errno == errno.EIO
        assert "callbacks: on_list('/') failed" in caplog.text
        await files.aclose()


def test_an_async_library_that_is_none_is_refused() -> None:
    def on_read(scope: object, path: str, context: Context) -> bytes:
        return b""

    on_read.async_library = "twisted"  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="'trio', 'asyncio' or an asyncio event loop"):
        Persistence({"on_read": on_read})


# Failures


class Panic(BaseException):
    """Of an extension in another language."""


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("failure", "number"),
    [
        (FileNotFoundError(), errno.ENOENT),
        (PermissionError("no"), errno.EACCES),
        (TimeoutError(), errno.ETIMEDOUT),
        (OSError(errno.EDQUOT, "full"), errno.EDQUOT),
        (ExceptionGroup("nursery", [OSError(errno.ENOSPC, "full")]), errno.ENOSPC),
        (trio.TooSlowError(), errno.ETIMEDOUT),
        (Conflict("/a"), errno.ESTALE),
        (OSError("no number"), errno.EIO),
        (OSError("not found", "/a"), errno.EIO),
        (FileNotFoundError("not found", "/a"), errno.ENOENT),
        (OSError(0, "Error"), errno.EIO),
        (OSError(1000, "no such number"), errno.EIO),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), errno.EIO),
        (KeyError("x"), errno.EIO),
        (Mute(), errno.EIO),
        (SystemExit(3), errno.EIO),
        (asyncio.CancelledError(), errno.EIO),
        (Panic("at the disco"), errno.EIO),
        (BaseExceptionGroup("nursery", [Panic()]), errno.EIO),
    ],
)
@pytest.mark.parametrize("library", ["sync", "trio", "asyncio"])
async def test_a_failure_reaches_the_caller_as_its_errno(failure: BaseException, number: int, library: Any) -> None:
    def sync(*_: object) -> bytes:
        raise failure

    async def asynchronous(*_: object) -> bytes:
        raise failure

    target = {"on_read": sync if library == "sync" else asynchronous}
    files = Persistence(target, async_library=None if library == "sync" else library)
    for _ in range(2):
        assert (await raised(files.read, "a")).errno == number
    await files.aclose()


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), GeneratorExit()])
@pytest.mark.parametrize("library", [None, "asyncio"])
async def test_what_would_end_a_thread_or_a_loop_is_eio_too(failure: BaseException, library: Any, caplog: Log) -> None:
    def on_read(*_: object) -> bytes:
        raise failure

    async def on_read_async(*_: object) -> bytes:
        raise failure

    files = Persistence({"on_read": on_read_async if library else on_read}, async_library=library)
    for _ in range(2):
        assert (await raised(files.read, "a")).errno == errno.EIO
    assert f"on_read('a') failed: {type(failure).__name__}" in caplog.text
    await files.aclose()


async def test_a_callback_that_fails_as_its_time_ends_is_an_error_of_its_own(autojump_clock: MockClock) -> None:
    async def fails() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("while it ended")

    async def on_read(*_: object) -> bytes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails)
            await trio.sleep_forever()
        return b""

    assert (await raised(Persistence({"on_read": on_read}).read, "a")).errno == errno.EIO


@pytest.mark.parametrize("failure", [PermissionError(errno.EACCES, "x" * 150_000), PermissionError("x" * 150_000)])
async def test_of_a_failure_that_has_a_whole_page_for_a_text_the_beginning_is_told(failure: OSError) -> None:
    def on_read(*_: object) -> bytes:
        raise failure

    error = await raised(Persistence({"on_read": on_read}).read, "a")
    assert (error.errno, len(str(error.strerror))) == (errno.EACCES, 1000)


@pytest.mark.parametrize("failure", [OSError(errno.EDQUOT, "/caf\udce9"), PermissionError("/caf\udce9")])
async def test_an_error_that_names_a_path_that_is_no_utf8_can_be_told(failure: OSError) -> None:
    def on_write(*_: object) -> None:
        raise failure

    error = await raised(Persistence({"on_write": on_write}).write, "a", b"")
    assert error.strerror == "/caf\\udce9"


async def test_a_conflict_stays_a_conflict() -> None:
    def on_write(*_: object) -> None:
        raise Conflict("/a", found="7")

    error = await raised(written(on_write=on_write).write, "a", b"")
    assert isinstance(error, Conflict)
    assert error.found == "7"


async def test_an_unexpected_failure_is_one_traceback_with_callback_and_path(caplog: Log) -> None:
    def on_read(scope: object, path: str, context: Context) -> bytes:
        raise KeyError("the reason")

    files = Persistence({"on_read": on_read}, scope="top secret", name="mine")
    for _ in range(3):
        assert (await raised(files.read, "dir/a")).errno == errno.EIO
    first, *others = caplog.records
    assert first.exc_info and "KeyError" in caplog.text
    assert "mine: on_read('dir/a') failed" in first.getMessage()
    assert [r.exc_info for r in others] == [None, None]
    assert "failed as before (3 times)" in others[-1].getMessage()
    assert "top secret" not in caplog.text


async def test_a_callback_that_hangs_is_etimedout_and_others_go_on(
    caplog: Log, autojump_clock: trio.testing.MockClock
) -> None:
    release = threading.Event()

    def on_read(scope: object, path: str, context: Context) -> bytes:
        if path == "/hang":
            release.wait()
        return b"alive"

    async def on_delete(scope: object, path: str, context: Context) -> None:
        await trio.sleep_forever()

    files = Persistence({"on_read": on_read, "on_delete": on_delete}, timeout=30, threads=2)
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(_timed_out, files.read, "hang")
            nursery.start_soon(_timed_out, files.delete, "hang")
        autojump_clock.autojump_threshold = math.inf  # from here on real threads have real time
        assert await files.read("other") == b"alive"
    finally:
        release.set()
    assert "on_read('hang') did not answer within 30 s" in caplog.text
    assert "on_delete('hang') did not answer within 30 s" in caplog.text


async def _timed_out(call: Callable[..., Any], path: str) -> None:
    assert (await raised(call, path)).errno == errno.ETIMEDOUT


async def test_cancelling_an_asyncio_callback_cancels_it_there() -> None:
    ended = threading.Event()

    async def on_read(*_: object) -> bytes:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()
        return b""

    files = Persistence({"on_read": on_read}, async_library="asyncio", timeout=0.05)
    assert (await raised(files.read, "a")).errno == errno.ETIMEDOUT
    assert await trio.to_thread.run_sync(ended.wait, 10)
    await files.aclose()


async def test_a_large_transfer_gets_more_time(autojump_clock: trio.testing.MockClock) -> None:
    async def on_write_file(scope: object, path: str, file: BinaryIO, context: Context) -> None:
        await trio.sleep(11)

    files = Persistence({"on_write_file": on_write_file}, timeout=10)
    await files.write("large", bytes(2 << 20))
    assert (await raised(files.write, "small", b"")).errno == errno.ETIMEDOUT


# Wrong answers


@pytest.mark.parametrize(
    ("callback", "answer", "call"),
    [
        ("on_read", None, lambda p: p.read("a")),
        ("on_read", "text", lambda p: p.read("a")),
        ("on_read_range", b"12345", lambda p: p.read_range("a", 0, 4)),
        ("on_list", None, lambda p: p.list()),
        ("on_list", "abc", lambda p: p.list()),
        ("on_list", {"a": 1}, lambda p: p.list()),
        ("on_write", 5, lambda p: p.write("a", b"")),
        ("on_write", [("a", "b")], lambda p: p.write("a", b"")),
        ("on_write", ref("/a", metadata=5), lambda p: p.write("a", b"")),
        ("on_stat", "a", lambda p: p.stat("a")),
        ("on_stat", ref("/a", size=-2), lambda p: p.stat("a")),
        ("on_stat", ref("/a", mode=-1), lambda p: p.stat("a")),
        ("on_stat", ref("/a", mtime_ns=1.5), lambda p: p.stat("a")),
        ("on_stat", ref("/a", version=b"1"), lambda p: p.stat("a")),
        ("on_stat", ref("/a", checksum=5), lambda p: p.stat("a")),
        ("on_move", 5, lambda p: p.move("a", "b")),
        ("on_commit", [None, None], lambda p: p.commit([Change("delete", "a", {})])),
        ("on_commit", [], lambda p: p.commit([Change("delete", "a", {})])),
        ("on_write_many", [None, None], lambda p: p.write_many([Change("write", "a", {})])),
        ("on_write_many", None, lambda p: p.write_many([Change("write", "a", {})])),
        ("on_load_image", b"", lambda p: p.load_image()),
        ("on_load_image", (b"", "\ud800"), lambda p: p.load_image()),
        ("on_save_image", 5, lambda p: p.save_image(b"")),
        ("on_save_image", "\ud800", lambda p: p.save_image(b"")),
    ],
)
async def test_a_wrong_answer_is_eio_and_says_what_was_expected(
    callback: str, answer: object, call: Callable[[Persistence], Any], caplog: Log
) -> None:
    with pytest.raises(OSError) as caught:
        await call(Persistence({callback: lambda *_: answer}, name="bad"))
    assert caught.value.errno == errno.EIO
    assert f"bad: {callback}(" in caplog.text
    assert "expected" in caplog.text


class Nameless:
    def __repr__(self) -> str:
        raise RuntimeError("detached from its database")

    __str__ = __repr__


def made(path: str, created_at: Any) -> FileRef:
    return FileRef(path=path, size=0, created_at=created_at)


BAD_ENTRIES: list[tuple[object, str]] = [
    ("../up", "a segment '..'"),
    ("a/../b", "a segment '..'"),
    ("a/./b", "a segment '.'"),
    ("//etc/passwd", "an empty segment"),
    ("a//b", "an empty segment"),
    ("dir/", "an empty segment"),
    ("", "an empty segment"),
    ("/", "an empty segment"),
    ("a\0b", "NUL"),
    ("\ud800", "a lone surrogate"),
    ("x" * 256, "longer than 255 bytes"),
    ("x/" * 2500 + "x", "longer than 4095 bytes"),
    (b"bytes", "a bytes, not a str or FileRef"),
    (None, "a NoneType, not a str or FileRef"),
    (ref("sized", size="5"), "size '5'"),  # type: ignore[arg-type]
    (ref("sized", size=2**63), f"size {2**63}"),
    (ref("dated", mtime_ns=2**70), f"mtime_ns {2**70}"),
    (ref("dated", mtime_ns=-(2**70)), f"mtime_ns -{2**70}"),
    (made("dated", "2024-01-01"), "created_at '2024-01-01'"),
    (made("dated", None), "created_at None"),
    (made("dated", date(2024, 1, 1)), "created_at datetime.date(2024, 1, 1)"),
    (made("dated", datetime(1, 1, 1)), "created_at datetime.datetime(1, 1, 1, 0, 0)"),
    (made("dated", datetime.max.replace(tzinfo=UTC)), "created_at datetime.datetime(9999, 12, 31"),
    (ref("lone", version="\ud800"), "surrogates not allowed"),
    (ref("lone", storage_url="\ud800"), "surrogates not allowed"),
    (Nameless(), "a Nameless, not a str or FileRef"),
    ("good", "listed twice"),
]


@pytest.mark.parametrize(("entry", "reason"), BAD_ENTRIES)
async def test_a_bad_entry_of_a_listing_is_left_out_and_named(entry: object, reason: str, caplog: Log) -> None:
    files = written(on_list=lambda *_: ["good", entry, "also/good"])
    assert [r.path for r in await files.list()] == ["good", "also/good"]
    [record] = caplog.records
    assert "bad: on_list: " in record.getMessage()
    assert reason in record.getMessage()
    [(path, why)] = files.skipped.items()
    assert reason in why
    await files.list()
    assert len(caplog.records) == 1, "the same complaint is not repeated"


class Text(str):
    """As of a template engine or numpy."""

    def __str__(self) -> str:
        return "not the text"


class Moment(datetime):
    """As of pandas or pendulum."""


async def test_text_and_times_of_kinds_of_their_own_become_plain_ones() -> None:
    told = FileRef(
        path=Text("a"),
        size=1,
        content_type=Text("text/plain"),
        checksum=Text("0f"),
        storage_url=Text("db://1"),
        created_at=Moment(2026, 1, 2, tzinfo=UTC),
        version=Text("v1"),
    )
    [found, bare] = await Persistence({"on_list": lambda *_: [told, Text("/b")]}).list()
    assert (found.path, found.version, bare.path) == ("a", "v1", "b")
    assert found.created_at == datetime(2026, 1, 2, tzinfo=UTC)
    texts = (found.path, found.content_type, found.checksum, found.storage_url, found.version, bare.path)
    assert {type(text) for text in texts} == {str} and type(found.created_at) is datetime


async def test_a_file_where_others_need_a_directory_is_left_out(caplog: Log) -> None:
    files = written(on_list=lambda *_: ["a", "a/b/c", "a/b", "d"])
    assert [r.path for r in await files.list()] == ["a/b/c", "d"]
    assert files.skipped.keys() == {"a", "a/b"}


async def test_names_that_are_not_utf8_pass(caplog: Log) -> None:
    name = os.fsdecode(b"caf\xe9")
    files = Persistence({"on_list": lambda *_: ["/" + name], "on_read": lambda s, path, c: os.fsencode(path)})
    assert [r.path for r in await files.list()] == [name]
    assert await files.read(name) == b"/caf\xe9"
    assert not caplog.records


async def test_a_flood_of_bad_entries_is_not_a_flood_of_lines(caplog: Log) -> None:
    files = written(on_list=lambda *_: [f"../{n}" for n in range(1000)])
    assert await files.list() == []
    assert len(caplog.records) == 101
    assert "1000 entries left out" in caplog.text


@given(st.lists(st.text("ab./\0\udc80", max_size=6)))
def test_what_a_listing_lets_through_is_a_tree(paths: list[str]) -> None:
    files = trio.run(written(on_list=lambda *_: paths).list)
    kept = {tuple(r.path.split("/")) for r in files}
    assert len(kept) == len(files)
    for parts in kept:
        assert not {"", ".", ".."} & set(parts)
        assert not any(parts[:n] in kept for n in range(1, len(parts)))


# What is known about a file


async def test_a_bare_path_is_listed_with_an_unknown_size_and_a_fileref_as_it_is() -> None:
    full = ref("/b", size=5, version="7", mode=0o600, mtime_ns=9, metadata={"k": "v"})
    bare, listed = await written(on_list=lambda *_: ["/a", full]).list()
    assert (bare.path, bare.size) == ("a", UNKNOWN_SIZE)
    assert (listed.path, listed.size, listed.version, listed.mode, listed.mtime_ns) == ("b", 5, "7", 0o600, 9)


async def test_stat_none_or_filenotfound_is_enoent() -> None:
    def missing(*_: object) -> None:
        raise FileNotFoundError

    for on_stat in (missing, lambda *_: None):
        assert (await raised(written(on_stat=on_stat).stat, "a")).errno == errno.ENOENT


async def test_what_on_write_answers_becomes_metadata_and_version(caplog: Log) -> None:
    number = uuid.UUID(int=5)
    when = datetime(2026, 1, 2, tzinfo=UTC)
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    answer: dict[Any, Any] = {
        **{"id": 12, "version": 3, "title": 'a "b"', "uuid": number, "at": when, "tags": ["x"], "ok": True, 7: "seven"},
        **{"none": None, "bad": object(), "long" * 70: "x", "big": "x" * 70000, "nul\0": "x", "lone": "\ud800"},
        **{"state": Text("active"), Text("kind"): "text", "cycle": cycle, Nameless(): 1},
        **{"latin": os.fsdecode(b"caf\xe9"), "deep": deep},
    }
    result = await written(on_write=lambda *_: answer).write("a", b"abc", {"content_type": "text/plain"})
    assert (result.path, result.size, result.version, result.content_type) == ("a", 3, "3", "text/plain")
    assert result.metadata == {
        **{"id": "12", "version": "3", "title": 'a "b"', "uuid": str(number), "at": "2026-01-02T00:00:00Z"},
        **{"tags": '["x"]', "ok": "true", "7": "seven", "state": "active", "kind": "text"},
    }
    assert {type(text) for pair in result.metadata.items() for text in pair} == {str}
    assert len(caplog.records) == 9
    assert all("bad: on_write('a'): metadata " in record.getMessage() for record in caplog.records)


async def test_metadata_that_cannot_be_read_any_more_is_left_out_whole(caplog: Log) -> None:
    class Row(collections.UserDict[str, str]):
        def __getitem__(self, key: str) -> str:
            raise RuntimeError("detached from its database")

    result = await written(on_write=lambda *_: Row(version="1")).write("a", b"abc")
    assert (result.version, result.metadata) == (None, {})
    assert "bad: on_write('a'): metadata is left out: RuntimeError: detached" in caplog.text


async def test_a_fileref_from_on_write_is_kept_whole() -> None:
    result = await written(on_write=lambda *_: ref("ignored", size=3, version=4, storage_url="db://1")).write("a", b"")
    assert (result.path, result.version, result.storage_url) == ("a", "4", "db://1")


async def test_an_observer_that_raises_is_logged_once_and_harms_no_call(caplog: Log) -> None:
    told: list[Call] = []

    def broken(call: Call) -> None:
        raise KeyError(call.path)

    files = Persistence(Dictionary(), name="store")
    files.telemetry.observers += [broken, told.append]
    await files.write("a", b"content")
    assert await files.read("a") == b"content"
    assert (await raised(files.read, "b")).errno == errno.ENOENT
    assert [(call.callback, call.error) for call in told] == [
        ("on_write", None),
        ("on_read", None),
        ("on_read", errno.ENOENT),
    ]
    [record] = caplog.records
    assert record.exc_info and "store: an observer of its calls failed" in record.getMessage()


async def test_every_call_is_told_its_context() -> None:
    target = Dictionary()
    files = Persistence(target, context={"session_id": "s1", "agent_id": "a1"}, base_directory="/data/")
    given: Context = {"if_version": None, "mode": 0o644}
    await files.write("data/x", b"12", given)
    assert target.contexts == [
        {
            **{"session_id": "s1", "agent_id": "a1", "base_directory": "data", "operation": "write"},
            **{"if_version": None, "mode": 0o644, "size": 2},
        }
    ]
    assert given == {"if_version": None, "mode": 0o644}


async def test_a_base_directory_can_be_stripped_and_holds_listings_in() -> None:
    target = Dictionary()
    stripped = Persistence(target, base_directory="data/x", strip_base=True)
    await stripped.write("data/x/f", b"1")
    assert target.files == {"/f": b"1"}
    assert [r.path for r in await stripped.list()] == ["data/x/f"]
    full = Persistence({"on_list": lambda *_: ["data/x/f", "data/xy/f", "f"]}, base_directory="data/x")
    assert [r.path for r in await full.list()] == ["data/x/f"]
    assert full.skipped.keys() == {"data/xy/f", "f"}


async def test_for_scope_shares_the_callbacks() -> None:
    files = Persistence({"on_read": lambda scope, *_: scope}, b"one")
    assert await files.for_scope(b"two").read("a") == b"two"
    assert await files.read("a") == b"one"


# Sizes


async def test_a_file_over_the_limit_is_efbig_where_only_whole_content_moves(caplog: Log) -> None:
    target = Dictionary()
    files = Persistence(target, max_file_size=4)
    assert (files.largest_read, files.largest_write) == (4, 4)
    for call in (
        lambda: files.write("a", b"12345"),
        lambda: files.write_file("a", io.BytesIO(b"12345")),
        lambda: files.read("a", {"size": 5}),
    ):
        with pytest.raises(OSError) as caught:
            await call()
        assert caught.value.errno == errno.EFBIG
    assert target.files == {}
    assert "'a' has 5 bytes; without on_write_file at most max_file_size=4 are moved" in caplog.text
    target.files["/a"] = b"12345"
    assert (await raised(files.read, "a")).errno == errno.EFBIG
    await files.write("b", b"1234")


async def test_ranges_and_files_have_no_limit() -> None:
    content = os.urandom(3 << 20)
    received: list[bytes] = []

    def on_write_file(scope: object, path: str, file: BinaryIO, context: Context) -> None:
        received.extend(iter(lambda: file.read(1 << 20), b""))

    def on_read_range(scope: object, path: str, offset: int, size: int, context: Context) -> memoryview:
        return memoryview(content)[offset : offset + size]

    files = Persistence({"on_write_file": on_write_file, "on_read_range": on_read_range}, max_file_size=4)
    assert (files.largest_read, files.largest_write) == (None, None)
    file = io.BytesIO(content)
    file.seek(9)
    await files.write_file("a", file)
    assert b"".join(received) == content
    assert await files.read_range("a", 5, 7) == content[5:12]
    assert await Persistence({"on_read_range": on_read_range}).read("a") == content


# The rest of the contract


async def test_deleting_what_is_not_there_is_done() -> None:
    await Persistence(Dictionary()).delete("nothing")


async def test_a_batch_is_one_call_with_paths_of_the_contract() -> None:
    batches: list[list[Change]] = []

    def on_commit(scope: object, changes: list[Change], context: Context) -> list[object]:
        batches.append(list(changes))
        return [{"version": n} for n, _ in enumerate(changes)]

    files = Persistence({"on_commit": on_commit}, context={"session_id": "s"})
    changes = [
        Change("write", "a", {"size": 1}, file=io.BytesIO(b"x")),
        Change("move", "c", {}, source="b"),
        Change("delete", "d", {"if_version": "4"}),
    ]
    one, two, none = await files.commit(changes)
    assert one is not None and two is not None
    assert (one.path, one.version, two.path, two.version, none) == ("a", "0", "c", "1", None)
    [batch] = batches
    assert [(c.kind, c.path, c.source) for c in batch] == [
        *(("write", "/a", None), ("move", "/c", "/b"), ("delete", "/d", None)),
    ]
    assert batch[0].content() == b"x"
    assert batch[2].context == {"session_id": "s", "base_directory": "", "operation": "delete", "if_version": "4"}
    assert (await files.write("z", b"zz")).size == 2, "a single write is a batch of one where there is only on_commit"
    await files.delete("z")
    assert [c.kind for batch in batches[1:] for c in batch] == ["write", "delete"]


def writes(*contents: bytes) -> list[Change]:
    changes = enumerate(contents)
    return [Change("write", f"f{n}", {"size": len(c), "if_version": None}, file=io.BytesIO(c)) for n, c in changes]


async def test_many_small_files_are_written_in_one_thread_where_on_write_is_sync() -> None:
    told: list[tuple[object, str, bytes, Context, int]] = []

    def on_write(scope: object, path: str, content: bytes, context: Context) -> dict[str, str]:
        told.append((scope, path, content, context, threading.get_ident()))
        return {"version": f"v{len(content)}"}

    files = Persistence({"on_write": on_write}, "me", context={"session_id": "s"})
    assert files.takes_many
    refs = await files.write_many(writes(b"", b"1", b"22"))
    assert [(ref.path, ref.version, ref.size) for ref in refs] == [("f0", "v0", 0), ("f1", "v1", 1), ("f2", "v2", 2)]
    assert [call[:3] for call in told] == [("me", "/f0", b""), ("me", "/f1", b"1"), ("me", "/f2", b"22")]
    assert told[1][3] == {"session_id": "s", "base_directory": "", "operation": "write", "if_version": None, "size": 1}
    assert len({call[4] for call in told}) == 1 and told[0][4] != threading.get_ident()
    tally = files.telemetry.tallies["on_write"]
    assert (tally.calls, tally.failures, tally.bytes) == (3, 0, 3)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "no"), ValueError("no"), SystemExit(1), asyncio.CancelledError()]
)
async def test_the_first_of_many_that_fails_ends_them_and_is_not_told_yet(error: BaseException, caplog: Log) -> None:
    def on_write(scope: object, path: str, content: bytes, context: Context) -> None:
        if path == "/f1":
            raise error

    files = Persistence({"on_write": on_write})
    assert [ref.path for ref in await files.write_many(writes(b"", b"", b""))] == ["f0"]
    assert not caplog.records


async def test_many_end_before_one_that_hangs_and_begin_no_other_after_a_long_one(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, called = threading.Event(), list[str]()

    def on_write(scope: object, path: str, content: bytes, context: Context) -> None:
        called.append(path)
        if path == "/f1":
            trio.from_thread.run_sync(mock_clock.jump, 5)
            free.wait()

    files = Persistence({"on_write": on_write}, timeout=5)
    assert [ref.path for ref in await files.write_many(writes(b"", b"", b""))] == ["f0"]
    free.set()
    monkeypatch.setattr("vfs.call.EACH_END", 0)
    assert [ref.path for ref in await files.write_many(writes(b"", b"", b""))] == ["f0"]
    assert called == ["/f0", "/f1", "/f0"], "nothing was begun after the time-out"


async def test_of_many_only_what_may_be_in_memory_and_what_is_answered_well_counts(caplog: Log) -> None:
    small = Persistence({"on_write": lambda *_: None}, max_file_size=2)
    assert [ref.path for ref in await small.write_many(writes(b"1", b"22", b"333", b""))] == ["f0", "f1"]
    wrong = Persistence({"on_write": lambda scope, path, content, context: 5 if path == "/f1" else None})
    assert [ref.path for ref in await wrong.write_many(writes(b"", b"", b""))] == ["f0"]
    assert "on_write('f1') answered int" in caplog.text

    async def later() -> None:
        raise AssertionError("never awaited")

    hidden = Persistence({"on_write": lambda *_: later()})
    assert await hidden.write_many(writes(b"")) == []


def test_many_at_a_time_are_for_sync_callbacks_and_for_who_asks_for_them() -> None:
    async def on_write(*_: object) -> None: ...

    assert not Persistence({"on_write": on_write}).takes_many
    assert Persistence({"on_write": on_write, "on_write_many": lambda *_: []}).takes_many
    assert not Persistence({"on_write_file": lambda *_: None}).takes_many


async def test_move_and_images_pass() -> None:
    kept: dict[str, object] = {}

    def on_save_image(scope: object, image: bytes, context: Context) -> str:
        kept.update(image=image, told=context)
        return "v1"

    files = written(
        on_move=lambda s, old, new, c: {"from": old, "to": new},
        on_load_image=lambda *_: (kept["image"], "v1") if kept else None,
        on_save_image=on_save_image,
    )
    assert (await files.move("a", "b")).metadata == {"from": "/a", "to": "/b"}
    assert await files.load_image() is None
    assert await files.save_image(b"image", {"if_version": None}) == "v1"
    assert kept["told"] == {"operation": "save_image", "base_directory": "", "if_version": None}
    assert await files.load_image() == (b"image", "v1")


async def test_what_is_owned_is_closed() -> None:
    closed: list[str] = []

    class Closing(Dictionary):
        async def aclose(self) -> None:
            closed.append("closed")

    await Persistence(Closing()).aclose()
    assert not closed
    await Persistence(Closing(), owned=True).aclose()
    assert closed == ["closed"]


async def test_a_listing_that_goes_on_has_its_time_and_one_that_hangs_or_never_ends_has_not(
    autojump_clock: MockClock,
) -> None:
    class Slow:
        async_library = "trio"

        def __init__(self, pauses: Iterable[float]) -> None:
            self.pauses = pauses

        async def on_list(self, scope: object, context: Context) -> AsyncIterator[str]:
            for number, pause in enumerate(self.pauses):
                yield f"{number}"
                await trio.sleep(pause)

    assert len(await Persistence(Slow([0.5] * 160), timeout=10).list()) == 160
    for pauses in ([0.5] * 40 + [60.0], itertools.repeat(0.5)):
        began = trio.current_time()
        with pytest.raises(OSError) as caught:
            await Persistence(Slow(pauses), timeout=10).list()
        assert caught.value.errno == errno.ETIMEDOUT
        assert 10 < trio.current_time() - began <= 210


async def test_a_listing_in_a_thread_or_in_asyncio_that_goes_on_has_its_time_too() -> None:
    def on_list(scope: object, context: Context) -> Iterator[str]:
        for number in range(12):
            threading.Event().wait(0.2)
            yield f"{number}"

    async def on_list_async(scope: object, context: Context) -> AsyncIterator[str]:
        for number in range(120):
            await asyncio.sleep(0.02)
            yield f"{number}"

    assert len(await Persistence({"on_list": on_list}, timeout=1.6).list()) == 12
    assert len(await Persistence({"on_list": on_list_async}, timeout=1.0, async_library="asyncio").list()) == 120
