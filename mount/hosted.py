"""One session as this host has it: its definition, its mount if there is one, and what became of the last attempt.

Changes to one session (mount, unmount, remove) go one after another under its lock; questions (status, events) do not
wait for them. Owned by `daemon`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from mount import readiness
from mount.channel import BrokenChannel
from mount.config import MountConfig, Receipt
from mount.messages import SessionHealth, SessionReceipt, SessionStatus, State, WorkerStatus
from mount.mounted import Mounted
from mount.quietlog import masked
from mount.registry import Definition
from mount.settings import Settings

log = logging.getLogger(__name__)

STATUS_LIMIT: Final = 2.0  # seconds for a worker to tell its status; a busy one takes milliseconds


class Hosted:
    def __init__(self, definition: Definition, settings: Settings) -> None:
        self.definition = definition
        self.lock = trio.Lock()
        self.state: State = "unmounted"
        self.error: str | None = None
        self.mounted: Mounted | None = None
        self.leaving: Mounted | None = None  # while it is being unmounted: its worker still says what is pending
        self.changed = trio.Event()
        self.is_removed = False
        self._settings = settings
        self._probing = trio.Lock()
        self._told: dict[str, Any] = {}  # a worker's last status, which holds on while the session is idle

    @property
    def session(self) -> str:
        return self.definition.session

    @property
    def is_local(self) -> bool:
        """The state directory is its only copy."""
        return self.definition.storage == "local" and self.definition.callbacks is None

    @property
    def mountpoint(self) -> Path:
        return self._settings.root_path / self.session

    @contextlib.asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """For one change at a time. FileNotFoundError if the session was removed by the one before."""
        async with self.lock:
            if self.is_removed:
                raise FileNotFoundError(errno.ENOENT, "the session was removed meanwhile", self.session)
            yield

    def enter(self, state: State, error: str | None = None) -> None:
        self.state, self.error = state, error
        self.changed.set()
        self.changed = trio.Event()

    def config(self, environment: dict[str, str] | None) -> MountConfig:
        """What the supervisor is told."""
        definition = self.definition
        return MountConfig(
            session=self.session,
            mountpoint=os.fsencode(self.mountpoint),
            state=os.fsencode(self._settings.state_path),
            policy=definition.policy,
            storage=definition.storage,
            callbacks=definition.callbacks,
            scope=definition.scope,
            routes=definition.routes,
            run_as=definition.uid,
            environment=environment,
            idle_after=definition.policy.idle_seconds or 0.0,
        )

    # ---- questions

    async def ask(self, what: str, seconds: float, **arguments: Any) -> Any:
        """The worker's answer. A worker that dies over it is followed by another, which is asked again: what is asked
        may therefore be done twice. TimeoutError after `seconds`; FileNotFoundError where nothing is mounted."""
        with trio.move_on_after(seconds):
            while True:
                if self.mounted is None:
                    raise FileNotFoundError(f"session {self.session!r} is not mounted")
                worker = self.mounted.worker
                if worker is not None and not worker.gone.is_set():
                    try:
                        return (await worker.channel.call(what, arguments))[0]
                    except BrokenChannel:
                        log.info("%s: the worker died when it was asked to %s; the next is asked", self.session, what)
                self.mounted.wake()
                await trio.sleep(0.05)
        raise TimeoutError(f"session {self.session!r}: no answer to {what} within {seconds:g} s")

    async def renew(self) -> None:
        """Have another worker serve, by the config that there is now: one slow request, for who makes one."""
        assert self.mounted is not None
        worker = self.mounted.worker
        if worker is not None and not worker.gone.is_set():
            worker.child.kill(signal.SIGKILL)
            await worker.gone.wait()

    async def flush_pages(self) -> None:
        """Before a session becomes read-only: what programs changed in shared mappings would be lost."""
        with trio.move_on_after(self._settings.deadline):
            await trio.to_thread.run_sync(readiness.flush_pages, self.mountpoint, abandon_on_cancel=True)

    async def status(self) -> SessionStatus:
        definition = self.definition
        status = SessionStatus(
            session=self.session,
            storage=masked(definition.storage),
            mountpoint=str(self.mountpoint),
            state=self.state,
            error=self.error,
            made=definition.made,
            labels=definition.labels,
            policy=msgspec.to_builtins(definition.policy),
            volume=definition.volume,
            holders=list(definition.holders),
        )
        if definition.receipt is not None:
            status.receipt = msgspec.convert(definition.receipt, SessionReceipt)
        if (mounted := self.mounted or self.leaving) is not None:
            await self._ask_worker(status, mounted)
        return status

    async def _ask_worker(self, status: SessionStatus, mounted: Mounted) -> None:
        known = mounted.status()
        told: dict[str, Any] = dict(self._told) if known["phase"] == "idle" else {}
        worker = mounted.worker
        if worker is not None and not worker.gone.is_set():
            with trio.move_on_after(STATUS_LIMIT):
                try:
                    self._told, _ = await worker.channel.call("status")
                    told = dict(self._told)
                except (OSError, ValueError):  # it is gone, or cannot say
                    told = {}
        status.worker = WorkerStatus(
            pid=known["worker"],
            phase=known["phase"],
            restarts=known["restarts"],
            last_death=known["last_death"],
            answers=bool(told) and known["phase"] != "idle",
        )
        for name in ("files", "bytes", "pending", "requests"):
            setattr(status, name, told.pop(name, None))
        status.unwritten = told.pop("unwritten", [])
        status.details = told

    async def probe(self, deadline: float) -> SessionHealth:
        """A real write and read through the mount."""
        began, error = time.monotonic(), self.error
        if self.state != "mounted" or self.mounted is None:
            error = error or f"it is {self.state}"
        else:
            try:
                with trio.fail_after(deadline):
                    async with self._probing:
                        await self._probe(self.mounted, deadline)
            except trio.TooSlowError:
                error = f"no answer through the mount within {deadline:g} s"
            except OSError as e:
                error = f"I/O through the mount failed: {e}"
        taken = time.monotonic() - began
        return SessionHealth(session=self.session, healthy=error is None, seconds=round(taken, 6), error=error)

    async def _probe(self, mounted: Mounted, deadline: float) -> None:
        name = b".mount-session-" + secrets.token_hex(16).encode()
        await self.ask("probe", deadline, name=name)
        await trio.to_thread.run_sync(readiness.check, self.mountpoint, name, False, abandon_on_cancel=True)

    async def wait(self, seconds: float) -> SessionHealth:
        """Until real I/O works; TimeoutError says what stood in its way last."""
        health = None
        with trio.move_on_after(seconds):
            while True:
                changed = self.changed
                health = await self.probe(self._settings.deadline)
                if health.healthy:
                    return health
                with trio.move_on_after(0.25):
                    await changed.wait()
        why = health.error if health else f"it is {self.state}"
        raise TimeoutError(f"session {self.session!r} does no I/O after {seconds:g} s: {why}")


def receipt_of(receipt: Receipt) -> SessionReceipt:
    return msgspec.convert(msgspec.to_builtins(receipt), SessionReceipt)
