"""Lease: who may write a session, said by one small object in the bucket.

`.mount-session/lease` names the holder, since when, and an epoch that grows with every new holder. It is taken,
renewed and given up by conditional writes only, so two can never both believe that they took it. A holder that has
not renewed for the `ttl` seconds it promised may be replaced by anyone, and at any time by who says `steal`; either way
`Image.fence` stops the old one's next commit, whatever it believes. Ages are told by the server's clock (its Date
header against Last-Modified), so hosts' clocks need not agree; a test gives a `clock` of its own instead. A holder
whose object is gone (someone emptied the prefix, or made the bucket anew) makes it again, and has `vanished` set.

Where the endpoint ignores conditions (`vfs.storage.probe` warns) the lease still tells who is there, but stops no race.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec
import trio

from vfs.errors import Conflict
from vfs.failpoints import reach
from vfs.storage.bucket import Bucket, Condition, version_of
from vfs.storage.endpoint import Clients
from vfs.storage.failures import Refused, Unavailable

__all__ = ["Held", "Lease", "LeaseHeld", "LeaseLost"]

ATTRIBUTES = {"Content-Type": "application/json"}
PAUSES = (0.0, 0.2, 1.0)  # seconds after a write that was refused though the lease is ours; so many are tried


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """The lease object's content. `holder` is "" after it was given up; times are seconds since the epoch. Who has not
    renewed for `ttl` seconds has lost it."""

    holder: str
    who: str
    epoch: int
    since: float
    renewed: float
    ttl: float = 60.0


class LeaseHeld(OSError):
    """Another holds the lease (errno EBUSY); the message says who, since when, and what to do."""

    def __init__(self, key: str, held: Held, age: float) -> None:
        since = datetime.fromtimestamp(held.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        super().__init__(
            errno.EBUSY,
            f"the session is mounted by {held.who} since {since} (last renewed {max(0, age):.0f} s ago, lapses after "
            f"{held.ttl:g} s); stop that one, mount with --read-only, or take it over with --steal",
            key,
        )
        self.held = held


class LeaseLost(OSError):
    """The lease that we held is another's (errno ESTALE)."""

    def __init__(self, key: str, held: Held | None) -> None:
        super().__init__(errno.ESTALE, f"the lease was taken over by {held.who if held else 'nobody: it is gone'}", key)
        self.held = held


@dataclass(frozen=True, slots=True)
class _Read:
    held: Held
    version: str
    age: float


class _Asking:
    """A renewal that others wait for."""

    __slots__ = ("done", "failure")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.failure: OSError | None = None


