"""What a client sends to a port that anybody may reach costs that client its connection, and nobody else anything."""

from __future__ import annotations

import socket

import trio
import trio.testing
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from mount.listener import serve_port

PLAIN = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\n\r\n"


async def answered(port: int, request: bytes) -> bytes:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(request)
        answer = b""
        try:
            while got := await stream.receive_some():
                answer += got
        except trio.BrokenResourceError:
            pass
        return answer


async def test_a_connection_that_ends_by_a_defect_ends_alone() -> None:
    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_port, Starlette(routes=[Route("/", hello)]), f"127.0.0.1:{port}")
            await trio.testing.wait_all_tasks_blocked()
            await answered(port, UPGRADE)
            answer = await answered(port, PLAIN)
            nursery.cancel_scope.cancel()
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"hello")
