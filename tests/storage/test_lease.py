"""One writer: leases and fences, on moto; time is the test's."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.storage.conftest import Open
from tests.storage.faults import Fault, FaultProxy
from tests.storage.servers import Server
from vfs.errors import Conflict
from vfs.storage import lease as lease_module
from vfs.storage.failures import Refused, Unavailable
from vfs.storage.lease import Lease, LeaseHeld, LeaseLost
from vfs.storage.s3 import S3Storage

pytestmark = pytest.mark.s3


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lease_of(s3: S3Storage, holder: str, clock: Clock | None) -> Lease:
    return Lease(s3.bucket, s3.keys.own, holder, f"{holder}'s host (pid 7)", ttl=60, clock=clock)


async def test_a_second_writer_is_refused_with_who_and_since_when(s3: S3Storage, clock: Clock) -> None:
    first, second = lease_of(s3, "one", clock), lease_of(s3, "two", clock)
    assert await first.acquire() is False
    clock.now += 59
    with pytest.raises(LeaseHeld, match=r"mounted by one's host \(pid 7\) since 1970-01-12 13:46:40 UTC") as caught:
        await second.acquire()
    assert "59 s ago" in str(caught.value) and "--steal" in str(caught.value)
    assert second.held is None
    await first.renew()


async def test_a_lease_that_was_given_up_is_free_and_needs_no_fence(s3: S3Storage, clock: Clock) -> None:
    first, second = lease_of(s3, "one", clock), lease_of(s3, "two", clock)
    await first.acquire()
    await first.release()
    assert await second.acquire() is False
    assert second.held is not None and second.held.epoch == 2
    await first.release()
    await second.renew()


async def test_a_lapsed_lease_is_taken_and_its_holder_fenced(s3: S3Storage, clock: Clock) -> None:
    first, second = lease_of(s3, "one", clock), lease_of(s3, "two", clock)
    await first.acquire()
    clock.now += 61
    assert await second.acquire() is True
    with pytest.raises(LeaseLost, match="two's host"):
        await first.renew()
    with pytest.raises(LeaseLost):
        await first.renew()


async def test_a_lease_lapses_when_its_holder_said_and_not_when_another_would(s3: S3Storage, clock: Clock) -> None:
    quick = Lease(s3.bucket, s3.keys.own, "one", "one's host", ttl=5, clock=clock)
    await quick.acquire()
    clock.now += 4
    with pytest.raises(LeaseHeld, match="lapses after 5 s"):
        await lease_of(s3, "two", clock).acquire()
    clock.now += 1
    assert await lease_of(s3, "two", clock).acquire() is True
    clock.now += 59
    with pytest.raises(LeaseHeld, match="lapses after 60 s"):
        await Lease(s3.bucket, s3.keys.own, "three", "three's host", ttl=5, clock=clock).acquire()


async def test_a_holder_that_stood_still_asks_before_it_writes(moto: Server, open_s3: Open, clock: Clock) -> None:
    bucket = moto.new_bucket()
    old, new = await open_s3(moto, bucket), await open_s3(moto, bucket)
    old.lease = lease_of(old, "one", clock)
    await old.lease.acquire()
    clock.now += 59
    await old.write("f", b"in time")
    clock.now += 2
    await old.write("f", b"late, and nobody minds")
    clock.now += 61
    await lease_of(new, "two", clock).acquire()
    for _ in range(2):
        with pytest.raises(LeaseLost, match="two's host"):
            await old.write("g", b"too late")
    assert [ref.path for ref in await new.on_list(None, {})] == ["f"]


async def test_all_who_wait_for_one_renewal_share_its_failure(
    proxy: FaultProxy, moto: Server, open_s3: Open, clock: Clock
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket(), write_patience=1.0)
    s3.lease = lease_of(s3, "one", clock)
    await s3.lease.acquire()
    await s3.check()
    clock.now += 61
    proxy.down()
    failed = 0

    async def write(number: int) -> None:
        nonlocal failed
        with pytest.raises(Unavailable):
            await s3.write(f"f{number}", b"x")
        failed += 1

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(write, number)
    assert failed == 30
    proxy.up()
    await s3.write("f", b"x")


async def test_a_lease_whose_object_is_gone_is_made_again_by_its_holder_alone(s3: S3Storage, clock: Clock) -> None:
    first, second = lease_of(s3, "one", clock), lease_of(s3, "two", clock)
    await first.acquire()
    await s3.bucket.delete(first.key)
    await first.renew()
    assert first.vanished
    with pytest.raises(LeaseHeld, match="one's host"):
        await second.acquire()
    await s3.bucket.delete(first.key)
    await second.acquire()
    with pytest.raises(LeaseLost, match="two's host"):
        await first.renew()


async def test_a_write_of_a_process_that_died_does_not_keep_its_successor_out(s3: S3Storage, clock: Clock) -> None:
    dead, successor = lease_of(s3, "one", clock), lease_of(s3, "one", clock)
    await dead.acquire()
    await successor.acquire()
    await lease_of(s3, "one", clock).acquire()  # arrives late
    for step in (dead.renew, successor.renew, successor.release):
        clock.now += 1
        await step()


async def test_a_write_that_is_refused_for_ever_ends(
    proxy: FaultProxy, moto: Server, open_s3: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "PAUSES", (0.0, 0.0))
    s3 = await open_s3(proxy.url, moto.new_bucket())
    lease = lease_of(s3, "one", clock)
    await lease.acquire()
    refused = proxy.add(Fault("status", "PUT", "lease", status=412, code="PreconditionFailed"))
    clock.now += 1
    with pytest.raises(Unavailable, match="refused again and again"):
        await lease.renew()
    assert refused.met == 2
    proxy.clear()
    await lease.renew()


async def test_renewing_keeps_it(s3: S3Storage, clock: Clock) -> None:
    first, second = lease_of(s3, "one", clock), lease_of(s3, "two", clock)
    await first.acquire()
    for _ in range(5):
        clock.now += 50
        await first.renew()
    with pytest.raises(LeaseHeld):
        await second.acquire()


async def test_the_same_holder_goes_on_after_its_process_died(s3: S3Storage, clock: Clock) -> None:
    await lease_of(s3, "one", clock).acquire()
    again = lease_of(s3, "one", clock)
    clock.now += 5
    await again.acquire()
    assert again.held is not None
    assert (again.held.epoch, again.held.since) == (1, 1_000_000.0)


async def test_ages_are_the_servers_whatever_our_clock_says(s3: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = lease_of(s3, "one", None), lease_of(s3, "two", None)
    await first.acquire()
    for skew in (-7200, 7200):
        monkeypatch.setattr("time.time", lambda skew=skew: 1_800_000_000 + skew)
        with pytest.raises(LeaseHeld, match="last renewed [0-5] s ago"):
            await second.acquire()


@pytest.mark.parametrize("lacking", ["Date", "Last-Modified", "ETag"])
async def test_an_answer_that_does_not_tell_the_leases_age_or_version_is_refused(
    proxy: FaultProxy, moto: Server, open_s3: Open, lacking: str
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    lease = lease_of(s3, "one", None)
    await lease.acquire()
    proxy.lacking = lacking
    with pytest.raises(Refused, match=f"no {lacking.lower()}"):
        await lease_of(s3, "two", None).acquire()


async def test_a_lease_counts_from_when_its_renewal_began(
    s3: S3Storage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.lease = lease = lease_of(s3, "one", clock)
    put = s3.bucket.put

    async def slow(*args: Any) -> str:
        clock.now += 40
        return await put(*args)

    with monkeypatch.context() as patched:
        patched.setattr(s3.bucket, "put", slow)
        await lease.acquire()
    clock.now += 21
    await s3.write("f", b"x")
    assert lease.held is not None and lease.held.renewed == clock.now, "it may have lapsed, so it is renewed first"


async def test_only_one_of_many_takes_it(s3: S3Storage, clock: Clock) -> None:
    took: list[str] = []

    async def take(holder: str) -> None:
        try:
            await lease_of(s3, holder, clock).acquire()
            took.append(holder)
        except LeaseHeld:
            return

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(take, f"h{number}")
    assert len(took) == 1


async def test_who_was_robbed_can_commit_no_more(moto: Server, open_s3: Open) -> None:
    bucket = moto.new_bucket()
    old, new = await open_s3(moto, bucket), await open_s3(moto, bucket)
    lease = await old.acquire("one", "one's host")
    version = await old.on_save_image(None, b"image 1", {"if_version": None})
    with pytest.raises(LeaseHeld):
        await new.acquire("two", "two's host")
    await new.acquire("two", "two's host", steal=True)
    loaded = await new.on_load_image(None, {})
    assert loaded is not None and loaded[0] == b"image 1"
    with pytest.raises(LeaseLost, match="two's host"):
        await old.on_save_image(None, b"image 2 of the robbed", {"if_version": version})
    with pytest.raises(LeaseLost):
        await lease.renew()
    await new.on_save_image(None, b"image 2", {"if_version": loaded[1]})
    assert await new.on_load_image(None, {}) is not None


async def test_who_was_robbed_before_the_first_commit_can_commit_no_more(moto: Server, open_s3: Open) -> None:
    bucket = moto.new_bucket()
    old, new = await open_s3(moto, bucket), await open_s3(moto, bucket)
    await old.acquire("one", "one's host")
    await new.acquire("two", "two's host", steal=True)
    assert await new.on_load_image(None, {}) is None
    with pytest.raises(LeaseLost, match="two's host"):
        await old.on_save_image(None, b"late", {"if_version": None})
    await new.on_save_image(None, b"image", {"if_version": None})
    loaded = await new.on_load_image(None, {})
    assert loaded is not None and loaded[0] == b"image"
    with pytest.raises(Conflict):
        await new.on_save_image(None, b"another image", {"if_version": None})


async def test_keeping_renews_through_an_outage_and_ends_when_the_lease_is_lost(
    s3: S3Storage, clock: Clock, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewals = 0

    async def renew(self: Lease) -> None:
        nonlocal renewals
        renewals += 1
        if renewals < 3:
            raise Unavailable("lease", "down")
        if renewals == 5:
            raise LeaseLost("lease", None)

    monkeypatch.setattr(Lease, "renew", renew)
    lease = lease_of(s3, "one", clock)
    started = trio.current_time()
    with pytest.raises(LeaseLost):
        await lease.keep()
    assert trio.current_time() - started == pytest.approx(5 * 20)
    assert s3.bucket.counts["lease renewals failed"] == 2


async def test_a_lost_answer_to_taking_or_renewing_loses_nothing(
    proxy: FaultProxy, moto: Server, open_s3: Open, clock: Clock
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    lease = lease_of(s3, "one", clock)
    for step in (lease.acquire, lease.renew, lease.renew):
        fault = proxy.add(Fault("reset after", "PUT", "lease", times=1))
        await step()
        assert fault.times == 0
    await lease.release()
