"""A session's persistence may be in another process, and in another language: what it says arrives, errors included."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import io
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from vfs.callbacks import Change, Context
from vfs.errors import Conflict
from vfs.fileref import FileRef
from vfs.http import HttpCallbacks, connect, serve, serving, wire
from vfs.persistence import Persistence

Log = pytest.LogCaptureFixture
WHEN = datetime(2026, 1, 2, tzinfo=UTC)


class Files:
    """Everything that the contract has, in a dict, with versions."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.told: list[tuple[object, Context]] = []
        self.image: bytes | None = None

    def _ref(self, path: str) -> FileRef:
        if path not in self.files:
            raise FileNotFoundError(path)
        size = len(self.files[path])
        return FileRef(path=path, size=size, created_at=WHEN, version=f"v{size}", mode=0o600, metadata={"k": "ü"})

    def on_list(self, scope: object, context: Context) -> list[FileRef]:
        self.told.append((scope, context))
        return [self._ref(path) for path in self.files]

    def on_stat(self, scope: object, path: str, context: Context) -> FileRef:
        return self._ref(path)

    def on_read(self, scope: object, path: str, context: Context) -> bytes:
        self._ref(path)
        return self.files[path]

    def on_read_range(self, scope: object, path: str, offset: int, size: int, context: Context) -> bytes:
        self._ref(path)
        return self.files[path][offset : offset + size]

    def on_write(self, scope: object, path: str, content: bytes, context: Context) -> dict[str, object]:
        self.told.append((scope, context))
        if context.get("if_version", "v1") == "old":
            raise Conflict(path, "new")
        self.files[path] = content
        return {"version": f"v{len(content)}", "row": 7}

    def on_write_file(self, scope: object, path: str, file: BinaryIO, context: Context) -> dict[str, object]:
        return self.on_write(scope, path, file.read(), context)

    def on_delete(self, scope: object, path: str, context: Context) -> None:
        del self.files[self._ref(path).path]

    def on_move(self, scope: object, old: str, new: str, context: Context) -> FileRef:
        self.files[new] = self.files.pop(self._ref(old).path)
        return self._ref(new)

    def on_commit(self, scope: object, changes: list[Change], context: Context) -> list[object]:
        outcomes: list[object] = []
        for change in changes:
            if change.kind == "write":
                outcomes.append(self.on_write(scope, change.path, change.content(), change.context))
            elif change.kind == "move":
                outcomes.append(self.on_move(scope, str(change.source), change.path, change.context))
            else:
                self.on_delete(scope, change.path, change.context)
                outcomes.append(None)
        return outcomes

    def on_write_many(self, scope: object, changes: list[Change], context: Context) -> list[object]:
        return [self.on_write(scope, c.path, c.content(), c.context) for c in changes if "bad" not in c.path]

    def on_load_image(self, scope: object, context: Context) -> tuple[bytes, str] | None:
        return None if self.image is None else (self.image, 'ä"1')

    def on_save_image(self, scope: object, image: bytes, context: Context) -> str:
        self.image = image
        return 'ä"1'


@asynccontextmanager
async def remote(target: object, scope: object = None, **options: Any) -> AsyncIterator[Persistence]:
    """`target` as a persistence at the other end of HTTP."""
    async with trio.open_nursery() as nursery:
        url = await nursery.start(functools.partial(serve, target, **options))
        yield_to = await connect(url, token=options.get("token"))
        files = Persistence(yield_to, scope, owned=True)
        yield files
        await files.aclose()
        nursery.cancel_scope.cancel()


def url_of(files: Persistence) -> str:
    assert isinstance(files._target, HttpCallbacks)
    return files._target.url


async def raised(call: Callable[..., Any], *arguments: object) -> OSError:
    with pytest.raises(OSError) as caught:
        await call(*arguments)
    return caught.value


# The whole contract


