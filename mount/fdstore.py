"""The service manager's descriptor store: mounts outlive even the death of every process of ours.

systemd keeps descriptors that a service gives it (sd_notify(3), FDSTORE=1) and hands them to the service's next process
(sd_listen_fds(3)): with `FileDescriptorStoreMax=` in the unit a mount's /dev/fuse descriptor stays open whatever we do.
What must be known beside the descriptor is in the file `connection` of the session's state directory.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import Final

import msgspec

from mount.config import Connection, MountConfig

NAME: Final = "connection"
_FIRST: Final = 3  # SD_LISTEN_FDS_START


class Known(msgspec.Struct, frozen=True):
    """A mount as its next supervisor must know it."""

    connection: Connection
    mountpoint: bytes
    read_only: bool


def remember(config: MountConfig, connection: Connection, fd: int) -> None:
    """Give the manager a duplicate, where there is one."""
    if "NOTIFY_SOCKET" not in os.environ:
        return
    aside = config.directory / f"{NAME}.new"
    aside.write_bytes(msgspec.msgpack.encode(Known(connection, config.mountpoint, config.read_only)))
    aside.rename(config.directory / NAME)
    _tell(f"FDSTORE=1\nFDNAME={config.session}", fd)


def forget(config: MountConfig) -> None:
    """The mount is gone; the manager lets go of its duplicate."""
    if "NOTIFY_SOCKET" in os.environ:
        (config.directory / NAME).unlink(missing_ok=True)
        _tell(f"FDSTOREREMOVE=1\nFDNAME={config.session}")


def _tell(state: str, *descriptors: int) -> None:
    address = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(1)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        target = "\0" + address[1:] if address.startswith("@") else address
        with contextlib.suppress(TimeoutError, ConnectionRefusedError, FileNotFoundError):  # no manager any more
            sock.sendmsg([state.encode()], ancillary, 0, target)


def inherited() -> dict[str, int]:
    """The descriptors that the manager kept, by session id. Told once; they belong to the caller."""
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if not count or pid != str(os.getpid()):
        return {}
    found: dict[str, int] = {}
    for fd, name in zip(range(_FIRST, _FIRST + int(count)), names, strict=True):
        os.set_inheritable(fd, False)
        if name in found:
            os.close(fd)
        else:
            found[name] = fd
    return found


def known(config: MountConfig) -> Connection:
    """What was noted of the mount whose descriptor was kept; EBUSY if it is on another directory."""
    path: Path = config.directory / NAME
    noted = msgspec.msgpack.decode(path.read_bytes(), type=Known)
    if (noted.mountpoint, noted.read_only) != (config.mountpoint, config.read_only):
        raise OSError(errno.EBUSY, "the session is still mounted here; unmount it first", os.fsdecode(noted.mountpoint))
    return noted.connection
