from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from vfs.storage.throttle import Budget, Throttle


async def test_a_full_house_of_successes_adds_requests_up_to_the_most() -> None:
    throttle = Throttle(most=4, start=1)
    for _ in range(20):
        busy = [object() for _ in range(int(throttle.limiter.total_tokens))]
        for borrower in busy:
            await throttle.limiter.acquire_on_behalf_of(borrower)
        for _ in busy:
            throttle.succeeded()
        for borrower in busy:
            throttle.limiter.release_on_behalf_of(borrower)
    assert throttle.limiter.total_tokens == 4


async def test_a_house_that_is_not_full_needs_no_more_requests() -> None:
    throttle = Throttle(most=8, start=4)
    async with throttle.limiter:
        for _ in range(100):
            throttle.succeeded()
    assert throttle.limiter.total_tokens == 4


async def test_being_told_to_slow_down_halves_once_a_second(mock_clock: MockClock) -> None:
    throttle = Throttle(most=64, start=64)
    for _ in range(10):
        throttle.slow_down()
    assert throttle.limiter.total_tokens == 32
    for _ in range(10):
        mock_clock.jump(1.1)
        throttle.slow_down()
    assert throttle.limiter.total_tokens == 1


async def test_content_in_memory_stays_within_the_budget() -> None:
    budget, held, most = Budget(10), 0, 0

    async def hold(size: int) -> None:
        nonlocal held, most
        async with budget.hold(size):
            held += size
            most = max(most, held)
            await trio.lowlevel.checkpoint()
            held -= size

    async with trio.open_nursery() as nursery:
        for size in (4, 4, 4, 9, 1, 10, 3):
            nursery.start_soon(hold, size)
    assert most <= 10
    assert budget.free == 10


async def test_more_than_the_budget_waits_to_be_alone(autojump_clock: MockClock) -> None:
    budget = Budget(10)
    async with trio.open_nursery() as nursery, budget.hold(1):
        entered = trio.Event()

        async def large() -> None:
            async with budget.hold(1000):
                entered.set()

        nursery.start_soon(large)
        await wait_all_tasks_blocked()
        assert not entered.is_set()
    assert entered.is_set()


async def test_a_budget_is_given_back_by_who_fails() -> None:
    budget = Budget(10)
    with pytest.raises(ValueError, match="x"):
        async with budget.hold(7):
            raise ValueError("x")
    assert budget.free == 10