async def test_every_callback_arrives_and_answers() -> None:
    target = Files()
    async with remote(target, {"user": "ü"}) as files:
        assert files.can == Persistence(target).can
        ref = await files.write("dir/a b%?#é.txt", b"12345", {"if_version": None, "content_type": "text/plain"})
        assert (ref.version, ref.metadata) == ("v5", {"version": "v5", "row": "7"})
        assert target.files == {"/dir/a b%?#é.txt": b"12345"}
        scope, told = target.told[-1]
        assert scope == {"user": "ü"}
        assert told["if_version"] is None and told["operation"] == "write" and told["content_type"] == "text/plain"
        [listed] = await files.list()
        assert listed == await files.stat("dir/a b%?#é.txt")
        assert (listed.size, listed.version, listed.mode, listed.created_at) == (5, "v5", 0o600, WHEN)
        assert listed.metadata == {"k": "ü"}
        assert await files.read(listed.path) == b"12345"
        assert await files.read_range(listed.path, 1, 3) == b"234"
        assert await files.read_range(listed.path, 3, 100) == b"45"
        assert await files.read_range(listed.path, 5, 100) == b""
        assert await files.read_range(listed.path, 2, 0) == b""
        await files.write_file("big", io.BytesIO(bytes(3 << 20)))
        assert len(target.files["/big"]) == 3 << 20
        assert (await files.move("big", "bigger")).version == f"v{3 << 20}"
        await files.delete("bigger")
        await files.delete("bigger")
        assert target.files.keys() == {"/dir/a b%?#é.txt"}
        assert await files.load_image() is None
        assert await files.save_image(b"\0image") == 'ä"1'
        assert await files.load_image() == (b"\0image", 'ä"1')


async def test_a_batch_arrives_as_one_call_with_its_contents() -> None:
    target = Files()
    target.files = {"/old": b"o", "/gone": b"g"}
    async with remote(target) as files:
        one, two, three, none = await files.commit(
            [
                Change("write", "small", {"if_version": None}, file=io.BytesIO(b"line\n{}")),
                Change("write", "large", {}, file=io.BytesIO(b"x" * (2 << 20))),
                Change("move", "new\udcff", {}, source="old"),
                Change("delete", "gone", {"if_version": "v1"}),
            ]
        )
    assert one and two and three and none is None
    assert (one.version, two.version, three.path, three.version) == ("v7", f"v{2 << 20}", "new\udcff", "v1")
    assert target.files == {"/small": b"line\n{}", "/large": b"x" * (2 << 20), "/new\udcff": b"o"}


async def test_many_small_files_arrive_as_one_call() -> None:
    target = Files()
    async with remote(target, "me") as files:
        changes = [
            Change("write", name, {"if_version": None}, file=io.BytesIO(b"1" * n)) for n, name in enumerate("abc")
        ]
        assert [ref.version for ref in await files.write_many(changes)] == ["v0", "v1", "v2"]
        assert [scope for scope, _ in target.told] == ["me"] * 3
        some = [Change("write", name, {}, file=io.BytesIO(b"x")) for name in ("d", "bad")]
        [ref] = await files.write_many(some)
    assert (ref.path, sorted(target.files)) == ("d", ["/a", "/b", "/c", "/d"])


NAMES = st.binary(min_size=1, max_size=20).filter(lambda b: b not in (b".", b"..") and not {0, 47} & set(b))


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_any_name_arrives_byte_for_byte(names: list[bytes]) -> None:
    path = os.fsdecode(b"/".join(names))
    assert wire.decode_path(wire.encode_path(path).encode()) == path
    assert wire.path_from(*(wire.path_fields(path).get(key) for key in ("path", "path_base64"))) == path


async def test_names_that_are_not_utf8_or_look_like_urls_arrive() -> None:
    target = Files()
    names = [os.fsdecode(b"caf\xe9\xff"), "a%2Fb", "...", "a?b#c", "\u2028\x85\n\t", "x" * 255, "~user", "a\\b", "+"]
    async with remote(target) as files:
        for name in names:
            await files.write("d/" + name, name.encode("utf-8", "surrogateescape"))
            assert await files.read("d/" + name) == name.encode("utf-8", "surrogateescape")
            await files.move("d/" + name, "e/" + name)
        assert {r.path for r in await files.list()} == {"e/" + name for name in names}
    assert target.files.keys() == {"/e/" + name for name in names}


async def test_only_what_the_server_has_is_there() -> None:
    async with remote({"on_list": lambda *_: ["/a", "b"]}) as files:
        assert files.can == {"on_list"}
        assert [r.path for r in await files.list()] == ["a", "b"]
        assert (await raised(files.read, "a")).errno == errno.ENOSYS


async def test_a_large_file_is_streamed_where_there_are_only_ranges() -> None:
    content = os.urandom(5 << 20)
    async with remote({"on_read_range": lambda s, path, offset, size, c: content[offset : offset + size]}) as files:
        async with httpx.AsyncClient() as plain:
            found = await plain.get(f"{url_of(files)}/files/x")
        assert found.content == content
        assert await files.read_range("x", 1 << 20, 2 << 20) == content[1 << 20 : 3 << 20]


