"""The backing device info of a mount: how far the kernel reads ahead in it, and how much of it may be dirty.

A FUSE mount gets 128 KiB of read-ahead and at most 1 % of the dirty page limit, whatever the server negotiates; only
root may raise them, under /sys/class/bdi. One request carries 1 MiB at most (`handshake.MAX_WRITE`), so read-ahead
below that wastes round trips. Called by the supervisor once a mount exists.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

READ_AHEAD_KB: Final = 4096  # four requests of the largest size in flight for one sequential reader
MAX_RATIO: Final = 100  # FUSE's 1 % makes large shared mappings wait for the server at a few MiB of dirty pages
BDI: Final = Path("/sys/class/bdi")


def tune(device: str) -> bool:
    """Raise both for the mount with this device number ("0:45"); False where we are not allowed to."""
    if os.geteuid() != 0:
        return False
    directory = BDI / device
    try:
        (directory / "read_ahead_kb").write_text(str(READ_AHEAD_KB))
        (directory / "max_ratio").write_text(str(MAX_RATIO))
    except OSError:  # sysfs is mounted read-only in most containers: slower, but right
        return False
    return True
