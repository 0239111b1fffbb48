"""The /dev/fuse descriptor as a worker has it: libfuse is set up on a live connection, and the gate before its reads.

libfuse takes the `/dev/fd/M` that `connect` names for an already mounted descriptor. M is at first one end of a socket
pair in which the replayed INIT lies (`handshake.Agreement.request`); when libfuse has read it, the real descriptor is
dup2()ed over M. From then on libfuse reads from and answers to the kernel directly.

pyfuse3 looks `trio` up as an attribute of its module (its own `pyfuse3.asyncio.enable` replaces it the same way), so
the switch, the polling and the gate need no patch: they are our `wait_readable`. There is one device in a process, for
pyfuse3 has one session in a process. Only the worker imports this.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace, TracebackType
from typing import Final

import pyfuse3
import trio

from mount.handshake import Agreement

SPIN: Final = 50e-6  # seconds
LONGEST_REST: Final = 64
CHECKPOINT_EVERY: Final = 64


class QuietLock:
    """A lock that is no checkpoint when nobody holds it: pyfuse3's tasks take it to wait for their next request.

    A task comes here in the same step in which it has answered its request before, which is what `answered` is told.
    """

    def __init__(self, answered: Callable[[], None]) -> None:
        self._held = False
        self._waiting: list[trio.Event] = []
        self._answered = answered

    async def __aenter__(self) -> None:
        self._answered()
        while self._held:
            turn = trio.Event()
            self._waiting.append(turn)
            await turn.wait()
        self._held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held = False
        if self._waiting:
            self._waiting.pop(0).set()


class Device:
    """One live connection. `waits` counts requests taken; `closed` says that no more will be."""

    def __init__(self, fd: int, agreement: Agreement, answered: Callable[[], None]) -> None:
        self.fd = fd
        self.waits = 0
        self._agreement = agreement
        self._answered = answered
        self.closed = False
        self.connected = trio.Event()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._parked: trio.CancelScope | None = None
        self._misses = 0
        self._rest = 0

    def connect(self, operations: pyfuse3.Operations) -> None:
        """Have libfuse set itself up for `operations`; it will read the replayed INIT in `pyfuse3.main`."""
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.send(self._agreement.request())
        self._session_fd = theirs.detach()
        pyfuse3.trio = SimpleNamespace(  # type: ignore[attr-defined]
            Lock=partial(QuietLock, self._answered),
            open_nursery=trio.open_nursery,
            ClosedResourceError=trio.ClosedResourceError,
            lowlevel=SimpleNamespace(
                current_task=trio.lowlevel.current_task,
                current_trio_token=trio.lowlevel.current_trio_token,
                notify_closing=trio.lowlevel.notify_closing,
                wait_readable=self._first_wait,
            ),
        )
        pyfuse3.init(operations, f"/dev/fd/{self._session_fd}")

    async def _first_wait(self, fd: int) -> None:
        """INIT lies in the socket; what follows it comes from the kernel."""
        pyfuse3.trio.lowlevel.wait_readable = self._second_wait  # type: ignore[attr-defined]

    async def _second_wait(self, fd: int) -> None:
        self._agreement.check(self._ours.recv(4096))
        self._ours.close()
        os.dup2(self.fd, self._session_fd, inheritable=False)
        os.close(self.fd)
        self.fd = self._session_fd
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)
        self.connected.set()
        pyfuse3.trio.lowlevel.wait_readable = self.wait_readable  # type: ignore[attr-defined]
        await self.wait_readable(fd)

    async def wait_readable(self, fd: int) -> None:
        """Return when a request is there; ClosedResourceError, which ends pyfuse3's loop, once the gate is closed.

        A request that is there already costs one poll(2). While clients answer at once (a copy, a build), the next one
        comes within SPIN: looking for it that long saves putting the process to sleep and waking it. Measured on 2
        cores: stat by one client 18,800/s -> 24,200/s with poll -> 51,200/s with a spin of 20 us; 4 KiB writes 12,300
        -> 23,900/s. A client that has to be woken first, or thinks a little, needs more: with 50 us `find` takes 0.77
        of the time, writes of small files with 50 us between them 0.72, an untar 0.96, three clients at once 1.02. When
        looking was in vain it is left out for twice as many requests each time, so a quiet session costs no CPU.
        Without an awaited checkpoint now and then a busy client would starve the other tasks.
        """
        if self.closed:
            raise trio.ClosedResourceError
        self.waits += 1
        if self.waits % CHECKPOINT_EVERY and (self._poll.poll(0) or self._spin()):
            return
        await self._pause(fd)

    def _spin(self) -> bool:
        if self._rest:
            self._rest -= 1
            return False
        end = time.perf_counter() + SPIN
        poll = self._poll.poll
        while time.perf_counter() < end:
            if poll(0):
                self._misses = 0
                return True
        self._misses += 1
        self._rest = min(1 << self._misses, LONGEST_REST)
        return False

    async def _pause(self, fd: int) -> None:
        with trio.CancelScope() as self._parked:
            await trio.lowlevel.wait_readable(fd)
        self._parked = None
        if self.closed:
            raise trio.ClosedResourceError

    @property
    def has_answered(self) -> bool:
        """Has a request of the kernel been answered, so another one waited for?"""
        return self.waits > 1

    def close_gate(self) -> None:
        """Take no further request: `pyfuse3.main` returns when those in hand are answered. What the kernel has queued
        stays there, for the next worker."""
        self.closed = True
        if self._parked is not None:
            self._parked.cancel()

    def is_waiting(self) -> bool:
        """Is a request ready that nobody has taken yet?"""
        return bool(self._poll.poll(0))