async def test_asyncio_callbacks_of_an_application_are_served_from_a_thread() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def on_read(scope: object, path: str, context: Context) -> bytes:
        loops.append(asyncio.get_running_loop())
        return b"live"

    def application() -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            with serving({"on_read": on_read}, async_library=loop) as url:
                ready.append(url)
                started.set()
                await asyncio.to_thread(stop.wait)

        asyncio.run(main())

    ready: list[str] = []
    started, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=application)
    thread.start()
    try:
        assert await trio.to_thread.run_sync(started.wait, 10)
        files = Persistence(await connect(ready[0]), owned=True)
        assert await files.read("a") == b"live"
        await files.aclose()
    finally:
        stop.set()
        await trio.to_thread.run_sync(thread.join)
    assert len(loops) == 1


def test_what_ended_the_server_is_told_where_it_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ends(*_: object, task_status: trio.TaskStatus[list[str]], **__: object) -> None:
        task_status.started(["http://127.0.0.1:1"])
        raise ZeroDivisionError

    monkeypatch.setattr("hypercorn.trio.serve", ends)
    with pytest.raises(ZeroDivisionError), serving(Files()):
        for thread in threading.enumerate():
            if thread.name == "callbacks over HTTP":
                thread.join()


def test_a_server_leaves_no_thread() -> None:
    async def on_read(*_: object) -> bytes:
        return b"served"

    async def scope_of(told: object) -> object:
        return told

    for function in (on_read, scope_of):
        function.async_library = "asyncio"  # type: ignore[union-attr]
    before = set(threading.enumerate())
    with serving({"on_read": on_read}, scope_of=scope_of) as url:
        assert httpx.get(f"{url}/files/a", headers={wire.CONTEXT: "{}"}).content == b"served"
        names = {thread.name for thread in set(threading.enumerate()) - before}
    assert {"asyncio callbacks of callbacks", "asyncio callbacks of scope_of"} <= names
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in left if not name.startswith("Trio thread")}


async def test_a_unix_socket_serves_too_and_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "app #1.sock"
    async with remote(Files(), bind=f"unix:{path}") as files:
        await files.write("a", b"x")
        assert path.stat().st_mode & 0o777 == 0o600
        other = Persistence(await connect(f"http+unix://{quote(str(path), safe='')}/"), owned=True)
        assert await other.read("a") == b"x"
        await other.aclose()


async def test_the_scope_is_what_the_application_makes_of_it() -> None:
    target = Files()

    def scope_of(told: Any) -> object:
        if told["user"] != 1:
            raise PermissionError("who?")
        return ("user", told["user"])

    async with remote(target, {"user": 1}, scope_of=scope_of) as files:
        await files.write("a", b"")
        assert target.told[-1][0] == ("user", 1)
        error = await raised(files.for_scope({"user": 2}).write, "a", b"")
        assert error.errno == errno.EACCES
        assert (await raised(files.for_scope(object()).write, "a", b"")).errno == errno.EIO


async def test_a_scope_that_can_be_awaited_or_iterated_is_handed_on_as_it_is() -> None:
    class Pool:
        def __await__(self) -> Iterator[Any]:
            raise AssertionError("awaited")

        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("iterated")

    pool, target = Pool(), Files()

    async def later(told: Any) -> object:
        return pool

    for scope_of in (lambda told: pool, later):
        async with remote(target, scope_of=scope_of) as files:
            await files.write("a", b"")
            assert target.told[-1][0] is pool


# Errors


@pytest.mark.parametrize(
    ("failure", "number"),
    [
        *((OSError(number, "told"), number) for number in (errno.EDQUOT, errno.EROFS, errno.ENOTEMPTY, errno.ENOSPC)),
        (FileNotFoundError(), errno.ENOENT),
        (RuntimeError("bug"), errno.EIO),
        (TimeoutError(), errno.ETIMEDOUT),
    ],
)
async def test_an_error_keeps_its_errno_over_http(failure: Exception, number: int) -> None:
    def on_read(*_: object) -> bytes:
        raise failure

    async with remote({"on_read": on_read}) as files:
        assert (await raised(files.read, "a")).errno == number


async def test_a_conflict_over_http_says_what_was_found() -> None:
    async with remote(Files()) as files:
        error = await raised(files.write, "a", b"", {"if_version": "old"})
    assert isinstance(error, Conflict)
    assert error.found == "new"


