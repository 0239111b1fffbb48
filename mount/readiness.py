"""Readiness: real I/O through a new mount, as the supervisor does it before it says "mounted". See `mount.probe`.

These calls wait for the worker that serves the mount: call them in a thread, never where the supervisor's own loop
runs.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import secrets
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_CONTENT: Final = b"mount-session probe\n"

_libc = ctypes.CDLL(None, use_errno=True)


def check(mountpoint: Path, name: bytes, read_only: bool) -> None:
    """Read, and unless `read_only` write and read back, through the probe `name`; then see it gone."""
    path = os.path.join(os.fsencode(mountpoint), name)
    try:
        fd = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
    except PermissionError:
        # An ordinary user may serve a tree whose root directory others closed to him: then the kernel's own request for
        # the file system's size is what can be had through the mount.
        os.statvfs(mountpoint)
        return
    try:
        _expect(os.pread(fd, 4096, 0), _CONTENT, mountpoint)
        if not read_only:
            written = secrets.token_bytes(64)
            os.pwrite(fd, written, 0)
            _expect(os.pread(fd, 64, 0), written, mountpoint)
    finally:
        os.close(fd)
    if os.path.lexists(path):
        raise OSError(errno.EIO, "the probe's file did not go away again", str(mountpoint))


def _expect(found: bytes, wanted: bytes, mountpoint: Path) -> None:
    if found != wanted:
        raise OSError(errno.EIO, "the mount gives back other bytes than were written to it", str(mountpoint))


def flush_pages(mountpoint: Path) -> None:
    """Have the kernel hand over what programs changed through shared mappings; every write(2) is with us already.

    Pages that were refused, for instance on a full disk, are given up by the kernel: that is for the programs, which
    msync(2) and fsync(2) tell, and keeps no session from ending.
    """
    try:
        fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.ENOTCONN, errno.ENOENT):
            return  # not ours to open, or not mounted any more
        raise
    try:
        if _libc.syncfs(fd) != 0:
            why = os.strerror(ctypes.get_errno())
            log.error("%s: some of what was changed through mappings could not be written: %s", mountpoint, why)
    finally:
        os.close(fd)
