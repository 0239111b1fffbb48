"""The daemon: the sessions of one host, as the registry says they are meant to be, on one supervisor.

Everything that can be asked of it, over the API or by Docker, is a method here; every change is in the audit log
before it is answered. Sessions are independent: one that cannot be mounted is tried again with a growing delay, and
nothing else waits for it. Nothing here blocks the loop: files and mounts are handled in threads.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
import trio

from mount.audit import Audit
from mount.hosted import Hosted, receipt_of
from mount.listener import Peer
from mount.messages import Health, NewSession, SessionHealth, SessionReceipt, SessionStatus
from mount.mounted import Mounted
from mount.places import prepare, remove_empty, remove_state
from mount.purge import purge as purge_storage
from mount.quietlog import masked
from mount.registry import Definition, Registry
from mount.routing import checked
from mount.settings import Settings
from mount.supervisor import Supervisor
from mount.webhooks import Webhooks
from vfs.fileref import generate_session_id, validate_session_id

log = logging.getLogger(__name__)

FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 300.0
REFRESH_LIMIT: Final = 600.0  # seconds for a listing; one of a million objects takes some minutes
SYNC_LIMIT: Final = 24 * 3600.0  # seconds; a first upload of a large session takes hours

T = TypeVar("T")


class Daemon:
    def __init__(
        self, settings: Settings, supervisor: Supervisor, nursery: trio.Nursery, audit: Audit, webhooks: Webhooks
    ) -> None:
        self.settings = settings
        self.webhooks = webhooks
        self.inherited: dict[str, str] = {}
        self.refused: Callable[[], int] = lambda: 0
        self.registry = Registry(settings.own / "registry", settings.workers.uids)
        self.audit = audit
        self.hosted = {found.session: Hosted(found, settings) for found in self.registry}
        self.restored = trio.Event()
        self._supervisor = supervisor
        self._nursery = nursery
        self._writing = trio.Lock()
        self._mounting = trio.CapacityLimiter(settings.at_once)

    # ---- the life of the daemon

    async def restore(self) -> None:
        """Mount what is meant to be mounted; returns when each was tried once."""
        async with trio.open_nursery() as nursery:
            for hosted in list(self.hosted.values()):
                if hosted.definition.mounted:
                    nursery.start_soon(self._mount_or_retry, hosted)
        log.info("%d of %d sessions are mounted", len(self._supervisor.mounts), len(self.hosted))
        self.restored.set()

    async def close(self) -> None:
        """Unmount everything; what the registry says is left as it is, so that a start brings it back."""
        async with trio.open_nursery() as nursery:
            for hosted in list(self.hosted.values()):
                nursery.start_soon(self._unmount_at_end, hosted)

    async def _unmount_at_end(self, hosted: Hosted) -> None:
        async with hosted.lock:
            if hosted.mounted is not None:
                try:
                    await self._unmount(hosted)
                except (OSError, RuntimeError) as e:
                    log.error("%s: not unmounted cleanly: %s", hosted.session, e)

    # ---- sessions

    def get(self, session: str) -> Hosted:
        """FileNotFoundError if this host has none of that id; ValueError if it cannot be one."""
        validate_session_id(session)
        if session not in self.hosted:
            raise FileNotFoundError(errno.ENOENT, "no such session here; `mount-session ls` shows them", session)
        return self.hosted[session]

    async def new(self, wanted: NewSession, peer: Peer, *, volume: bool = False) -> SessionStatus:
        """Made and, unless it is not wanted, mounted. FileExistsError if there is one of that id; what fails is
        undone."""
        session = validate_session_id(wanted.session or generate_session_id())
        policy = self.settings.policy.changed(wanted.policy)
        if session in self.hosted:
            raise FileExistsError(errno.EEXIST, "there is a session of that id on this host", session)
        definition = Definition(
            session=session,
            storage=wanted.storage or self.settings.storage,
            policy=policy,
            mounted=wanted.mount,
            made=time.time(),
            labels=wanted.labels,
            callbacks=wanted.callbacks,
            scope=wanted.scope,
            routes=checked(wanted.routes, session),
            uid=self.registry.free_uid({other.definition.uid for other in self.hosted.values()}),
            volume=volume,
        )
        hosted = self.hosted[session] = Hosted(definition, self.settings)
        is_new = not (self.settings.state_path / session).exists()
        async with hosted.lock:
            try:
                if wanted.environment:
                    await self._record(self.registry.put_environment, session, wanted.environment)
                await self._record(self.registry.put, definition)
                await self.note("session.new", session, peer, storage=masked(definition.storage), volume=volume)
                if wanted.mount:
                    await self._mount(hosted)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._forget(hosted, state=is_new)
                raise
        return await hosted.status()

    async def mount(self, session: str, peer: Peer) -> SessionStatus:
        hosted = self.get(session)
        async with hosted.changing():
            await self.note("session.mount", session, peer)
            await self._define(hosted, mounted=True)
            if hosted.mounted is None:
                await self._mount(hosted)
            else:
                hosted.enter("mounted")  # so it is also where it could not be unmounted
        return await hosted.status()

    async def unmount(self, session: str, peer: Peer, *, force: bool = False) -> SessionReceipt:
        """A sync, then no mount any more. EBUSY while containers hold it, unless forced."""
        hosted = self.get(session)
        async with hosted.changing():
            if hosted.definition.holders and not force:
                users = f"{len(hosted.definition.holders)} container(s) use this volume; stop them, or use --force"
                raise OSError(errno.EBUSY, users, session)
            await self.note("session.unmount", session, peer, force=force)
            await self._define(hosted, mounted=False, holders=())
            return await self._unmount(hosted)

    async def remove(self, session: str, peer: Peer, *, purge: bool = False, force: bool = False) -> None:
        """Off this host: unmounted, its state directory and definition gone. `purge`: the storage's copy too.

        Refused (EBUSY) where bytes would be lost that nobody asked to lose: local storage without `purge`, or changes
        that are still pending, unless forced.
        """
        hosted = self.get(session)
        async with hosted.changing():
            if hosted.definition.holders and not force:
                raise OSError(errno.EBUSY, "containers use this volume; stop them first", session)
            if hosted.is_local and not purge:
                raise OSError(errno.EBUSY, "what is on this host is its only copy: export it, or use --purge", session)
            if not (purge or force) and (await hosted.status()).unwritten:
                raise OSError(errno.EBUSY, "its callbacks take no writes: changes are only here; use --force", session)
            await self.note("session.remove", session, peer, purge=purge, force=force)
            receipt = await self._unmount(hosted)
            if receipt.pending and not (force or purge):
                await self._define(hosted, mounted=False)
                raise OSError(errno.EBUSY, f"{receipt.pending} changes are not persisted yet; use --force", session)
            if purge and not hosted.is_local:
                await self._define(hosted, mounted=False)
                await purge_storage(hosted.config(await self._environment(hosted)))
            await self._forget(hosted)

    async def set_policy(self, session: str, fields: dict[str, Any], peer: Peer) -> SessionStatus:
        """Some fields of the policy changed, in force when this returns."""
        hosted = self.get(session)
        async with hosted.changing():
            policy = hosted.definition.policy.changed(fields)
            await self.note("session.policy", session, peer, **fields)
            await self._define(hosted, policy=policy)
            if hosted.mounted is not None:
                hosted.mounted.config = msgspec.structs.replace(  # of later workers
                    hosted.mounted.config, policy=policy, idle_after=policy.idle_seconds or 0.0
                )
                if policy.read_only:
                    await hosted.flush_pages()
                while not await hosted.ask("policy", self.settings.deadline, policy=msgspec.to_builtins(policy)):
                    await hosted.renew()
        return await hosted.status()

    async def sync(self, session: str, peer: Peer) -> SessionReceipt:
        """A barrier; see `vfs.Session.sync`."""
        hosted = self.get(session)
        await self.note("session.sync", session, peer)
        if hosted.mounted is None and hosted.definition.receipt is not None:
            return msgspec.convert(hosted.definition.receipt, SessionReceipt)
        return msgspec.convert(await hosted.ask("sync", SYNC_LIMIT), SessionReceipt)

    async def refresh(self, session: str, peer: Peer) -> dict[str, int]:
        """Take up now what others changed in the storage: how many files are new, changed and gone."""
        hosted = self.get(session)
        await self.note("session.refresh", session, peer)
        return msgspec.convert(await hosted.ask("refresh", REFRESH_LIMIT), dict[str, int])

    async def flush(self, session: str, peer: Peer) -> SessionStatus:
        """Have everything that is pending tried now, whatever pauses were left; it is not waited for."""
        hosted = self.get(session)
        await self.note("session.flush", session, peer)
        await hosted.ask("flush", self.settings.deadline)
        return await hosted.status()

    async def statuses(self) -> list[SessionStatus]:
        """Of all sessions, by id, asked at once: a worker that hangs costs its own deadline, not everyone's."""
        found: list[SessionStatus] = []

        async def ask(hosted: Hosted) -> None:
            found.append(await hosted.status())

        async with trio.open_nursery() as nursery:
            for hosted in list(self.hosted.values()):
                nursery.start_soon(ask, hosted)
        return sorted(found, key=lambda status: status.session)

    # ---- holders: containers that use a session as a volume

    async def hold(self, session: str, holder: str, peer: Peer) -> Hosted:
        """One user more; when this returns, real I/O works. The user is remembered over a restart of the daemon."""
        hosted = self.get(session)
        async with hosted.changing():
            before = hosted.definition
            await self.note("session.hold", session, peer, holder=holder)
            holders = tuple(dict.fromkeys((*before.holders, holder)))
            await self._define(hosted, holders=holders, mounted=True)
            try:
                if hosted.mounted is None:
                    await self._mount(hosted)
                elif not (health := await hosted.probe(self.settings.deadline)).healthy:
                    raise OSError(errno.EIO, health.error or "no I/O", session)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._define(hosted, holders=before.holders, mounted=before.mounted)
                raise
        return hosted

    async def release(self, session: str, holder: str, peer: Peer) -> SessionReceipt | None:
        """One user less. After the last one everything is synced, and what Docker made is unmounted; the receipt."""
        hosted = self.get(session)
        async with hosted.changing():
            left = tuple(other for other in hosted.definition.holders if other != holder)
            await self.note("session.release", session, peer, holder=holder)
            await self._define(hosted, holders=left)
            if left or hosted.mounted is None:
                return None
            if hosted.definition.volume:
                await self._define(hosted, mounted=False)
                return await self._unmount(hosted)
        receipt = msgspec.convert(await hosted.ask("sync", SYNC_LIMIT), SessionReceipt)  # nothing else waits for that
        async with hosted.changing():
            if hosted.mounted is not None:
                await self._define(hosted, receipt=msgspec.to_builtins(receipt))
        return receipt

    # ---- health

    async def health(self) -> Health:
        """Real I/O through every mount that is meant to be there, with the deadline for each. Idle ones are let sleep:
        they had nothing to do when they last did I/O, and the kernel holds their mounts."""
        wanted = [hosted for hosted in self.hosted.values() if hosted.definition.mounted]
        asked = [hosted for hosted in wanted if hosted.mounted is None or hosted.mounted.phase != "idle"]
        found: list[SessionHealth] = []

        async def probe(hosted: Hosted) -> None:
            found.append(await hosted.probe(self.settings.deadline))

        async with trio.open_nursery() as nursery:
            for hosted in asked:
                nursery.start_soon(probe, hosted)
        failing = [health for health in found if not health.healthy]
        mounted = sum(hosted.state == "mounted" for hosted in wanted)
        ready = self.restored.is_set() and not failing
        return Health(ready=ready, sessions=len(self.hosted), mounted=mounted, failing=failing)

    # ---- below: with the session's lock held

    async def _mount(self, hosted: Hosted) -> None:
        hosted.enter("mounting")
        environment = await self._environment(hosted)
        try:
            async with self._mounting:
                state, uid = self.settings.state_path / hosted.session, hosted.definition.uid
                await trio.to_thread.run_sync(prepare, hosted.mountpoint, state, uid)
                hosted.mounted = mounted = await self._supervisor.mount(hosted.config(environment))
        except BaseException as e:
            hosted.enter("failed", str(e) or type(e).__name__)
            raise
        hosted.enter("mounted")
        self._nursery.start_soon(self._watch, hosted, mounted)

    async def _environment(self, hosted: Hosted) -> dict[str, str]:
        """The variables of its worker: its own, or where it has a storage and none of its own, the daemon's."""
        own = await self._record(self.registry.environment, hosted.session)
        if own is not None:
            return own
        return {} if hosted.is_local and not hosted.definition.routes else self.inherited

    async def _watch(self, hosted: Hosted, mounted: Mounted) -> None:
        """Someone may unmount it with umount(8): that is an operator's wish too, and is remembered as one."""
        await mounted.gone.wait()
        async with hosted.lock:
            if hosted.mounted is not mounted:
                return
            hosted.mounted = None
            receipt = receipt_of(mounted.receipt) if mounted.receipt else None
            noted = await self._note_unmounted(hosted, receipt)
            hosted.enter("unmounted", "unmounted from outside")
        while not noted:
            await trio.sleep(FIRST_DELAY)
            async with hosted.lock:
                meant = self.hosted.get(hosted.session) is hosted and hosted.state == "unmounted"
                noted = not meant or await self._note_unmounted(hosted, receipt)

    async def _note_unmounted(self, hosted: Hosted, receipt: SessionReceipt | None) -> bool:
        try:
            await self._define(hosted, mounted=False, receipt=receipt and msgspec.to_builtins(receipt))
        except OSError as e:  # the disk is full
            log.error("%s: that it was unmounted is not written down yet: %s", hosted.session, e)
            return False
        return True

    async def _unmount(self, hosted: Hosted) -> SessionReceipt:
        if hosted.mounted is None:
            hosted.enter("unmounted")
            nothing = {"session": hosted.session, "files": 0, "bytes": 0, "pending": 0}
            return msgspec.convert(hosted.definition.receipt or nothing, SessionReceipt)
        hosted.enter("unmounting")
        hosted.leaving, hosted.mounted = hosted.mounted, None
        try:
            async with self._mounting:
                receipt = receipt_of(await self._supervisor.unmount(hosted.session))
        except BaseException as e:
            hosted.mounted = hosted.leaving
            hosted.enter("failed", str(e) or type(e).__name__)
            raise
        finally:
            hosted.leaving = None
        await trio.to_thread.run_sync(remove_empty, hosted.mountpoint)
        await self._define(hosted, receipt=msgspec.to_builtins(receipt))
        hosted.enter("unmounted")
        return receipt

    async def _mount_or_retry(self, hosted: Hosted) -> None:
        if not await self._try(hosted):
            self._nursery.start_soon(self._retry, hosted)

    async def _retry(self, hosted: Hosted) -> None:
        delay = FIRST_DELAY
        while True:
            await trio.sleep(delay)
            if await self._try(hosted):
                return
            delay = min(delay * 2, LONGEST_DELAY)

    async def _try(self, hosted: Hosted) -> bool:
        """To mount it; False if that is to be tried again."""
        async with hosted.lock:
            if hosted.mounted is not None or not hosted.definition.mounted or hosted.session not in self.hosted:
                return True
            try:
                await self._mount(hosted)
            except (OSError, ValueError, RuntimeError) as e:
                log.error("%s: not mounted: %s", hosted.session, e)
                return False
            return True

    async def _forget(self, hosted: Hosted, *, state: bool = True) -> None:
        hosted.definition = msgspec.structs.replace(hosted.definition, mounted=False)
        if hosted.session in self.registry:
            await self._record(self.registry.remove, hosted.session)
        if state:
            await trio.to_thread.run_sync(remove_state, self.settings.state_path / hosted.session)
        await trio.to_thread.run_sync(remove_empty, hosted.mountpoint)
        self.hosted.pop(hosted.session, None)
        hosted.is_removed = True

    async def _define(self, hosted: Hosted, **fields: Any) -> None:
        if hosted.session in self.registry:
            hosted.definition = await self._record(lambda: self.registry.change(hosted.session, **fields))

    async def _record(self, write: Callable[..., T], *arguments: Any) -> T:
        """One change of the registry at a time, in a thread, to its end."""
        async with self._writing:
            return await trio.to_thread.run_sync(write, *arguments)  # not abandoned when cancelled

    async def note(self, action: str, session: str, peer: Peer, **detail: Any) -> None:
        await self.audit.append(action, session, peer._asdict(), detail)
