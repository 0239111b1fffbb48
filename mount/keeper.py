"""The keeper: what the zygote is once its supervisor is dead. No mount dies while one process of ours is left.

The zygote has a duplicate of the descriptor of each mount whose worker it forked, or that sleeps. As the keeper it
forks the next worker where one dies, and one for a session that sleeps when something is asked of it, not before.
A new supervisor finds a session that sleeps at the place where its worker would listen (`mount.rendezvous`), and is
given the descriptor; where there is a worker it asks that, which says here that it was adopted. The keeper ends when
nothing is left to keep.
"""

from __future__ import annotations

import errno
import logging
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from mount import resend
from mount.channel import MAX_MESSAGE, Call, Reply, pack_descriptors
from mount.config import Failure, Start
from mount.rendezvous import Rendezvous

log = logging.getLogger(__name__)

RETIRED: Final = 10  # a worker's exit status: another one may be needed for its mount, now or later
FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 30.0
_CREDENTIALS: Final = struct.Struct("=3i")  # pid, uid, gid: unix(7), SCM_CREDENTIALS
GOOD_LIFE: Final = 5.0  # seconds after which a worker's death says nothing against the next one


def next_delay(delay: float, lived: float) -> float:
    """Seconds until a worker is started in the place of one that died."""
    return 0.0 if lived > max(GOOD_LIFE, delay) else min(max(FIRST_DELAY, delay * 2), LONGEST_DELAY)


class Kept:
    """A mount of which there is a descriptor here, and the process that serves it: None while it sleeps."""

    def __init__(self, start: Start, fd: int, pid: int | None) -> None:
        self.start = msgspec.structs.replace(start, adopted=True, probe=None)
        self.fd = fd
        self.pid = pid
        self.since = time.monotonic()
        self.delay = 0.0
        self.due: float | None = None
        """When the next worker is to be started, where the last one died."""

    @property
    def session(self) -> str:
        return self.start.config.session

    def ended(self, status: int) -> bool:
        """Its worker has; False if that means that the mount is no more."""
        self.pid = None
        if status == RETIRED:
            self.start = msgspec.structs.replace(self.start, crashed=False)
            return True
        if status == 0 or not self.start.connection.agreement.can_resend:
            return False
        self.start = msgspec.structs.replace(self.start, crashed=status != -signal.SIGKILL)
        self.delay = next_delay(self.delay, time.monotonic() - self.since)
        self.due = time.monotonic() + self.delay
        return True

    def close(self) -> None:
        os.close(self.fd)


Fork = Callable[[Kept, set[int]], int]
"""Fork a worker, which does not need the given descriptors; its process id."""


