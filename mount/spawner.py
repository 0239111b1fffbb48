"""The spawner: the supervisor's side of the zygote. It starts one when it is needed, and has it fork workers.

A `Child` is a worker that was forked: its pidfd tells when it is dead, the zygote tells how it died. When the zygote
itself dies, the workers live on, and the next `fork` or `keep` starts another zygote.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec
import trio

from mount.channel import MAX_MESSAGE, BrokenChannel, pack_descriptors, packed, pair, unpack_descriptors
from mount.config import Order, Start
from mount.title import ROOM
from mount.zygote import Exited, Forked, NotForked

GOODBYE: Final = 1.0  # seconds for the zygote to end; with a mount left it does not
PROJECT: Final = Path(__file__).resolve().parent.parent

_decoder: msgspec.msgpack.Decoder[Forked | NotForked | Exited] = msgspec.msgpack.Decoder(Forked | NotForked | Exited)

_Answer = tuple[Forked | NotForked, list[int]]


def python_path() -> str:
    """Where processes of ours find this project's modules, whatever the current directory is."""
    return os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))


def _start_zygote(theirs: socket.socket) -> subprocess.Popen[bytes]:
    # start_new_session: a terminal's Ctrl-C is for the supervisor; -P: a module in the current directory is not ours
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "mount.zygote", str(theirs.fileno()), ROOM],
        env={**os.environ, "PYTHONPATH": python_path()},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=2,  # ours is for the one line and the receipt; a notebook's sys.stderr has no descriptor
        start_new_session=True,
    )


class Child:
    """A worker process. `status` is known some time after its death, if at all: negative is a signal."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.status: int | None = None
        self.reported = trio.Event()

    async def wait(self) -> None:
        """Until the process is dead."""
        await trio.lowlevel.wait_readable(self.pidfd)
        with trio.move_on_after(0.5):  # the zygote's report comes by another way
            await self.reported.wait()

    def kill(self, number: int) -> None:
        """Send a signal; nothing where the process is dead already."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        os.close(self.pidfd)
        self.pidfd = -1

    @property
    def death(self) -> str:
        if self.status is None:
            return "died"
        return f"was killed by signal {-self.status}" if self.status < 0 else f"ended with status {self.status}"


class Spawner:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._sock: trio.socket.SocketType | None = None
        self._asking = trio.Lock()
        self._children: dict[int, Child] = {}
        self._early: dict[int, int] = {}
        self._forked: trio.MemoryReceiveChannel[_Answer]
        self.process: subprocess.Popen[bytes] | None = None
        self.lost = trio.Event()
        """Set when the zygote dies: it keeps nothing alive any more."""

    async def start(self) -> None:
        """Have a zygote running; its imports go on beside whatever the caller does next."""
        if self._sock is not None:
            return
        ours, theirs = pair()
        with theirs:
            try:
                self.process = _start_zygote(theirs)
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        self._sock = trio.socket.from_stdlib_socket(ours)
        self.lost = trio.Event()
        send, self._forked = trio.open_memory_channel[_Answer](0)
        self._nursery.start_soon(self._read, self._sock, send)

    async def fork(self, start: Start, fuse_fd: int, control: socket.socket) -> Child:
        """A new worker; raises why there is none. The descriptors stay the caller's as well."""
        async with self._asking:
            await self.start()
            assert self._sock is not None
            order = packed(Order("fork", start))
            try:
                await self._sock.sendmsg([order], pack_descriptors((fuse_fd, control.fileno())))
                answer, descriptors = await self._forked.receive()
            except (BrokenPipeError, ConnectionResetError, trio.EndOfChannel) as error:
                raise BrokenChannel("the zygote died; see the log") from error
        if isinstance(answer, NotForked):
            raise answer.failure.error()
        pid = answer.pid
        if not descriptors:  # the kernel leaves out those for which there is no room
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            raise OSError(errno.EMFILE, "no descriptor is left for another worker")
        child = self._children[pid] = Child(pid, descriptors[0])
        if pid in self._early:
            self._report(pid, self._early.pop(pid))
        return child

    async def keep(self, start: Start, fuse_fd: int) -> None:
        """Have the zygote keep a mount alive that has no worker now; the next `fork` for the session ends that."""
        async with self._asking:
            await self.start()
            await self._tell(Order("keep", start), (fuse_fd,))

    async def forget(self, start: Start) -> None:
        """The mount is no more, or is not ours any more."""
        async with self._asking:
            if self._sock is not None:
                await self._tell(Order("forget", start), ())

    async def _tell(self, order: Order, descriptors: tuple[int, ...]) -> None:
        assert self._sock is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead, and so is what it kept
            await self._sock.sendmsg([packed(order)], pack_descriptors(descriptors))

    async def _read(self, sock: trio.socket.SocketType, forked: trio.MemorySendChannel[_Answer]) -> None:
        space = socket.CMSG_SPACE(array.array("i").itemsize)
        with forked:
            while True:
                try:
                    encoded, ancillary, _, _ = await sock.recvmsg(MAX_MESSAGE, space)
                except (ConnectionResetError, trio.ClosedResourceError):
                    encoded = b""
                if not encoded:
                    break
                message = _decoder.decode(encoded)
                if isinstance(message, Exited):
                    self._report(message.pid, message.status)
                else:
                    await forked.send((message, unpack_descriptors(ancillary)))
        sock.close()
        if self._sock is sock:
            self._sock = None
            self.lost.set()
            assert self.process is not None
            await trio.to_thread.run_sync(self.process.wait)

    def _report(self, pid: int, status: int) -> None:
        child = self._children.pop(pid, None)
        if child is None:
            self._early[pid] = status
            return
        child.status = status
        child.reported.set()

    async def close(self) -> int | None:
        """Part from the zygote; workers are left alone. Where mounts are left it keeps them, and its id is returned."""
        if self._sock is None or self.process is None:
            return None
        self._sock.close()
        self._sock = None
        with trio.move_on_after(GOODBYE):
            await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)
        return None if self.process.returncode is not None else self.process.pid
