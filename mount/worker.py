"""A worker: the process that serves one session through one FUSE connection.

It opens the session, sets libfuse up on the descriptor it was given (`mount.device`), and serves until it is told to
stop (everything synced), to retire (the session closed, nothing waited for: another worker goes on), or until the
mount is gone. A supervisor talks to it over the channel it was started with; a later supervisor, when that one is
dead, finds the socket `worker.sock` in the state directory. The worker outlives its supervisor and does not notice.

Calls: `status`, `events`, `sync`, `ping`, `policy`, `refresh`, `flush`, `probe`, `descriptor`, `supervisor`, `stop`,
`hurry`, `retire`, `route`. The zygote forks workers; nothing
else imports this.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import time
from functools import partial
from typing import Any, Final

import msgspec
import pyfuse3
import trio

from mount import collector, identity, resend, title
from mount.account import account, printable
from mount.channel import MAX_MESSAGE, Answer, BrokenChannel, Channel, last_words
from mount.config import Receipt, Start
from mount.device import Device
from mount.handle import DUMP_SIGNAL, NUDGE_SIGNAL
from mount.inflight import InFlight
from mount.keeper import RETIRED
from mount.opening import Opened, opened
from mount.operations import TALLIES, YEAR, Operations
from mount.probe import Probe
from mount.rendezvous import Rendezvous
from mount.repeated import Repeated
from mount.routing import RouteConfig
from mount.suspicion import Suspicion, refuse
from mount.turns import ask_for_short_turns
from vfs import failpoints
from vfs.errors import single
from vfs.persisted import PersistedSession
from vfs.policy import Policy
from vfs.receipt import Receipt as SessionReceipt
from vfs.receipt import StoredFile
from vfs.refresh import Refreshed
from vfs.replay import match

log = logging.getLogger(__name__)

DRAIN_LIMIT: Final = 20.0  # seconds for requests in hand when the gate closes; those left are sent again or aborted
MAX_TASKS: Final = 99
LONGEST_SHARED: Final = 300.0  # seconds; asking the kernel's questions once more in that time costs next to nothing
TELL_AFTER: Final = 5.0  # seconds that a stop waits for the storage, each time before it is said what for


class Worker:
    def __init__(
        self, start: Start, device: Device, in_flight: InFlight, suspicion: Suspicion, opening: Opened, zygote: int
    ) -> None:
        self.config = start.config
        self.start = start
        self.device = device
        self.in_flight = in_flight
        self.suspicion = suspicion
        self.opened = opening
        self.session = session = opening.session
        session.requests = lambda: device.waits + device.is_waiting()  # also one that is in the kernel yet
        self.began = time.time()
        self.supervisor: Channel | None = None
        self.retired = False
        self._zygote = zygote
        self._drained = trio.Event()
        self._done = trio.Event()
        self._stopping = trio.Lock()
        self._syncing = trio.CancelScope()
        self._receipt: Receipt | None = None
        self._stored: dict[str, StoredFile] = {}

    # ---- the request loop

    async def run(self, supervisor: Channel) -> None:
        """Serve until stopped, retired, or unmounted from outside."""
        self.supervisor = supervisor
        self.operations = operations = Operations(self.session, self._lasting(self.config.idle_after))
        with Rendezvous(self.config.directory) as rendezvous:
            async with trio.open_nursery() as nursery:
                if self.start.adopted:
                    self._take_over(operations, nursery)
                self.in_flight.follow(self.session)
                if self.start.probe is not None:
                    Probe(operations, self.start.probe, self.session.directory)
                self.device.connect(operations)
                nursery.start_soon(supervisor.serve, self.handle)
                nursery.start_soon(rendezvous.listen, self.handle, self._new_supervisor)
                nursery.start_soon(self._announce)
                await self._serve()
                if not self.device.closed:
                    nursery.start_soon(self._unmounted)
                await self._done.wait()
                if self._syncing.cancelled_caught:
                    os._exit(0)  # closing the session would wait as well; all is with the kernel, as after a death
                nursery.cancel_scope.cancel()

    def _lasting(self, idle_after: float | None) -> float:
        """For how long the kernel may answer by itself. What others change is told it by name, but not while the
        session sleeps: by then what it has cached has lapsed, so whoever looks again wakes the session."""
        if not isinstance(self.session, PersistedSession):
            return YEAR
        return min(idle_after or LONGEST_SHARED, LONGEST_SHARED)

    def _take_over(self, operations: Operations, nursery: trio.Nursery) -> None:
        """Have what the worker before left unanswered sent again; what it had carried out is not done twice."""
        unanswered = resend.Unanswered([], [])
        if self.start.connection.agreement.can_resend:  # else it had answered all, or this would be a new connection
            unanswered = resend.recall(self.device.fd, self._refuse)
        self.session.forget(unanswered.forgotten)
        # A FORGET may also have been read by a worker that died of something else before it had noted it.
        orphans = [ino for ino in self.session.namespace.orphans if not resend.is_held(self.device.fd, ino)]
        self.session.forget([(ino, 1) for ino in orphans])
        described = [known for request in unanswered.requests if (known := resend.describe(request)) is not None]
        done = match(described, self.in_flight.left_over(self.session.directory))
        log.info(
            "%s: taken over; %d requests come again, %d of them had been carried out",
            self.session.id,
            len(unanswered.requests),
            sum(map(len, done.values())),
        )
        failpoints.reach("takeover.matched")
        self.in_flight.keep_only({slot for slots in done.values() for slot in slots})
        repeated = Repeated(operations, self.in_flight, done) if done else None
        if unanswered.requests:
            self.suspicion.watch(operations, unanswered.requests)
            nursery.start_soon(self._settle, repeated)

    async def _settle(self, repeated: Repeated | None) -> None:
        await self.suspicion.settle()
        if repeated is not None:
            await repeated.leave_in_time()

    def _refuse(self, unanswered: list[resend.Request]) -> list[resend.Request]:
        convicted = self.suspicion.convict(unanswered, crashed=self.start.crashed)
        for request in convicted:
            refuse(self.device.fd, request, self.session.id)
        return convicted

    async def _announce(self) -> None:
        await self.device.connected.wait()
        assert self.supervisor is not None
        with contextlib.suppress(BrokenChannel):
            await self.supervisor.call("ready")
            while not self.device.has_answered:  # noqa: ASYNC110 - an event would cost something at every request
                await trio.sleep(0.02)
            await self.supervisor.call("progress")

    async def _serve(self) -> None:
        with trio.CancelScope() as scope:
            self._serving = scope
            await pyfuse3.main(min_tasks=1, max_tasks=MAX_TASKS)
        if scope.cancelled_caught:
            log.warning("%s: requests were still in hand after %g s", self.config.session, DRAIN_LIMIT)
        self._drained.set()

    async def _drain(self) -> bool:
        """Answer what is in hand, and take no more; False if some of it was given up."""
        self.device.close_gate()
        with trio.move_on_after(DRAIN_LIMIT):
            await self._drained.wait()
            return True
        self.in_flight.give_up()
        self._serving.cancel()
        await self._drained.wait()
        return False

    async def _unmounted(self) -> None:
        """Someone took the mount away: nothing can come any more, so write everything back and end."""
        log.info("%s: unmounted", self.config.session)
        await self._stop()
        if self.supervisor is not None:
            with contextlib.suppress(BrokenChannel):
                await self.supervisor.call("unmounted", {"receipt": msgspec.to_builtins(self._receipt)})
        self._done.set()

    async def _stop(self) -> None:
        """Once: a supervisor may tell us to, and take the mount away, at the same time."""
        async with self._stopping:
            if self._receipt is None:
                await self._drain()
                await self._sync()
                done = msgspec.structs.replace(self.session.receipt(), stored=self._stored)
                self._receipt = msgspec.convert(told(done), Receipt)

    async def _sync(self) -> None:
        try:
            with self._syncing:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._tell_what_is_awaited)
                    self._stored = (await self.session.sync()).stored
                    nursery.cancel_scope.cancel()
        except Exception:
            log.exception("%s: not all could be written back; it is kept in the state directory", self.session.id)
        if self._syncing.cancelled_caught:
            log.warning("%s: told not to wait until all is written back", self.session.id)
            if isinstance(self.session, PersistedSession):
                await self.session.writeback.expand()  # or the receipt would not count what came last

    async def _tell_what_is_awaited(self) -> None:
        while True:
            await trio.sleep(TELL_AFTER)
            receipt = self.session.receipt()
            why = receipt.reasons[0] if receipt.reasons else None
            log.warning(
                "%s: waiting for %d changes to be written back%s; a second signal to `up` or `serve` ends that",
                *(self.session.id, receipt.pending, f" ({printable(why.path)}: {why.error})" if why else ""),
            )

    # ---- what is asked of it

    async def handle(self, name: str, arguments: dict[str, Any], descriptors: list[int]) -> Answer:
        for fd in descriptors:
            os.close(fd)
        if name == "ping":
            return await self._ping()
        if name == "status":
            return Answer(await self._status())
        if name == "sync":
            receipt = await self.session.sync()
            self.session.happened.write()  # who reads the log after a sync finds there what was synced
            return Answer(told(receipt))
        if name == "policy":
            return Answer(await self._apply(msgspec.convert(arguments["policy"], Policy)))
        if name == "refresh":
            return Answer(await self._refresh())
        if name == "flush":
            if isinstance(self.session, PersistedSession):
                self.session.writeback.hurry()
            return Answer()
        if name == "route":
            return await self._add_route(msgspec.convert(arguments["route"], RouteConfig))
        if name == "events":
            return Answer(await self._events(arguments["since"], arguments["wait"]))
        if name == "probe":
            Probe(self.operations, arguments["name"], self.session.directory)
            return Answer()
        if name == "descriptor":
            about = {"supervised": self.supervised, "pid": os.getpid(), "start": msgspec.to_builtins(self.start)}
            return Answer(about, (self.device.fd,))
        if name == "supervisor":
            return Answer(self.supervisor.peer if self.supervisor is not None and self.supervised else None)
        if name == "stop":
            await self._stop()
            return Answer(msgspec.to_builtins(self._receipt), then=self._done.set)
        if name == "hurry":
            self._syncing.cancel()
            return Answer()
        if name == "retire":
            drained = await self._drain()
            self.retired = True
            if isinstance(self.session, PersistedSession):
                await self.session.leave()
            return Answer(not drained or self.session.receipt().pending > 0, then=self._done.set)
        raise ValueError(f"a worker is asked to {name!r}, which it does not know")

    async def _add_route(self, route: RouteConfig) -> Answer:
        """How many files appeared; of those that another worker finds, who takes over to look up routes, none yet."""
        found = await self.opened.add_route(route)
        if found is None:
            await self._drain()
            nothing = msgspec.structs.asdict(Refreshed())
            return Answer(nothing, then=partial(os.kill, os.getpid(), signal.SIGKILL))  # as any death: another goes on
        if route.hidden:
            await self.operations.forget_names()
        return Answer(msgspec.structs.asdict(found))

    async def _events(self, since: int | None, wait: float) -> dict[str, Any]:
        """Events above `since`; where there are none yet, those that come within `wait` seconds."""
        happened = self.session.happened
        since = happened.log.last if since is None else since
        if not (told := await happened.lines(since, MAX_MESSAGE // 2)) and wait:
            with trio.move_on_after(wait):
                await happened.more(since)
                told = await happened.lines(since, MAX_MESSAGE // 2)
        return {"since": told[-1][0] if told else since, "lines": told}

    async def _ping(self) -> Answer:
        """A sign of life of the request loop: if requests wait, it takes one before this is answered."""
        before = self.device.waits
        while self.device.waits == before and not self.device.closed and self.device.is_waiting():  # noqa: ASYNC110
            await trio.sleep(0.005)  # an event that is set at each request would cost every request
        return Answer({"requests": self.device.waits})

    async def _refresh(self) -> dict[str, int]:
        """How many files appeared, changed and went; nothing can have where nobody else has them."""
        if not isinstance(self.session, PersistedSession):
            return msgspec.structs.asdict(Refreshed())
        return msgspec.structs.asdict(await self.session.refresh())

    async def _apply(self, policy: Policy) -> bool:
        """A new policy, and the kernel's caches without what the old one said. False: only another worker can, because
        this session looks up no globs, or because it only reads its storage and has no lease there."""
        session, before = self.session, self.session.policy
        if isinstance(session, PersistedSession):
            if before.read_only and not policy.read_only:
                return False
        elif policy.hidden:
            return False
        session.apply(policy)
        self.operations.lasting = self._lasting(policy.idle_seconds)
        if isinstance(session, PersistedSession):
            await session.cache.shrink()
        if (policy.uid, policy.gid) != (before.uid, before.gid):
            await self.operations.forget_attributes()
        if policy.hidden or before.hidden:
            await self.operations.forget_names()
        return True

    @property
    def supervised(self) -> bool:
        return self.supervisor is not None and not self.supervisor.closed.is_set()

    def _new_supervisor(self, channel: Channel) -> None:
        self.supervisor = channel
        with contextlib.suppress(BrokenPipeError):  # it is gone: nobody keeps this mount beside the new supervisor
            os.write(self._zygote, b".")

    async def _status(self) -> dict[str, Any]:
        if isinstance(self.session, PersistedSession):
            await self.session.writeback.expand()  # what is noted and not yet looked at is pending too
        known = {"session": self.session.id, "pid": os.getpid(), "since": self.began, "requests": self.device.waits}
        return known | account(self.session, TALLIES)


def told(receipt: SessionReceipt) -> dict[str, Any]:
    """The receipt, with as many of its files as a message holds beside the rest."""
    brief: dict[str, Any] = msgspec.to_builtins(receipt)
    brief["stored"] = {printable(path): stored for path, stored in brief["stored"].items()}
    for pending in brief["reasons"]:
        pending["path"] = printable(pending["path"])
    for field in ("stored", "reasons"):
        while len(msgspec.msgpack.encode(brief[field])) > MAX_MESSAGE // 4:
            kept = list(brief[field])[: len(brief[field]) // 2]
            brief[field] = {name: brief[field][name] for name in kept} if field == "stored" else kept
    return brief


async def serve(start: Start, fuse_fd: int, control: socket.socket, zygote: int) -> int:
    """The exit status that tells the zygote whether the mount needs another worker."""
    channel = Channel(control)
    async with opened(start.config, adopted=start.adopted) as opening:
        session = opening.session
        collector.install()
        with (
            contextlib.closing(InFlight(session.directory, start.adopted)) as in_flight,
            contextlib.closing(Suspicion(session.directory, start.adopted)) as suspicion,
        ):
            device = Device(fuse_fd, start.connection.agreement, in_flight.answered)
            worker = Worker(start, device, in_flight, suspicion, opening, zygote)
            await worker.run(channel)
    return RETIRED if worker.retired else 0


def _wake_up(number: int, frame: object) -> None:
    """A read(2) of a request that was withdrawn ends with EINTR, and pyfuse3 waits for the next as it should."""


def main(start: Start, fuse_fd: int, control: socket.socket, zygote: int) -> int:
    """The forked process's whole life; its exit status. `zygote` is a socket to the process that forked this one."""
    title.set_title(f"mount-session: worker {start.config.session}")
    faulthandler.register(DUMP_SIGNAL, all_threads=True)
    signal.signal(NUDGE_SIGNAL, _wake_up)
    telling = control.dup()
    try:
        if not ask_for_short_turns():
            log.info(
                "%s: this host gives no short turns; requests may wait behind busier sessions", start.config.session
            )
        identity.assume(start.config.run_as, start.config.environment)
        return trio.run(serve, start, fuse_fd, control, zygote)
    except BaseException as e:
        error = single(e)
        if not isinstance(error, OSError | ValueError):
            log.exception("%s: the worker ends by a defect", start.config.session, exc_info=error)
        with contextlib.suppress(ConnectionError):
            telling.send(last_words(error))
        return 1
