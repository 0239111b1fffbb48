"""A mounted session as the supervisor holds it: the descriptor that is the mount, and the worker that serves it now.

Invariants: the descriptor is open from `attach` until the mount is gone, whatever happens to workers; there is at most
one worker at a time; a worker that goes without being asked to is replaced on the same descriptor. Workers that die
again and again before they have answered anything are replaced after a growing delay; the mount stays, and its requests
wait in the kernel.

`mount.supervisor` owns these; it calls `start` once, `run` in a task of its own, then `stop`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import signal
from typing import Any, Final

import msgspec
import trio

from mount import bdi, handshake, holders, mountpoint, readiness
from mount.channel import Answer, BrokenChannel, Channel, pair
from mount.config import Connection, Failure, MountConfig, Receipt, Start
from mount.spawner import Child, Spawner

log = logging.getLogger(__name__)

FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 30.0
FLUSH_LIMIT: Final = 30.0
START_LIMIT: Final = 120.0  # seconds for a worker to open its session; recovery of 100,000 files takes a few


class WorkerHandle:
    """One worker process and the channel to it."""

    def __init__(self, child: Child, channel: Channel) -> None:
        self.child = child
        self.channel = channel
        self.ready = trio.Event()
        self.gone = trio.Event()
        self.failure: Exception | None = None
        self.receipt: Receipt | None = None
        self.progressed = False  # has it answered a request?

    async def handle(self, name: str, arguments: dict[str, Any], descriptors: list[int]) -> Answer:
        """What the worker says by itself."""
        if name == "ready":
            self.ready.set()
        elif name == "progress":
            self.progressed = True
        elif name == "unmounted":
            self.receipt = msgspec.convert(arguments["receipt"], Receipt)
        elif name == "failed":
            self.failure = msgspec.convert(arguments["failure"], Failure).error()
        else:
            raise ValueError(f"a supervisor is asked to {name!r}, which it does not know")
        return Answer()

    async def attend(self) -> None:
        """Read what the worker says until it is dead."""
        await self.channel.serve(self.handle)
        await self.child.wait()
        self.child.close()
        self.gone.set()


class Mounted:
    def __init__(self, config: MountConfig, spawner: Spawner, nursery: trio.Nursery) -> None:
        self.config = config
        self.fd = -1
        self.connection: Connection | None = None
        self.worker: WorkerHandle | None = None
        self.phase = "starting"
        self.restarts = 0
        self.last_death: str | None = None
        self.receipt: Receipt | None = None
        self.gone = trio.Event()
        self._spawner = spawner
        self._nursery = nursery
        self._running = trio.CancelScope()
        self._ran = trio.Event()
        self._delay = 0.0

    # ---- the mount

    async def start(self) -> None:
        """Mount, have a worker serve, and see a real write and read go through; else leave nothing mounted."""
        await trio.to_thread.run_sync(self._attach)
        name = b".mount-session-" + secrets.token_hex(16).encode()
        try:
            await self._employ(probe=name, adopted=False)
            with trio.fail_after(START_LIMIT):
                await trio.to_thread.run_sync(
                    readiness.check, self.config.mountpoint_path, name, self.config.read_only, abandon_on_cancel=True
                )
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._give_up()
            raise
        self.phase = "serving"

    def _attach(self) -> None:
        path = self.config.mountpoint_path
        mountpoint.prepare(path)
        attached = mountpoint.attach(path, self.config.session, read_only=self.config.read_only)
        self.fd = attached.fd
        try:
            agreement = handshake.answer(attached.fd)
        except BaseException:
            mountpoint.detach(path, lazy=True)
            os.close(attached.fd)
            raise
        self.connection = Connection(device=attached.device, **agreement._asdict())
        bdi.tune(attached.device)
        if not attached.allow_other:
            log.warning(
                "only your own processes can use %s; containers with other users need `user_allow_other` in %s",
                path,
                mountpoint.FUSE_CONF,
            )

    async def _give_up(self) -> None:
        if self.worker is not None:
            self.worker.child.kill(signal.SIGKILL)
            await self.worker.gone.wait()
        await trio.to_thread.run_sync(lambda: mountpoint.detach(self.config.mountpoint_path, lazy=True))
        self._close()

    def _close(self) -> None:
        """Let go of the descriptor: the last one closed ends the connection."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.phase = "gone"
        self.gone.set()

    # ---- its worker

    async def _employ(self, *, probe: bytes | None, adopted: bool) -> None:
        """Start a worker and wait until it serves; raises what it failed with."""
        assert self.connection is not None
        ours, theirs = pair()
        start = Start(config=self.config, connection=self.connection, adopted=adopted, probe=probe)
        with theirs, trio.CancelScope(shield=True):
            child = await self._spawner.fork(start, self.fd, theirs)
        self.worker = worker = WorkerHandle(child, Channel(ours))
        self._nursery.start_soon(worker.attend)
        with trio.move_on_after(START_LIMIT) as limit:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_after, worker.gone, nursery.cancel_scope)
                await worker.ready.wait()
                nursery.cancel_scope.cancel()
        if limit.cancelled_caught:
            worker.child.kill(signal.SIGKILL)
            raise TimeoutError(
                errno.ETIMEDOUT, f"the worker of {self.config.session} was not ready after {START_LIMIT:g} s"
            )
        if not worker.ready.is_set():
            raise worker.failure or OSError(
                errno.EIO, f"the worker {worker.child.death} before it was ready; see the log"
            )

    async def run(self) -> None:
        """Keep the session served until it is stopped, or unmounted by someone else."""
        with self._running:
            while self.receipt is None:
                assert self.worker is not None
                await self.worker.gone.wait()
                if self.worker.receipt is None:
                    await self._replace(self.worker)
                    continue
                log.info("%s: %s was unmounted from outside", self.config.session, self.config.mountpoint_path)
                self.receipt = self.worker.receipt
                self._close()
        self._ran.set()

    async def _replace(self, dead: WorkerHandle) -> None:
        self.restarts += 1
        self.phase = "restarting"
        self.last_death = f"worker {dead.child.pid} {dead.child.death}"
        if dead.failure is not None:
            self.last_death += f": {dead.failure}"
        self._delay = 0.0 if dead.progressed else min(max(FIRST_DELAY, self._delay * 2), LONGEST_DELAY)
        log.error("%s: %s; the next in %g s", self.config.session, self.last_death, self._delay)
        await trio.sleep(self._delay)
        try:
            await self._employ(probe=None, adopted=True)
        except (OSError, ValueError) as error:
            if self.worker is dead:  # else it is told as that worker's death
                log.error("%s: no worker could be started: %s", self.config.session, error)
            return
        self.phase = "serving"

    # ---- the end

    async def stop(self) -> Receipt:
        """Unmount, write everything back, and return the receipt. What still uses the mount is named, and loses it."""
        self._running.cancel()
        await self._ran.wait()
        if self.receipt is None:
            self.phase = "stopping"
            await self._flush_pages()
            await trio.to_thread.run_sync(self._detach)
            self.receipt = await self._stop_worker()
            self._close()
        return self.receipt

    async def _flush_pages(self) -> None:
        """Pages changed through mappings; for these a worker is needed. What takes too long is not waited for."""
        assert self.worker is not None
        if self.worker.gone.is_set():
            await self._employ(probe=None, adopted=True)
        with trio.move_on_after(FLUSH_LIMIT) as limit:
            await trio.to_thread.run_sync(readiness.flush_pages, self.config.mountpoint_path, abandon_on_cancel=True)
        if limit.cancelled_caught:
            log.warning("%s: mapped pages were not written back after %g s", self.config.session, FLUSH_LIMIT)

    def _detach(self) -> None:
        path = self.config.mountpoint_path
        assert self.connection is not None
        try:
            mountpoint.detach(path)
            busy = False
        except OSError as error:
            busy = True
            if mountpoint.mounted_on(path) is None:
                return  # someone else was quicker
            log.warning("%s: %s", path, error.strerror)
        for holder in holders.find(self.connection.device, path):
            log.warning("%s is still in use by %s, which loses it now", path, holder)
        if busy:
            mountpoint.detach(path, lazy=True)

    async def _stop_worker(self) -> Receipt:
        """The receipt of the worker that is there, or of another if that one dies over it."""
        while True:
            worker = self.worker
            assert worker is not None
            if worker.gone.is_set():
                if worker.receipt is not None:
                    return worker.receipt
                await self._employ(probe=None, adopted=True)
                continue
            with contextlib.suppress(BrokenChannel):
                result, _ = await worker.channel.call("stop")
                await worker.gone.wait()
                return msgspec.convert(result, Receipt)
            await worker.gone.wait()

    async def ask(self, what: str, **arguments: Any) -> Any:
        """The worker's answer. A worker that dies over it is followed by another, which is asked again: what is asked
        may therefore be done twice."""
        while True:
            worker = self.worker
            if worker is not None and not worker.gone.is_set():
                with contextlib.suppress(BrokenChannel):
                    return (await worker.channel.call(what, arguments))[0]
            if self.receipt is not None:
                raise FileNotFoundError(f"session {self.config.session!r} is not mounted any more")
            await trio.sleep(0.05)

    def status(self) -> dict[str, Any]:
        return {
            "session": self.config.session,
            "mountpoint": os.fsdecode(self.config.mountpoint),
            "phase": self.phase,
            "worker": self.worker.child.pid if self.worker else None,
            "restarts": self.restarts,
            "last_death": self.last_death,
        }


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
