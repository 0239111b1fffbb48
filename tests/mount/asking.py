"""What tests of a mounted session share."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

libc = ctypes.CDLL(None, use_errno=True)
fork = multiprocessing.get_context("fork")
NOBODY = 65534


def refused(number: int, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    with pytest.raises(OSError) as caught:
        function(*arguments, **options)
    assert caught.value.errno == number, caught.value


def as_nobody(place: Path, function: Callable[[], None]) -> None:
    """Run it in `place` in a process of an ordinary user."""

    def child() -> None:
        os.chdir(place)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        function()

    process = fork.Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