class Keeper:
    def __init__(self, kept: dict[str, Kept], fork: Fork, reap: Callable[[], list[tuple[int, int]]]) -> None:
        self._kept = kept
        self._fork = fork
        self._reap = reap
        self._selector = selectors.PollSelector()
        self._doors: dict[str, Rendezvous] = {}

    def run(self, deaths: int, adoptions: socket.socket) -> None:
        """Until nothing is left. `deaths` is readable when a child has died, `adoptions` when one tells that it was
        adopted; the kernel says which."""
        self._selector.register(adoptions, selectors.EVENT_READ, partial(self._adopted, adoptions))
        self._selector.register(deaths, selectors.EVENT_READ, partial(self._bury, deaths))
        for kept in list(self._kept.values()):
            if kept.pid is None and kept.due is None:
                self._put_to_sleep(kept)
        while self._kept:
            dues = [kept.due for kept in self._kept.values() if kept.due is not None]
            timeout = max(0.0, min(dues) - time.monotonic()) if dues else None
            ready = [key for key, _ in self._selector.select(timeout)]
            ready.sort(key=lambda key: key.fileobj is not adoptions)  # first, for who was adopted is not replaced
            for key in ready:
                if key.fileobj in self._selector.get_map():
                    key.data()
            for kept in list(self._kept.values()):
                if kept.due is not None and kept.due <= time.monotonic():
                    self._employ(kept)

    def _employ(self, kept: Kept) -> None:
        self._close_door(kept)
        strange = {key.fd for key in self._selector.get_map().values()}
        strange |= {other.fd for other in self._kept.values()}
        try:
            kept.pid = self._fork(kept, strange - {kept.fd})
        except Exception as error:
            kept.delay = next_delay(kept.delay, 0.0)
            kept.due = time.monotonic() + kept.delay
            log.error("%s: no worker could be started: %s; the next try in %g s", kept.session, error, kept.delay)
            self._open_door(kept)
        else:
            kept.due, kept.since = None, time.monotonic()

    def _bury(self, deaths: int) -> None:
        os.read(deaths, 512)
        dead = dict(self._reap())
        for kept in [kept for kept in self._kept.values() if kept.pid in dead]:
            assert kept.pid is not None
            pid, status = kept.pid, dead[kept.pid]
            if not kept.ended(status):
                self._let_go(kept)
            elif kept.due is None:
                self._put_to_sleep(kept)
            else:
                self._open_door(kept)
                how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
                log.error(
                    "%s: worker %d %s, and there is no supervisor; the next in %g s", kept.session, pid, how, kept.delay
                )

    def _let_go(self, kept: Kept) -> None:
        self._close_door(kept)
        del self._kept[kept.session]
        kept.close()

    def _adopted(self, adoptions: socket.socket) -> None:
        _, ancillary, _, _ = adoptions.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
        pids = {
            _CREDENTIALS.unpack(content)[0]
            for level, kind, content in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
        }
        for kept in [kept for kept in self._kept.values() if kept.pid in pids]:
            self._let_go(kept)

    # ---- sessions without a worker

    def _put_to_sleep(self, kept: Kept) -> None:
        self._open_door(kept)
        self._selector.register(kept.fd, selectors.EVENT_READ, partial(self._asked, kept))

    def _asked(self, kept: Kept) -> None:
        if not kept.start.connection.agreement.can_resend or resend.is_asked(kept.fd):
            self._employ(kept)

    def _open_door(self, kept: Kept) -> None:
        """Be where a new supervisor looks for the session's worker."""
        try:
            door = Rendezvous(kept.start.config.directory)
            door.bind()
        except OSError as error:
            log.error("%s: a new supervisor cannot find this session: %s", kept.session, error)
            return
        self._doors[kept.session] = door
        self._selector.register(door.sock, selectors.EVENT_READ, partial(self._open, kept, door.sock))

    def _close_door(self, kept: Kept) -> None:
        if kept.fd in self._selector.get_map():
            self._selector.unregister(kept.fd)
        door = self._doors.pop(kept.session, None)
        if door is not None:
            self._selector.unregister(door.sock)
            door.close()

    def _open(self, kept: Kept, door: socket.socket) -> None:
        try:
            peer, _ = door.accept()
        except OSError as error:
            log.error("%s: who asks for it cannot be answered: %s", kept.session, error)
            time.sleep(FIRST_DELAY)  # who asks is still there
            return
        self._selector.register(peer, selectors.EVENT_READ, partial(self._answer, kept, peer))

    def _answer(self, kept: Kept, peer: socket.socket) -> None:
        """As a worker would, to who wants to be the supervisor."""
        try:
            encoded = peer.recv(MAX_MESSAGE)
            if encoded and self._kept.get(kept.session) is kept and kept.pid is None:
                call = msgspec.msgpack.decode(encoded, type=Call)
                reply, descriptors = self._reply(kept, call)
                peer.sendmsg([msgspec.msgpack.encode(reply)], pack_descriptors(descriptors))
                if call.name == "adopt":
                    self._let_go(kept)
                return
        except Exception as error:  # whatever a stranger sends
            log.warning("%s: who asked for it is gone, or no supervisor: %s", kept.session, error)
        self._selector.unregister(peer)
        peer.close()

    def _reply(self, kept: Kept, call: Call) -> tuple[Reply, tuple[int, ...]]:
        if call.name == "descriptor":
            start = msgspec.to_builtins(kept.start)
            died = kept.due is not None
            about = {"supervised": False, "pid": os.getpid(), "start": start, "asleep": True, "died": died}
            return Reply(call.id, about), (kept.fd,)
        if call.name in ("adopt", "supervisor"):
            return Reply(call.id), ()
        asleep = OSError(errno.EAGAIN, "the session sleeps, and has no supervisor; use its mount, and ask again")
        return Reply(call.id, failure=Failure.of(asleep)), ()
