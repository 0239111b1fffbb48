"""A receiver gets every event in order, signed, however often it fails first; and harms nobody but itself."""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h11
import httpx
import pytest
import trio
from trio.testing import MockClock

from mount import durable, webhooks
from mount.outbox import Outbox
from mount.settings import Webhook
from mount.webhooks import SIGNATURE, Webhooks, signature

Request = tuple[dict[str, str], bytes]


class Server:
    """A receiver on a real socket; `answers` gives the status of each request, None hangs."""

    def __init__(self, answers: Callable[[int], int | None]) -> None:
        self.requests: list[Request] = []
        self.answers = answers
        self.changed = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        connection, headers, body = h11.Connection(h11.SERVER), dict[str, str](), b""
        async with stream:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(65536))
                elif isinstance(event, h11.Request):
                    headers = {name.decode(): value.decode() for name, value in event.headers}
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return
            self.requests.append((headers, body))
            self.changed.set()
            self.changed = trio.Event()
            status = self.answers(len(self.requests))
            if status is None:
                await trio.sleep_forever()
            response = h11.Response(status_code=status or 500, headers=[("content-length", "0")])
            await stream.send_all((connection.send(response) or b"") + (connection.send(h11.EndOfMessage()) or b""))

    async def wait(self, count: int) -> None:
        while len(self.requests) < count:
            await self.changed.wait()

    def events(self) -> list[int]:
        return [json.loads(body)["seq"] for _, body in self.requests]


@asynccontextmanager
async def receiving(answers: Callable[[int], int | None], **fields: object) -> AsyncIterator[tuple[Server, Webhooks]]:
    server = Server(answers)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, server.serve, 0)
        port = listeners[0].socket.getsockname()[1]
        hooks = Webhooks((Webhook(url=f"http://127.0.0.1:{port}/hook", **fields),))  # type: ignore[arg-type]
        nursery.start_soon(hooks.run)
        yield server, hooks
        nursery.cancel_scope.cancel()


def event(seq: int, kind: str = "modified", session: str = "s") -> dict[str, object]:
    return {"seq": seq, "kind": kind, "session": session}


async def test_events_come_in_order_with_a_signature_that_checks(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"hush\n")
    async with receiving(lambda n: 204, secret_file=str(tmp_path / "secret")) as (server, hooks):
        for seq in range(5):
            hooks.put(event(seq))
        await server.wait(5)
        assert server.events() == [0, 1, 2, 3, 4]
        headers, body = server.requests[0]
        stamp, given = headers[SIGNATURE.lower()].removeprefix("t=").split(",v1=")
        assert hmac.compare_digest(hmac.new(b"hush", f"{stamp}.".encode() + body, hashlib.sha256).hexdigest(), given)
        assert signature(b"hush", int(stamp), body) == headers[SIGNATURE.lower()]


async def test_a_failing_receiver_is_tried_again_until_it_takes_each_event_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhooks, "FIRST_DELAY", 0.001)
    async with receiving(lambda n: {1: 500, 2: 503, 3: 302, 6: 404}.get(n, 200)) as (server, hooks):
        for seq in range(3):
            hooks.put(event(seq))
        await server.wait(7)
        assert server.events() == [0, 0, 0, 0, 1, 2, 2]
        assert hooks.receivers[0].failures == 4


async def test_a_receiver_that_hangs_is_given_up_at_its_deadline_and_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhooks, "FIRST_DELAY", 0.001)
    async with receiving(lambda n: None if n == 1 else 200, timeout=0.05) as (server, hooks):
        hooks.put(event(1))
        await server.wait(2)
        assert server.events() == [1, 1]


async def test_only_what_it_asked_for(tmp_path: Path) -> None:
    async with receiving(lambda n: 200, events=("synced",), sessions=("team-*",)) as (server, hooks):
        hooks.put(event(1, "synced", "other"))
        hooks.put(event(2, "modified", "team-a"))
        hooks.put(event(3, "synced", "team-a"))
        await server.wait(1)
        assert server.events() == [3] and hooks.receivers[0].pending <= 1


async def test_gone_ends_it() -> None:
    async with receiving(lambda n: 410) as (server, hooks):
        hooks.put(event(1))
        await server.wait(1)
        with trio.fail_after(5):
            while not hooks.receivers[0].gone:
                await trio.lowlevel.checkpoint()
        hooks.put(event(2))
        assert hooks.receivers[0].pending == 0


async def test_a_dead_receivers_queue_is_bounded_and_it_is_told_what_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "QUEUE", 3)
    monkeypatch.setattr(webhooks, "FIRST_DELAY", 0.001)
    alive = False
    async with receiving(lambda n: 200 if alive else 503) as (server, hooks):
        for seq in range(10):
            hooks.put(event(seq))
        assert hooks.receivers[0].pending == 3 and hooks.receivers[0].dropped == 7
        await server.wait(1)
        alive = True
        before = len(server.requests)
        await server.wait(before + 3)
        taken = [(json.loads(body)["seq"], headers.get("mount-session-missed")) for headers, body in server.requests]
        assert taken[-3:] == [(7, "7"), (8, None), (9, None)]


async def test_the_delay_grows_to_minutes_not_more(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = Webhooks((Webhook(url="http://127.0.0.1:1/hook"),))
    receiver, times = hooks.receivers[0], list[float]()

    async def refused(body: bytes, missed: int) -> str:
        times.append(trio.current_time())
        return "refused"

    monkeypatch.setattr(receiver, "_post", refused)
    receiver.put({"seq": 1})
    with trio.move_on_after(3600):
        await receiver.run()
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert gaps[0] <= 1 and max(gaps) <= webhooks.LONGEST_DELAY and gaps[-1] >= webhooks.LONGEST_DELAY / 2
    await hooks._client.aclose()


async def test_whatever_goes_wrong_in_a_request_it_is_made_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[Exception] = [httpx.InvalidURL("odd"), UnicodeError("label empty or too long"), KeyError("x")]

    def fail(*_: object, **__: object) -> None:
        raise failures.pop()

    hooks = Webhooks((Webhook(url="http://127.0.0.1/"),))
    monkeypatch.setattr(httpx.AsyncClient, "stream", fail)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hooks.run)
        hooks.put(event(1))
        while failures:  # noqa: ASYNC110
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert hooks.receivers[0].failures >= 2 and hooks.receivers[0].pending == 1


async def test_on_a_full_disk_the_places_are_written_down_later(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = Webhooks((Webhook(url="http://127.0.0.1/"),))
    (tmp_path / "registry").mkdir()
    daemon: Any = SimpleNamespace(settings=SimpleNamespace(own=tmp_path), webhooks=hooks, hosted={})
    write, failures = durable.write, [OSError(errno.ENOSPC, "No space left on device")] * 2

    def scarce(path: Path, content: bytes) -> None:
        if failures:
            raise failures.pop()
        write(path, content)

    monkeypatch.setattr(durable, "write", scarce)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Outbox(daemon).run)
        while not (tmp_path / "registry/webhooks.json").exists():  # noqa: ASYNC110
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert not failures
    assert json.loads((tmp_path / "registry/webhooks.json").read_bytes()) == {"http://127.0.0.1/": {}}
