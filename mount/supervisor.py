"""The supervisor: mounts sessions, keeps their descriptors, and has each served by a worker of its own.

    async with Supervisor.run() as supervisor:
        await supervisor.mount(MountConfig(session="work", mountpoint=b"/mnt/work", state=b"/var/lib/mount-session"))
        ...
        receipt = await supervisor.unmount("work")

`up` is a supervisor of one session in the foreground, `serve` of many. It is small and long-lived: neither pyfuse3 nor
a storage client is imported here, so what crashes with a session's data crashes a worker. When the block is left, by an
error too, what is still mounted is unmounted.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import trio

from mount import fdstore, mountpoint, rendezvous, succession
from mount.channel import BrokenChannel
from mount.config import MountConfig, Receipt
from mount.mounted import Mounted
from mount.spawner import Spawner, python_path

log = logging.getLogger(__name__)

_UPGRADING: Final = "an upgrade is under way; try again in a moment"
ADOPTIONS: Final = 5  # tries to take a session over whose worker dies meanwhile
SETTLE_LIMIT: Final = 30.0  # seconds that an upgrade waits for the mounts that are being made


class Supervisor:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._spawner = Spawner(nursery)
        self._mounts: dict[str, Mounted] = {}
        self._beginning: dict[str, trio.CancelScope] = {}  # those of them that are not mounted yet
        self._is_leaving = False
        self.receipts: dict[str, Receipt] = {}  # of the sessions that were unmounted
        self._keeper = succession.keeper_before()
        self.is_successor = self._keeper is not None
        self._kept = fdstore.inherited()

    @classmethod
    @contextlib.asynccontextmanager
    async def run(cls) -> AsyncIterator[Supervisor]:
        async with trio.open_nursery() as nursery:
            supervisor = cls(nursery)
            await supervisor._spawner.start()
            if supervisor._keeper:
                nursery.start_soon(succession.see_end, supervisor._keeper)
            try:
                yield supervisor
            finally:
                with trio.CancelScope(shield=True):
                    await supervisor._end()
            nursery.cancel_scope.cancel()

    async def _end(self) -> None:
        async with trio.open_nursery() as nursery:
            for session in self._mounts:
                nursery.start_soon(self.unmount, session)
        await self._spawner.close()
        for fd in self._kept.values():
            os.close(fd)

    @property
    def mounts(self) -> Mapping[str, Mounted]:
        """By session id."""
        return MappingProxyType(self._mounts)

    async def mount(self, config: MountConfig) -> Mounted:
        """The session on its mountpoint, served: a real write and read have gone through. OSError says what to do."""
        if config.session in self._mounts:
            raise OSError(errno.EBUSY, "this session is mounted already", config.session)
        if self._is_leaving:
            raise OSError(errno.EBUSY, _UPGRADING, config.session)
        mounted = Mounted(config, self._spawner, self._nursery)
        self._mounts[config.session] = mounted
        self._beginning[config.session] = scope = trio.CancelScope()
        try:
            with scope:
                await self._begin(mounted)
            if scope.cancelled_caught:
                raise OSError(errno.EBUSY, _UPGRADING, config.session)
        except BaseException:
            del self._mounts[config.session]
            raise
        finally:
            del self._beginning[config.session]
        self._nursery.start_soon(self._keep, mounted)
        return mounted

    async def _begin(self, mounted: Mounted) -> None:
        """With what a dead supervisor has left, or on a new mount."""
        kept = self._kept.pop(mounted.config.session, None)
        try:
            if await self._adopt(mounted, wait=kept is None):
                return
            if kept is not None and await trio.to_thread.run_sync(mountpoint.is_ours, mounted.config.mountpoint_path):
                known = fdstore.known(mounted.config)
                if known.agreement.can_resend:
                    await mounted.resume(os.dup(kept), known)
                    return
                mountpoint.abort(mounted.config.mountpoint_path, known.device)  # some may wait for a dead worker
                fdstore.forget(mounted.config)
        finally:
            if kept is not None:
                os.close(kept)
        await mounted.start()

    async def _adopt(self, mounted: Mounted, *, wait: bool) -> bool:
        """Is there a process that serves the session, or keeps it while it sleeps?"""
        for _ in range(ADOPTIONS):
            sock = await trio.to_thread.run_sync(_find_worker, mounted.config, wait, abandon_on_cancel=True)
            if sock is None:
                return False
            try:
                with trio.CancelScope(shield=True):  # half adopted, it could not be unmounted as it should be
                    await mounted.adopt(sock, renew=self.is_successor)
                return True
            except BrokenChannel:  # the keeper has another follow it, or has just woken the session
                log.info("%s: its worker died as it was taken over", mounted.config.session)
                mounted.disown()
        return False

    async def _keep(self, mounted: Mounted) -> None:
        await mounted.run()
        if mounted.receipt is not None:  # unmounted from outside
            self.receipts[mounted.config.session] = mounted.receipt
            self._mounts.pop(mounted.config.session, None)

    async def unmount(self, session: str) -> Receipt:
        """Unmount, write everything back; the receipt says what is there, and what is still pending."""
        mounted = self._mounts[session]
        try:
            receipt = self.receipts[session] = await mounted.stop()
        except BaseException:  # the mount is there still, and must be served
            self._nursery.start_soon(self._keep, mounted)
            raise
        self._mounts.pop(session, None)
        return receipt

    async def hurry(self) -> None:
        """What is being unmounted is no longer waited for; see `Mounted.hurry`."""
        for mounted in list(self._mounts.values()):
            await mounted.hurry()

    async def upgrade(self) -> None:
        """Become the program that is installed now, with all mounts; returns only if that cannot be."""
        if not await succession.can_succeed(python_path()):
            return
        log.info("upgrading: %d sessions", len(self._mounts))
        self._is_leaving = True
        await self._settle()
        for mounted in list(self._mounts.values()):
            await mounted.leave_alone()
        succession.replace_process(await self._spawner.close())

    async def _settle(self) -> None:
        """Until no mount is half made. One that takes too long is given up: the successor makes it."""
        for scope in self._beginning.values():
            scope.deadline = trio.current_time() + SETTLE_LIMIT
        while self._beginning:  # noqa: ASYNC110 - an event for what is empty nearly always is more than it is worth
            await trio.sleep(0.05)

    def status(self) -> list[dict[str, Any]]:
        return [mounted.status() for mounted in self._mounts.values()]


def _find_worker(config: MountConfig, wait: bool) -> socket.socket | None:
    """A connection to the worker that serves the session now. `wait` for one that is only just starting: where we have
    the descriptor ourselves nobody else need be there to answer."""
    sock = rendezvous.connect(config.directory)
    if sock is None and wait and mountpoint.is_alive(config.mountpoint_path):
        sock = rendezvous.connect(config.directory)
    return sock