class Lease:
    """One session's lease. `holder` is the same for all processes of one state directory; `who` is for people."""

    def __init__(
        self,
        bucket: Bucket,
        own: str,
        holder: str,
        who: str,
        ttl: float = 60.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.key = f"{own}lease"
        self.holder = holder
        self.who = who
        self.ttl = ttl
        self.held: Held | None = None
        self.vanished = False
        self._bucket = bucket
        self._clock = clock
        self._version: str | None = None
        self._renewed = 0.0
        self._asking: _Asking | None = None

    async def acquire(self, *, steal: bool = False) -> bool:
        """Take the lease; whether a former holder must be fenced. LeaseHeld where it is another's."""
        found = await self._read()
        if found is None:
            await self._take(1, None)
            return False
        if found.held.holder == self.holder:
            await self._take(found.held.epoch, found.version, since=found.held.since)
            return True
        lapsed = found.held.holder == "" or found.age >= found.held.ttl
        if not (lapsed or steal):
            raise LeaseHeld(self.key, found.held, found.age)
        await self._take(found.held.epoch + 1, found.version)
        return found.held.holder != ""

    async def renew(self) -> None:
        """Say that we are still there. LeaseLost where another took over."""
        if self.held is None:
            raise LeaseLost(self.key, None)
        reach("s3.lease.before-renew")
        renewed = msgspec.structs.replace(self.held, renewed=self._now())
        try:
            await self._write(renewed, self._version)
        except Conflict as e:
            await self._make_again(renewed, e)
        reach("s3.lease.renewed")

    async def confirm(self) -> None:
        """Before a write: a lease that may have lapsed (this process stood still, the host slept) is renewed first, by
        one for all who wait."""
        while self._elapsed() - self._renewed >= self.ttl:
            if (asking := self._asking) is None:
                await self._ask()
                continue
            await asking.done.wait()
            if asking.failure is not None:
                raise asking.failure.with_traceback(None)

    async def _ask(self) -> None:
        self._asking = asking = _Asking()
        try:
            await self.renew()
        except OSError as e:
            asking.failure = e
            raise
        finally:
            self._asking = None
            asking.done.set()

    async def _make_again(self, held: Held, refused: Conflict) -> None:
        """The object is not what we wrote: where there is none it is made again, else the lease is another's."""
        found = await self._read()
        if found is None:
            self.vanished = True
            try:
                await self._write(held, None)
            except Conflict:
                found = await self._read()
            else:
                return
        self.held = None
        raise LeaseLost(self.key, found.held if found else None) from refused

    async def release(self) -> None:
        """Give the lease up; nothing happens if it is another's by now. Epochs go on, so the object stays."""
        if self.held is None:
            return
        given_up = msgspec.structs.replace(self.held, holder="", renewed=self._now())
        try:
            await self._write(given_up, self._version)
        except Conflict:
            self._bucket.counts["leases lost"] += 1
        self.held = None

    async def keep(self) -> None:
        """Renew three times in `ttl` until cancelled. Raises LeaseLost; whatever else fails is waited for."""
        while True:
            await trio.sleep(self.ttl / 3)
            try:
                await self.renew()
            except LeaseLost:
                raise
            except OSError:  # out of reach, refused, the bucket gone: it may pass, and until then nothing is stored
                self._bucket.counts["lease renewals failed"] += 1

    async def _take(self, epoch: int, condition: Condition, since: float | None = None) -> None:
        now = self._now()
        since = now if since is None else since
        held = Held(holder=self.holder, who=self.who, epoch=epoch, since=since, renewed=now, ttl=self.ttl)
        try:
            await self._write(held, condition)
        except Conflict as e:
            found = await self._read()
            if found is None:
                raise
            raise LeaseHeld(self.key, found.held, found.age) from e

    async def _write(self, held: Held, condition: Condition) -> None:
        for pause in PAUSES:
            asked = self._elapsed()
            try:
                self._version = await self._bucket.put(self.key, msgspec.json.encode(held), ATTRIBUTES, condition)
            except Conflict:
                found = await self._read()
                if found is None or (found.held.holder, found.held.epoch) != (self.holder, held.epoch):
                    raise
                # Ours: an earlier try whose answer was lost, or the last write of a process of this holder that died.
                condition = self._version = found.version
                if found.held != held:
                    await trio.sleep(pause)
                    continue
            self.held, self._renewed = held, asked  # others count from when it arrived, which may be any time since
            return
        raise Unavailable(self.key, "a write of the lease is refused again and again, though it is as it was found")

    async def _read(self) -> _Read | None:
        try:
            content, version, server_age = await self._bucket.call(self.key, self._get, reading=True)
        except FileNotFoundError:
            return None
        try:
            held = msgspec.json.decode(content, type=Held)
        except msgspec.DecodeError as e:
            raise Refused(self.key, f"this is not a lease of mount-session: {e}") from e
        return _Read(held, version, server_age if self._clock is None else self._clock() - held.renewed)

    def _get(self, clients: Clients) -> tuple[bytes, str, float]:
        answer = clients.boto.get_object(**self._bucket.target(self.key))
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        if missing := {"date", "last-modified", "etag"} - headers.keys():
            raise Refused(self.key, f"the answer has no {', '.join(sorted(missing))}")
        age = (parsedate_to_datetime(headers["date"]) - answer["LastModified"]).total_seconds()
        return answer["Body"].read(), version_of(answer["ETag"]), age

    def _now(self) -> float:
        return time.time() if self._clock is None else self._clock()

    def _elapsed(self) -> float:
        """A clock that nobody sets and that goes on while the host sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) if self._clock is None else self._clock()
