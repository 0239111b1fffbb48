"""A channel between supervisor and worker: neither a message too long nor one that is none harms who reads it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio

from mount.channel import MAX_MESSAGE, Answer, BrokenChannel, Call, Channel, pair
from mount.handle import WorkerHandle
from mount.spawner import Child


async def answer(name: str, arguments: dict[str, Any], descriptors: list[int]) -> Answer:
    if name == "raise":
        raise OSError(errno.EACCES, "x" * arguments["bytes"])
    return Answer("x" * arguments["bytes"])


@asynccontextmanager
async def connected() -> AsyncIterator[Channel]:
    ours, theirs = pair()
    channel, peer = Channel(ours), Channel(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.serve, answer)
        nursery.start_soon(peer.serve, answer)
        yield channel
        nursery.cancel_scope.cancel()


async def test_what_is_too_long_for_a_message_is_an_error_and_the_channel_goes_on() -> None:
    async with connected() as channel:
        for arguments in ({"bytes": 1, "padding": "x" * MAX_MESSAGE}, {"bytes": MAX_MESSAGE}):
            with pytest.raises(OSError, match="too many for one message") as raised:
                await channel.call("echo", arguments)
            assert raised.value.errno == errno.EMSGSIZE
        assert await channel.call("echo", {"bytes": 3}) == ("xxx", [])


async def test_an_error_arrives_however_long_its_text_is() -> None:
    async with connected() as channel:
        with pytest.raises(PermissionError) as raised:
            await channel.call("raise", {"bytes": 10 * MAX_MESSAGE})
        assert len(str(raised.value.strerror)) == 1000


@pytest.mark.parametrize(
    "message",
    [b"\xc1", b"\xa2\xff\xff", b"\x91" * 9999, msgspec.msgpack.encode(Call(1, "x" * MAX_MESSAGE, {}))],
    ids=["no MessagePack", "no UTF-8", "nested", "too long"],
)
async def test_a_worker_that_sends_what_is_no_message_is_killed(message: bytes) -> None:
    ours, theirs = pair()
    with theirs, subprocess.Popen(["sleep", "1000"]) as process:  # noqa: ASYNC220
        child = Child(process.pid, os.pidfd_open(process.pid))
        child.reported.set()
        worker = WorkerHandle(child, Channel(ours))
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.attend)
                theirs.send(message)
                with pytest.raises(BrokenChannel):
                    await worker.channel.call("ping")
        assert process.wait() == -signal.SIGKILL
