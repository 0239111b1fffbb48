"""The title under which `ps` shows a process of ours: who is who on a host with many sessions.

The command line that /proc/PID/cmdline shows lies in the process's own memory, between `arg_start` and `arg_end` of
/proc/self/stat (proc_pid_stat(5), fields 48 and 49), and may be overwritten, no longer than it was. Who wants room
starts the process with a long enough argument (`ROOM`). `ps -e` and `top` show the kernel's 15-byte name, set by
prctl(2).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

ROOM: Final = " " * 256
_PR_SET_NAME: Final = 15

_libc = ctypes.CDLL(None, use_errno=True)


def set_title(title: str) -> None:
    """Show this process as `title`, cut where the command line that it was started with is shorter."""
    encoded = title.encode()
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[48 - 3]), int(fields[49 - 3])
    if 0 < start < end:
        ctypes.memmove(start, encoded[: end - start - 1].ljust(end - start, b"\0"), end - start)
    _libc.prctl(_PR_SET_NAME, b"mount-session", 0, 0, 0)
