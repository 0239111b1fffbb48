"""sd_notify(3): what a service tells its service manager. Nothing where there is none."""

from __future__ import annotations

import os
import socket
from typing import Final

__all__ = ["notify", "watchdog_seconds"]

_VARIABLE: Final = "NOTIFY_SOCKET"


def notify(state: str) -> bool:
    """Tell "READY=1", "STOPPING=1", "STATUS=...", "WATCHDOG=1"; False where nobody listens.

    A datagram is either taken at once or dropped: the loop never waits for the manager.
    """
    address = os.environ.get(_VARIABLE)
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.sendto(state.encode(), address)
        except (BlockingIOError, ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def watchdog_seconds() -> float | None:
    """How often the manager wants a "WATCHDOG=1", halved to be on time; None: it does not watch this process."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID")
    if not microseconds or (pid and int(pid) != os.getpid()):
        return None
    return int(microseconds) / 2e6