@pytest.mark.parametrize(
    ("status", "body", "number"),
    [
        (404, b"", errno.ENOENT),
        (404, b'{"errno": "EROFS"}', errno.EROFS),
        (412, b"<html>", errno.ESTALE),
        (507, b"null", errno.ENOSPC),
        (401, b'{"errno": 5, "message": 6}', errno.EACCES),
        (500, b'{"errno": "NOSUCH"}', errno.EIO),
        (500, b'{"errno": "EOPNOTSUPP"}', errno.EOPNOTSUPP),
        (500, b'{"errno": "ENOTSUP"}', errno.EOPNOTSUPP),
        (500, b'{"errno": "EWOULDBLOCK"}', errno.EAGAIN),
        (302, b"", errno.EIO),
    ],
)
async def test_the_status_decides_where_another_server_says_no_errno(status: int, body: bytes, number: int) -> None:
    async with answering(f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body) as files:
        assert (await raised(files.read, "a")).errno == number


@asynccontextmanager
async def answering(answer: bytes, **options: Any) -> AsyncIterator[Persistence]:
    """A server that says `answer` to every connection, then closes it; an empty one is silence."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            with contextlib.suppress(trio.BrokenResourceError):  # a client need not read to the end
                await stream.send_all(answer)
            if not answer:
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(functools.partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        can = ["on_list", "on_read", "on_read_range", "on_write", "on_commit", "on_stat"]
        files = Persistence(await connect(f"http://127.0.0.1:{port}/base", can=can, **options), owned=True)
        yield files
        await files.aclose()
        nursery.cancel_scope.cancel()


def ok(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize(
    ("answer", "call"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", lambda p: p.read("a")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n", lambda p: p.read("a")),
        (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n"a"\n\r\n', lambda p: p.list()),
        (b"not HTTP\r\n\r\n", lambda p: p.read("a")),
        (ok(b"{truncated"), lambda p: p.list()),
        (ok(b"[]"), lambda p: p.write("a", b"")),
        (ok(b"nonsense"), lambda p: p.write("a", b"")),
        (ok(b"[null, null]"), lambda p: p.commit([Change("delete", "a", {})])),
        (ok(b'{"size": "5"}'), lambda p: p.stat("a")),
        (ok(b"xx", "Content-Range: bytes 7-8/*", status="206 x"), lambda p: p.read_range("a", 0, 2)),
        (ok(b"xxx", "Content-Range: bytes 0-2/*", status="206 x"), lambda p: p.read_range("a", 0, 2)),
        (ok(b"x" * 100, "Content-Range: bytes 0-99/1000", status="206 x"), lambda p: p.read_range("a", 0, 1000)),
        (ok(b"x" * 100, "Content-Range: bytes 0-99/1000", status="206 x"), lambda p: p.read_range("a", 0, 101)),
        (ok(b"xx", status="206 x"), lambda p: p.read_range("a", 0, 2)),
        (ok(b"xx", "Content-Range: bytes 0-1/2", status="206 x"), lambda p: p.read("a")),
        (b"HTTP/1.1 204 x\r\n\r\n", lambda p: p.read("a")),
        (b"HTTP/1.1 204 x\r\n\r\n", lambda p: p.read_range("a", 0, 2)),
    ],
)
async def test_an_answer_that_is_cut_off_or_wrong_is_an_error_never_content(
    answer: bytes, call: Callable[[Persistence], Any]
) -> None:
    async with answering(answer) as files:
        with pytest.raises(OSError) as caught:
            await call(files)
    assert caught.value.errno in (errno.EIO, errno.EFBIG)


async def test_a_server_that_ignores_ranges_still_answers_them() -> None:
    async with answering(ok(bytes(range(256)) * 4096)) as files:
        assert await files.read_range("a", 70000, 300) == (bytes(range(256)) * 4096)[70000:70300]
        assert await files.read_range("a", 1 << 20, 300) == b""


@pytest.mark.parametrize("told", ["bytes 2-4/5", "bytes 2-4/*"])
async def test_a_range_may_be_shorter_where_the_file_ends(told: str) -> None:
    async with answering(ok(b"cde", f"Content-Range: {told}", status="206 x")) as files:
        assert await files.read_range("a", 2, 10) == b"cde"


async def test_a_listing_of_another_language_may_mix_paths_objects_and_mistakes(caplog: Log) -> None:
    lines = [
        b'"/plain"',
        b'{"path": "obj", "size": 3, "version": 7}',
        b'{"path_base64": "/w=="}',
        b"",
        b'"\xe2\x80\xa8"',
    ]
    bad = [b"5", b'{"size": 3}', b'{"path": "x", "size": "big"}', b'{"path_base64": "!"}', b'"../up"']
    async with answering(ok(b"\n".join(lines + bad))) as files:
        found = await files.list()
        assert [(r.path, r.size, r.version) for r in found] == [
            *(("plain", -1, None), ("obj", 3, "7"), ("\udcff", -1, None), ("\u2028", -1, None))
        ]
        assert len(files.skipped) == 5


async def test_a_server_that_refuses_a_large_body_in_the_middle_is_heard() -> None:
    async with remote(Files(), body_max=1000) as files:
        for _ in range(3):
            assert (await raised(files.write_file, "a", io.BytesIO(bytes(20 << 20)))).errno == errno.EFBIG
        await files.write("a", b"x")


async def test_an_answer_larger_than_what_may_be_held_is_efbig() -> None:
    async with answering(ok(bytes(100)), max_file_size=99) as files:
        assert (await raised(files.read, "a")).errno == errno.EFBIG


async def test_a_range_after_the_end_is_416() -> None:
    async with served() as (target, client):
        target.files["/a"] = b"12345"
        assert (await client.get("/files/a", headers={"Range": "bytes=5-9"})).status_code == 416
        answer = await client.get("/files/a", headers={"Range": "bytes=3-9"})
        assert (answer.status_code, answer.content, answer.headers["Content-Range"]) == (206, b"45", "bytes 3-4/*")


# Time and absence


async def test_a_read_on_a_connection_that_the_server_just_ended_is_asked_again() -> None:
    requests: list[bytes] = []

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            for answer in (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", b""):
                requests.append((await stream.receive_some())[:4])
                await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(functools.partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        files = Persistence(await connect(url, can=["on_read", "on_write"]), owned=True)
        assert await files.read("a") == b"x"
        assert await files.read("a") == b"x"
        assert (await raised(files.write, "a", b"")).errno == errno.EIO, "it may have been carried out"
        assert requests == [b"GET ", b"GET ", b"GET ", b"PUT "]
        await files.aclose()
        nursery.cancel_scope.cancel()


async def test_a_silent_server_is_etimedout_never_a_hang(autojump_clock: trio.testing.MockClock) -> None:
    async with answering(b"", seconds=20) as files:
        before = trio.current_time()
        assert (await raised(files.read, "a")).errno == errno.ETIMEDOUT
        assert trio.current_time() - before == pytest.approx(20)


async def test_a_server_that_goes_and_comes_back_is_used_again_with_one_line_each(caplog: Log) -> None:
    target = Files()
    target.files["/a"] = b"x"
    with socket.create_server(("127.0.0.1", 0)) as free:
        bind = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(OSError, match=f"callbacks at http://{bind}: .*reached"):
        await connect(f"http://{bind}")
    files = Persistence(await connect(f"http://{bind}", can=["on_read"]), owned=True)
    caplog.clear()
    for _ in range(2):
        assert (await raised(files.read, "a")).errno == errno.EIO
        async with trio.open_nursery() as nursery:
            await nursery.start(functools.partial(serve, target, bind=bind))
            assert await files.read("a") == b"x"
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            await nursery.start(functools.partial(serve, target, bind=bind))
            assert await files.read("a") == b"x", "the kept connection had ended"
            nursery.cancel_scope.cancel()
    lines = [r.getMessage() for r in caplog.records if r.name == "vfs.http.client"]
    assert [("cannot be" in line, "again" in line) for line in lines] == [(True, False), (False, True)] * 2
    await files.aclose()


@pytest.mark.parametrize(
    "url",
    ["ftp://x", "x", "http://", "http+unix://", "http+unix://rel/base", "http://u:p@x", "http://x/?q", "http://x/#f"],
)
async def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="callbacks at") as caught:
        await connect(url)
    assert "p@" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"{}", b'{"mount_session": 2, "callbacks": ["on_read"]}', b'{"mount_session": 1, "callbacks": ["x"]}'],
)
async def test_what_does_not_speak_the_format_is_refused_at_once(body: bytes) -> None:
    async with answering(ok(body)) as files:
        url = url_of(files)
        with pytest.raises(OSError, match="callbacks at http://127.0.0.1"):
            await connect(url)


async def test_a_scope_too_long_for_a_header_is_an_error_of_its_own() -> None:
    async with remote(Files(), "x" * 40000) as files:
        assert (await raised(files.read, "a")).errno == errno.E2BIG


# Hostile clients


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[tuple[Files, httpx.AsyncClient]]:
    target = Files()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(functools.partial(serve, target, **options))
        async with httpx.AsyncClient(base_url=url) as client:
            yield target, client
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("PUT", "/files/a%2F..%2F..%2Fetc", {}, 400),
        ("PUT", "/files/%2e%2e/x", {}, 400),
        ("PUT", "/files/", {}, 400),
        ("PUT", "/files//a", {}, 400),
        ("PUT", "/files/a%00b", {}, 400),
        ("PUT", "/files/" + "x" * 300, {}, 400),
        ("GET", "/files/a", {"headers": {"Range": "bytes=5-"}}, 400),
        ("GET", "/files/a", {"headers": {"Range": "bytes=9-1"}}, 400),
        ("GET", "/files/a", {"headers": {"Range": "bytes=0-999999999999"}}, 400),
        ("PUT", "/files/a", {"headers": {wire.SCOPE: "{not json"}}, 400),
        ("PUT", "/files/a", {"headers": {wire.SCOPE: "[" * 20000}}, 400),
        ("PUT", "/files/a", {"headers": {wire.CONTEXT: "[]"}}, 400),
        ("PUT", "/files/a", {"headers": {wire.CONTEXT: '{"mode": "x"}'}}, 400),
        ("PUT", "/files/a", {"content": b"x" * 1001}, 413),
        ("POST", "/move", {"content": b"{"}, 400),
        ("POST", "/move", {"json": {"source": "a", "path": "../b"}}, 400),
        ("POST", "/move", {"json": {"path": "b"}}, 400),
        ("POST", "/move", {"content": b"x" * 70000}, 413),
        ("POST", "/commit", {"content": b""}, 400),
        ("POST", "/commit", {"content": b'{"kind": "write", "path": "a", "size": 9}\nshort'}, 400),
        ("POST", "/commit", {"content": b'{"kind": "write", "path": "a", "size": -1}\n'}, 400),
        ("POST", "/commit", {"content": b'{"kind": "write", "path": "a"}'}, 400),
        ("POST", "/commit", {"content": b'{"kind": "explode", "path": "a"}\n'}, 400),
        ("POST", "/commit", {"content": b'{"kind": "delete", "path": "../a"}\n'}, 400),
        ("POST", "/commit", {"content": b'{"kind": "write", "path": "a", "size": 900}\n' + b"x" * 2000}, 413),
        ("POST", "/commit", {"content": b"x" * 900}, 400),
    ],
)
async def test_what_is_not_in_the_format_is_a_4xx_and_a_line_and_calls_nothing(
    method: str, path: str, options: dict[str, Any], status: int, caplog: Log
) -> None:
    async with served(body_max=1000) as (target, client):
        target.files["/a"] = b"1234567890"
        before = dict(target.files)
        answer = await client.request(method, path, **options)
    assert answer.status_code == status, answer.text
    assert target.files == before and not target.told
    assert "refused" in caplog.text


async def test_without_its_token_nothing_is_answered(caplog: Log) -> None:
    async with served(token="right") as (target, client):
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic right"},
            {"Authorization": "ü"},
        ):
            raw = {k.encode(): v.encode("latin-1") for k, v in headers.items()}
            answer = await client.put("/files/a", content=b"x", headers=raw)
            assert answer.status_code == 401
        assert not target.files
        answer = await client.put("/files/a", content=b"x", headers={"Authorization": "Bearer right"})
        assert answer.status_code == 200
    assert "refused" in caplog.text and "wrong" not in caplog.text


async def test_with_the_token_everything_is_answered() -> None:
    async with remote(Files(), token="right") as files:
        await files.write("a", b"x")


async def test_an_open_port_needs_a_token() -> None:
    for bind in ("0.0.0.0:0", "[::]:0", "example.org:80"):
        with pytest.raises(ValueError, match="needs a token"):
            await serve(Files(), bind=bind)
    with pytest.raises(ValueError, match="needs a token"), serving(Files(), bind="0.0.0.0:0"):
        pass


async def test_a_body_that_ends_early_calls_nothing(caplog: Log) -> None:
    async with served() as (target, client):
        stream = await trio.open_tcp_stream(str(client.base_url.host), int(client.base_url.port or 0))
        await stream.send_all(b"PUT /files/a HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        await stream.aclose()
        with trio.fail_after(10):
            while "went away" not in caplog.text:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert not target.told


def test_the_client_declares_its_library() -> None:
    assert HttpCallbacks.async_library == "trio"
