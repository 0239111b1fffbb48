"""Succession: a supervisor becomes the program that is installed now, and every worker with it; no request is refused.

The process replaces itself by execve(2), so its id stays, which is what a service manager watches. Workers outlive that
as they outlive a supervisor's death: they are found again through the state directory, and each is then followed by a
worker of the new code, which the old one makes room for once it has answered what it had in hand. What comes meanwhile
waits in the kernel. If the new program cannot even be imported, nothing is done.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

import trio

log = logging.getLogger(__name__)

_VARIABLE: Final = "MOUNT_SESSION_SUCCESSION"
_CHECK: Final = "import mount.cli, mount.supervisor, mount.worker"


def keeper_before() -> int | None:
    """Did this program take the place of an earlier one? The process that keeps that one's mounts until they are
    adopted, 0 if there is none; None if it did not. Told once: what it starts is no successor."""
    told = os.environ.pop(_VARIABLE, None)
    return None if told is None else int(told)


async def see_end(pid: int) -> None:
    """The keeper is our child, so nobody else asks for its exit status."""
    pidfd = os.pidfd_open(pid)
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
    os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - it is dead


async def can_succeed(python_path: str) -> bool:
    """Can what is installed now be imported? Said in the log if not."""
    environment = {**os.environ, "PYTHONPATH": python_path}
    done = await trio.run_process(
        [sys.executable, "-P", "-c", _CHECK], check=False, capture_stderr=True, env=environment
    )
    if done.returncode != 0:
        log.error(
            "not upgraded: what is installed cannot be imported: %s", done.stderr.decode(errors="replace")[-2000:]
        )
    return done.returncode == 0


def replace_process(keeper: int | None) -> None:
    """Does not return. Descriptors of ours are close-on-exec; standard input, output and error stay."""
    os.environ[_VARIABLE] = str(keeper or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, sys.orig_argv)
