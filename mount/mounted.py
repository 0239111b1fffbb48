"""A mounted session as the supervisor holds it: the descriptor that is the mount, and the worker that serves it now.

Invariants: the descriptor is open from `attach` until the mount is gone, whatever happens to workers; there is at most
one worker at a time; a worker that goes without being asked to is replaced on the same descriptor. Workers that die
again and again before they have answered anything are replaced after a growing delay; the mount stays, and its requests
wait in the kernel.

`mount.supervisor` owns these; it calls `start` once, `run` in a task of its own, then `stop`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import signal
import socket
from typing import Any, Final

import msgspec
import trio

from mount import fdstore, holders, liveness, mountpoint, readiness, resend
from mount.attachment import attach
from mount.channel import BrokenChannel, Channel, pair
from mount.config import Connection, MountConfig, Receipt, Start
from mount.handle import WorkerHandle, cancel_after
from mount.keeper import next_delay
from mount.spawner import Child, Spawner

log = logging.getLogger(__name__)

FLUSH_LIMIT: Final = 30.0
RETRY_AFTER: Final = 1.0
START_LIMIT: Final = 120.0  # seconds for a worker to open its session; recovery of 100,000 files takes a few


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
        self._woken = trio.Event()

    # ---- the mount

    async def start(self) -> None:
        """Mount, have a worker serve, and see a real write and read go through; else leave nothing mounted."""
        self.fd, self.connection = await trio.to_thread.run_sync(attach, self.config)
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
        assert self.connection is not None
        fdstore.remember(self.config, self.connection, self.fd)

    async def _give_up(self) -> None:
        if self.worker is not None:
            self.worker.child.kill(signal.SIGKILL)
            await self.worker.gone.wait()
        await trio.to_thread.run_sync(lambda: mountpoint.detach(self.config.mountpoint_path, lazy=True))
        await self._close()

    async def _let_go(self) -> None:
        """Of the descriptor, of which the zygote has a duplicate: the last one closed ends the connection."""
        if self.fd >= 0:
            await self._spawner.forget(self._next)
            os.close(self.fd)
            self.fd = -1

    async def _close(self) -> None:
        await self._let_go()
        fdstore.forget(self.config)
        self.phase = "gone"
        self.gone.set()

    # ---- its worker

    @property
    def _next(self) -> Start:
        """What the next worker of this mount is told."""
        assert self.connection is not None
        return Start(config=self.config, connection=self.connection, adopted=True)

    async def _employ(self, *, adopted: bool, probe: bytes | None = None, crashed: bool = False) -> None:
        """Start a worker and wait until it serves; raises what it failed with."""
        ours, theirs = pair()
        start = msgspec.structs.replace(self._next, adopted=adopted, probe=probe, crashed=crashed)
        try:
            with theirs, trio.CancelScope(shield=True):
                child = await self._spawner.fork(start, self.fd, theirs)
        except BaseException:
            ours.close()
            raise
        self.worker = worker = WorkerHandle(child, Channel(ours))
        self._nursery.start_soon(worker.attend)
        await worker.wait_ready(START_LIMIT)

    async def run(self) -> None:
        """Keep the session served until it is stopped, or unmounted by someone else. What goes wrong with it is no
        other session's affair."""
        try:
            with self._running:
                while self.receipt is None:
                    try:
                        await self._look_after()
                    except Exception:
                        log.exception("%s: unexpected; its worker, if there is one, is replaced", self.config.session)
                        if self.worker is not None:
                            self.worker.child.kill(signal.SIGKILL)
                        await trio.sleep(RETRY_AFTER)
        finally:
            self._ran.set()

    async def _look_after(self) -> None:
        if self.phase == "idle":
            await self._wake()
            return
        assert self.worker is not None
        if not self.worker.gone.is_set():
            if await liveness.idle(self, self.worker):
                await self._hibernate(self.worker)
        elif self.worker.receipt is None:
            await self._replace(self.worker)
        else:
            log.info("%s: %s was unmounted from outside", self.config.session, self.config.mountpoint_path)
            self.receipt = self.worker.receipt
            await self._close()

    async def _hibernate(self, worker: WorkerHandle) -> None:
        """The mount stays, the worker goes."""
        with trio.CancelScope(shield=True):  # a stop must not meet a worker that takes nothing any more
            has_work_left = await worker.retire()
            if worker.receipt is not None:
                return
            await self._sleep()
        if has_work_left:  # a request came in that very moment
            self.wake()

    async def _sleep(self) -> None:
        """Without a worker from now on. Should we die meanwhile, the zygote starts one when something is asked."""
        with contextlib.suppress(OSError):  # `_stay_kept` goes on with it
            await self._spawner.keep(self._next, self.fd)
        log.info("%s: idle; a worker is started at the next request", self.config.session)
        self._woken = trio.Event()
        self.phase = "idle"

    def wake(self) -> None:
        """Have a worker started now, if the session is idle."""
        self._woken.set()

    async def _wake(self) -> None:
        """Wait for a request, and start a worker for it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_after, self._woken, nursery.cancel_scope)
            nursery.start_soon(self._stay_kept)
            await self._asked()
            nursery.cancel_scope.cancel()
        self.phase = "starting"
        before = self.worker
        try:
            await self._employ(adopted=True)
        except (OSError, ValueError) as error:
            if self.worker is before:  # else it is told as that worker's death
                log.error("%s: no worker could be started: %s", self.config.session, error)
                await trio.sleep(RETRY_AFTER)
                self.phase = "idle"
                self.wake()
            return
        self.phase = "serving"

    async def _asked(self) -> None:
        """Until a request waits for an answer."""
        assert self.connection is not None
        await trio.lowlevel.wait_readable(self.fd)
        while self.connection.agreement.can_resend and not resend.is_asked(self.fd):
            await trio.lowlevel.wait_readable(self.fd)

    async def _stay_kept(self) -> None:
        while True:
            try:
                await self._spawner.keep(self._next, self.fd)
            except OSError as error:
                log.error("%s: no zygote keeps the mount beside us: %s", self.config.session, error)
                await trio.sleep(RETRY_AFTER)
            else:
                await self._spawner.lost.wait()

    async def _replace(self, dead: WorkerHandle) -> None:
        self.restarts += 1
        self.phase = "restarting"
        self.last_death = f"worker {dead.child.pid} {dead.child.death}"
        if dead.failure is not None:
            self.last_death += f": {dead.failure}"
        lived = math.inf if dead.progressed else trio.current_time() - dead.since
        self._delay = next_delay(self._delay, lived)
        log.error("%s: %s; the next in %g s", self.config.session, self.last_death, self._delay)
        await trio.sleep(self._delay)
        assert self.connection is not None
        try:
            if self.connection.agreement.can_resend:
                await self._employ(adopted=True, crashed=dead.crashed)
            else:
                await self._mount_anew()
        except (OSError, ValueError) as error:
            if self.worker is dead:  # else it is told as that worker's death
                log.error("%s: no worker could be started: %s", self.config.session, error)
                await trio.sleep(RETRY_AFTER)
            return
        self.phase = "serving"

    async def _mount_anew(self) -> None:
        """Without FUSE_NOTIFY_RESEND nobody answers what the dead worker had in hand: those who wait get an error."""
        log.warning(
            "%s: this kernel cannot send requests again (Linux 6.9 can): the connection is ended and %s mounted anew; "
            "containers see that if they have it with `rslave` propagation",
            self.config.session,
            self.config.mountpoint_path,
        )
        assert self.connection is not None
        mountpoint.abort(self.config.mountpoint_path, self.connection.device)
        await self._let_go()
        self.fd, self.connection = await trio.to_thread.run_sync(attach, self.config)
        await self._employ(adopted=False)

    # ---- a mount that is there already

    async def adopt(self, sock: socket.socket, *, renew: bool) -> None:
        """Take over from a dead supervisor: its worker, found by its socket, goes on, and gives us the descriptor. Of a
        session that sleeps, the keeper gives it."""
        channel = Channel(sock)
        pid = channel.peer
        child = Child(pid, os.pidfd_open(pid))
        child.reported.set()  # it is no child of our zygote: nobody tells us how it died
        worker = WorkerHandle(child, channel)
        self._nursery.start_soon(worker.attend)
        about, (self.fd,) = await channel.call("descriptor")
        start = msgspec.convert(about["start"], Start)
        try:
            self.config.check_takes_over(start.config, supervised=bool(about["supervised"]))
            where = start.config.mountpoint_path
            if not about.get("asleep") and not mountpoint.is_mounted(where, start.connection.device):
                await worker.see_off(START_LIMIT, self.config.session)
        except OSError:
            os.close(self.fd)
            self.fd = -1
            channel.close()
            raise
        await channel.call("adopt")
        self.connection = start.connection
        if about.get("asleep"):
            channel.close()
            await self._sleep()
            if about.get("died"):  # it may have left requests unanswered, of which the descriptor says nothing
                self.wake()
            return
        self.worker = worker
        worker.ready.set()
        worker.progressed = True
        log.info("%s: worker %d goes on under this supervisor", self.config.session, pid)
        self.phase = "serving"
        if renew or start.config != self.config:
            try:
                await self.renew()
            except (OSError, ValueError) as error:
                if not renew:
                    raise
                log.error("%s: no worker of the new program could be started: %s", self.config.session, error)

    async def resume(self, fd: int, known: Connection) -> None:
        """Go on with a mount of which nothing is left but the descriptor."""
        self.fd = fd
        self.connection = known
        await self._employ(adopted=True)
        log.info("%s: the mount goes on with the descriptor that the service manager kept", self.config.session)
        self.phase = "serving"

    def disown(self) -> None:
        """What was to be adopted is gone; a new mount begins from nothing."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.worker = -1, None

    async def leave_alone(self) -> None:
        """Look after it no more; its worker, or the zygote for it, keeps the mount alive."""
        self._running.cancel()
        await self._ran.wait()
        if self.worker is not None:
            self.worker.channel.close()

    async def renew(self) -> None:
        """Another worker, of this program's present code and configuration, with no request refused."""
        assert self.worker is not None
        await self.worker.retire()
        await self._employ(adopted=True)

    # ---- the end

    async def stop(self) -> Receipt:
        """Unmount, write everything back, and return the receipt. What still uses the mount is named, and loses it.
        Where that fails, `run` is to be called again."""
        self._running.cancel()
        with trio.CancelScope(shield=True):
            await self._ran.wait()
        if self.receipt is None:
            before, self.phase = self.phase, "stopping"
            try:
                await self._flush_pages()
                await trio.to_thread.run_sync(self._detach)
                self.receipt = await self._stop_worker()
            except BaseException:
                self.phase = before
                self._running, self._ran = trio.CancelScope(), trio.Event()
                raise
            await self._close()
        return self.receipt

    async def hurry(self) -> None:
        """Wait no longer for what cannot be written back now: it stays in the state directory, and pending."""
        if self.worker is not None:
            with contextlib.suppress(BrokenChannel):
                await self.worker.channel.call("hurry")

    async def _flush_pages(self) -> None:
        """Pages changed through mappings; for these a worker is needed. What takes too long is not waited for."""
        if self.worker is None or self.worker.gone.is_set():
            await self._employ(adopted=True)
        with trio.move_on_after(FLUSH_LIMIT) as limit:
            await trio.to_thread.run_sync(readiness.flush_pages, self.config.mountpoint_path, abandon_on_cancel=True)
        if limit.cancelled_caught:
            log.warning("%s: mapped pages were not written back after %g s", self.config.session, FLUSH_LIMIT)

    def _detach(self) -> None:
        assert self.connection is not None
        holders.take_away(self.config.mountpoint_path, self.connection.device, self.fd)

    async def _stop_worker(self) -> Receipt:
        """The receipt of the worker that is there, or of another if that one dies over it."""
        while True:
            worker = self.worker
            assert worker is not None
            if worker.gone.is_set():
                if worker.receipt is not None:
                    return worker.receipt
                await self._employ(adopted=True)
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
            "worker": self.worker.child.pid if self.worker and not self.worker.gone.is_set() else None,
            "restarts": self.restarts,
            "last_death": self.last_death,
        }
