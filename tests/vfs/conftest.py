"""Time in the tests of sessions."""

from __future__ import annotations

import pytest
from trio.testing import MockClock, active_thread_count


@pytest.fixture
def autojump_clock() -> MockClock:
    """Time that jumps when nobody has anything to do. Trio's own jumps while threads work: a time-out fires, and what
    is
    repeated every so often runs thousands of times, during one real fsync."""
    clock = MockClock(autojump_threshold=0.001)
    jump = clock._autojump

    def patient() -> None:
        if not active_thread_count():
            jump()

    clock._autojump = patient  # type: ignore[method-assign]
    return clock
