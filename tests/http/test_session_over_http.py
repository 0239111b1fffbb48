"""A session whose callbacks are at the other end of HTTP: it goes on while they are away, and catches up."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.http.test_callbacks_over_http import Files
from tests.vfs.shelf import content, put
from vfs.http import connect, serve
from vfs.persistence import Persistence
from vfs.routes import Route, Routes
from vfs.session import Session
from vfs.tree import KERNEL


@asynccontextmanager
async def serving_on(socket: Path, target: object) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(functools.partial(serve, target, bind=f"unix:{socket}"))
        yield
        nursery.cancel_scope.cancel()


async def test_a_session_goes_on_while_its_callbacks_are_away(tmp_path: Path) -> None:
    target, socket = Files(), tmp_path / "app.sock"
    async with serving_on(socket, target):
        persistence = Persistence(await connect(f"http+unix://{socket}"), {"user": 1}, owned=True)
        routes = Routes([Route("", persistence)])
        async with Session.open("s", tmp_path / "state", routes=routes) as session:
            await put(session, "known", b"before")
    async with Session.open("s", tmp_path / "state", routes=routes) as session:
        for n in range(30):
            await put(session, f"d/{n}", b"%d" % n)
        await put(session, "large", bytes(3 << 20))
        session.unlink(session.lookup(1, b"d").ino, b"7", KERNEL)
        assert await content(session, "d/8") == b"8"
        with trio.fail_after(30):
            while not any("reached" in reason.error for reason in session.receipt().reasons):  # noqa: ASYNC110
                await trio.sleep(0.02)
        async with serving_on(socket, target):
            with trio.fail_after(60):
                assert (await session.sync()).pending == 0
            expected = {f"/d/{n}": b"%d" % n for n in range(30) if n != 7}
            assert target.files == expected | {"/large": bytes(3 << 20), "/known": b"before"}
            assert {scope["user"] for scope, _ in target.told if isinstance(scope, dict)} == {1}
    await persistence.aclose()
