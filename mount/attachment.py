"""Attachment: a new FUSE connection on a session's mountpoint, with the kernel's first request answered.

The supervisor's part of mounting. It is done in a thread: the mountpoint may belong to a server that does not answer.
"""

from __future__ import annotations

import logging
import os

from mount import bdi, handshake, mountpoint
from mount.config import Connection, MountConfig

__all__ = ["attach"]

log = logging.getLogger(__name__)


def attach(config: MountConfig) -> tuple[int, Connection]:
    """Mount; the descriptor that the mount is from now on. OSError says what to do, and leaves nothing mounted."""
    path = config.mountpoint_path
    mountpoint.prepare(path, config.directory)
    with mountpoint.claimed(path):
        attached = mountpoint.attach(path, config.session, read_only=config.read_only)
    try:
        wanted = handshake.WANTED if config.can_resend else handshake.WANTED & ~handshake.HAS_RESEND
        agreement = handshake.answer(attached.fd, wanted=wanted)
    except BaseException:
        mountpoint.detach(path, lazy=True)
        os.close(attached.fd)
        raise
    bdi.tune(attached.device)
    if not attached.allow_other:
        log.warning(
            "only your own processes can use %s; containers with other users need `user_allow_other` in %s",
            path,
            mountpoint.FUSE_CONF,
        )
    return attached.fd, Connection(device=attached.device, **agreement._asdict())
