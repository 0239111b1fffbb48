"""The service that `mount-session serve` is: the daemon with its sockets, from its start to a signal.

The order matters. The socket answers before sessions are mounted, so that `status` and `wait` work meanwhile;
"ready" is told to the service manager when each session was tried once; at the end the sockets close first, then
everything is unmounted. One daemon a state directory: `lock` there is held for as long as it lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import trio

from mount import docker
from mount.api import application
from mount.audit import Audit
from mount.daemon import Daemon
from mount.identity import take_environment
from mount.listener import Listener, serve_port
from mount.metrics import metrics_application
from mount.notify import notify, watchdog_seconds
from mount.outbox import Outbox
from mount.settings import Settings
from mount.spawner import PROJECT
from mount.supervisor import Supervisor
from mount.webhooks import Webhooks

__all__ = ["serve"]

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def serve(settings: Settings) -> None:
    """Until SIGTERM or SIGINT; then everything is synced and unmounted, for which a second one ends the waiting. At
    SIGHUP: `Supervisor.upgrade`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a session takes three descriptors, a client one
    prepare(settings)
    inherited = take_environment(settings.environment)
    with locked(settings.own / "lock"), trio.open_signal_receiver(*_SIGNALS) as signals:
        audit = Audit(settings.own / "registry")
        try:
            async with Supervisor.run() as supervisor, trio.open_nursery() as nursery:
                daemon = Daemon(settings, supervisor, nursery, audit, Webhooks(settings.webhooks))
                daemon.inherited = inherited
                await _serve(daemon, supervisor, nursery, signals)
                nursery.cancel_scope.cancel()
        finally:
            audit.close()


async def _serve(
    daemon: Daemon, supervisor: Supervisor, daemon_nursery: trio.Nursery, signals: AsyncIterator[int]
) -> None:
    settings = daemon.settings
    with contextlib.ExitStack() as stack:
        listeners = [Listener(settings.socket, application(daemon), group=settings.group)]
        if settings.docker:
            socket = Path(settings.docker)
            socket.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            listeners.append(Listener(socket, docker.application(daemon, daemon_nursery)))
        for listener in listeners:
            stack.enter_context(listener)
        daemon.refused = lambda: sum(listener.refused for listener in listeners)
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(listener.serve)
            nursery.start_soon(daemon.webhooks.run)
            nursery.start_soon(Outbox(daemon).run)
            if settings.metrics:
                nursery.start_soon(serve_port, metrics_application(daemon), settings.metrics)
            nursery.start_soon(_restore, daemon)
            nursery.start_soon(_watchdog)
            while (number := await anext(signals)) == signal.SIGHUP:
                await _upgrade(daemon, supervisor)
            log.info("%s: stopping", signal.Signals(number).name)
            notify("STOPPING=1")
            nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_hurry, signals, supervisor)
        await daemon.close()
        nursery.cancel_scope.cancel()


async def _hurry(signals: AsyncIterator[int], supervisor: Supervisor) -> None:
    """A second signal ends the waiting for storages: what they do not take now stays pending, for the next start."""
    async for number in signals:
        if number != signal.SIGHUP:
            await supervisor.hurry()


async def _upgrade(daemon: Daemon, supervisor: Supervisor) -> None:
    """The successor is started with what this program was started with; it finds the sessions by their workers."""
    before = dict(os.environ)
    os.environ.update(daemon.inherited)
    notify("RELOADING=1")
    await supervisor.upgrade()
    os.environ.clear()  # it could not be: go on as before
    os.environ.update(before)
    notify("READY=1")


async def _restore(daemon: Daemon) -> None:
    log.info("listening on %s", daemon.settings.socket)
    await daemon.restore()
    notify(f"READY=1\nSTATUS={len(daemon.hosted)} sessions")


async def _watchdog() -> None:
    """A sign of life from the loop itself: a blocked one sends none."""
    if (seconds := watchdog_seconds()) is None:
        return
    while True:
        notify("WATCHDOG=1")
        await trio.sleep(seconds)


def prepare(settings: Settings) -> None:
    """The directories. Others may pass through them, to a mount or a worker's own state, but not list them."""
    for path, mode in ((settings.root_path, 0o755), (settings.state_path, 0o711), (settings.own, 0o711)):
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(mode)
    if settings.workers.uids is not None and os.geteuid() != 0:
        raise PermissionError(errno.EPERM, "workers.uids needs a daemon that runs as root")
    if settings.root_path.resolve() == settings.state_path.resolve():
        raise ValueError(f"root and state are the same directory, {settings.root}; choose two")
    Path(settings.own / "registry").mkdir(mode=0o700, exist_ok=True)
    if settings.workers.uids is not None:
        _check_interpreter(settings.workers.uids[0])


def _check_interpreter(uid: int) -> None:
    """Workers are forked, but the journal's compaction and what a storage imports late need our files as that user."""
    command = [sys.executable, "-P", "-c", "import vfs.image"]
    environment = {"PYTHONPATH": str(PROJECT)}
    try:
        subprocess.run(command, user=uid, group=uid, extra_groups=[], env=environment, check=True, timeout=60)
    except (PermissionError, subprocess.CalledProcessError):
        log.warning(
            "user %d cannot run %s and import from %s: journals will only grow; install both where all may read them",
            uid,
            sys.executable,
            PROJECT,
        )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """The lock of the state directory, for as long as the block lasts."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(
                errno.EBUSY, "another `mount-session serve` has it; stop that one, or use another --state", str(path)
            ) from None
        yield
    finally:
        os.close(fd)
