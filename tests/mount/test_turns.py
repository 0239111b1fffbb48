"""The turns that a worker asks the kernel for are its own, and nobody's that it starts."""

from __future__ import annotations

import ctypes
import os
import platform
import threading

from mount import turns

_GET = {"x86_64": 315, "aarch64": 275}  # sched_getattr(2)


def turn_ns() -> tuple[int, int]:
    """The calling thread's nice value and turn."""
    found = ctypes.create_string_buffer(turns._ATTRIBUTES.size)
    assert ctypes.CDLL(None).syscall(_GET[platform.machine()], 0, found, len(found), 0) == 0
    _, _, _, nice, _, turn, _, _ = turns._ATTRIBUTES.unpack(found.raw)
    return nice, turn


def test_short_turns_are_for_the_thread_that_asks() -> None:
    told: list[tuple[int, int]] = []

    def ask() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, 5)
        assert turns.ask_for_short_turns()
        told.append(turn_ns())
        child = threading.Thread(target=lambda: told.append(turn_ns()))
        child.start()
        child.join()

    usual = turn_ns()
    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    (nice, turn), (_, inherited) = told
    assert nice == 5, "it is no way to more"
    assert inherited == usual[1] == turn_ns()[1]
    version = tuple(map(int, platform.release().split(".")[:2]))
    assert turn == turns.TURN_NS if version >= (6, 12) else turn == usual[1]
