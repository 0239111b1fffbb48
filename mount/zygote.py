"""The zygote: a process with all imports done and no threads, of which every worker is a fork.

Importing pyfuse3, the session and the storage clients takes half a second and tens of megabytes; a fork takes
milliseconds, and shares them. The supervisor starts the zygote and sends it, for each worker, a `Start` with the
/dev/fuse descriptor and the worker's end of a channel. It answers with the new process's id and pidfd, or why there is
none, and reports each exit with its status, for it is the parent. When the supervisor dies it becomes the keeper of
what mounts it knows (`mount.keeper`).
"""

from __future__ import annotations

import array
import contextlib
import errno
import gc
import logging
import os
import select
import signal
import socket
import sys
import time

import msgspec

from mount import quietlog, title
from mount.channel import MAX_DESCRIPTORS, MAX_MESSAGE, pack_descriptors, unpack_descriptors
from mount.config import Failure, Order, Start
from mount.keeper import Keeper, Kept


class Forked(msgspec.Struct, tag="forked", frozen=True):
    """The answer to a `Start`; the pidfd comes with it."""

    pid: int


class NotForked(msgspec.Struct, tag="not forked", frozen=True):
    """The answer to a `Start` where no process could be made."""

    failure: Failure


class Exited(msgspec.Struct, tag="exited", frozen=True):
    pid: int
    status: int  # as os.waitstatus_to_exitcode gives it: negative for a signal


def main() -> None:
    quietlog.install(sys.stderr, quietlog.style())
    title.set_title("mount-session: zygote")
    supervisor = socket.socket(fileno=int(sys.argv[1]))
    supervisor.set_inheritable(False)
    # A terminal's Ctrl-C and a service manager's SIGTERM reach every process; what they mean, the supervisor says.
    # Handlers, not SIG_IGN: that would be inherited by the programs that workers run.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ignore)
    import mount.worker  # noqa: F401 - the half second

    gc.collect()
    gc.freeze()  # a collection in a worker then does not touch, and so copy, the pages that all share
    _loop(supervisor)


def _ignore(number: int, frame: object) -> None:
    """What a signal means is decided by the supervisor."""


def _loop(supervisor: socket.socket) -> None:
    deaths, wake_up = os.pipe()
    os.set_blocking(deaths, False)
    os.set_blocking(wake_up, False)
    signal.set_wakeup_fd(wake_up, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _ignore)
    adoptions, to_tell = socket.socketpair()
    adoptions.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # a worker speaks for itself alone
    own = {deaths, wake_up, adoptions.fileno()}
    poll = select.poll()
    poll.register(supervisor, select.POLLIN)
    poll.register(deaths, select.POLLIN)
    kept: dict[str, Kept] = {}

    def employ(mount: Kept, others: set[int]) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            return _fork(mount.start, mount.fd, theirs.fileno(), to_tell.fileno(), own | others | {ours.fileno()})

    while True:
        ready = {fd for fd, _ in poll.poll()}
        if deaths in ready:
            os.read(deaths, 512)
            for pid, status in _reap():
                _note(kept, pid, status)
                _tell(supervisor, Exited(pid, status))
        if supervisor.fileno() in ready and not _obey(supervisor, own, to_tell.fileno(), kept):
            break
    supervisor.close()
    if kept:
        title.set_title("mount-session: keeper")
        Keeper(kept, employ, _reap).run(deaths, adoptions)


def _tell(supervisor: socket.socket, message: Forked | NotForked | Exited, descriptors: tuple[int, ...] = ()) -> None:
    with contextlib.suppress(ConnectionError):  # it is dead; the next look at the socket says so
        supervisor.sendmsg([msgspec.msgpack.encode(message)], pack_descriptors(descriptors))


def _reap() -> list[tuple[int, int]]:
    """Children that have died, each with its status."""
    dead = []
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            dead.append((found[0], os.waitstatus_to_exitcode(found[1])))
    return dead


def _note(kept: dict[str, Kept], pid: int, status: int) -> None:
    for session, mount in list(kept.items()):
        if mount.pid == pid and not mount.ended(status):
            _forget(kept, session)


def _forget(kept: dict[str, Kept], session: str) -> None:
    mount = kept.pop(session, None)
    if mount is not None:
        mount.close()


def _obey(supervisor: socket.socket, own: set[int], to_tell: int, kept: dict[str, Kept]) -> bool:
    """Do one thing that we are told; False when the supervisor is gone."""
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    try:
        encoded, ancillary, _, _ = supervisor.recvmsg(MAX_MESSAGE, space)
    except ConnectionResetError:
        return False
    if not encoded:
        return False
    descriptors = unpack_descriptors(ancillary)
    order = msgspec.msgpack.decode(encoded, type=Order)
    start = order.start
    _forget(kept, start.config.session)
    if order.what == "keep" and descriptors:
        kept[start.config.session] = Kept(start, descriptors[0], None)
    elif order.what == "fork":
        others = own | {supervisor.fileno()} | {mount.fd for mount in kept.values()}
        _employ(supervisor, start, descriptors, to_tell, others, kept)
    return True


def _employ(
    supervisor: socket.socket,
    start: Start,
    descriptors: list[int],
    to_tell: int,
    others: set[int],
    kept: dict[str, Kept],
) -> None:
    """Fork a worker for the supervisor. Where that fails the mount is kept all the same, for the supervisor may die
    before it has tried again."""
    if len(descriptors) < 2:  # the kernel leaves out those for which there is no room
        for fd in descriptors:
            os.close(fd)
        _tell(supervisor, NotForked(Failure.of(OSError(errno.EMFILE, "the zygote has no descriptor left"))))
        return
    fuse_fd, control_fd = descriptors
    mount = kept[start.config.session] = Kept(start, fuse_fd, None)
    try:
        mount.pid = _fork(start, fuse_fd, control_fd, to_tell, others)
        pidfd = os.pidfd_open(mount.pid)  # nobody else reaps, so this is that process, dead or alive
    except Exception as error:
        if mount.pid is not None:
            os.kill(mount.pid, signal.SIGKILL)
            mount.pid = None
        mount.due = time.monotonic()
        _tell(supervisor, NotForked(Failure.of(error)))
    else:
        _tell(supervisor, Forked(mount.pid), (pidfd,))
        os.close(pidfd)
    finally:
        os.close(control_fd)


def _fork(start: Start, fuse_fd: int, control_fd: int, to_tell: int, others: set[int]) -> int:
    from vfs.storage.url import preload  # here, for the supervisor imports this module

    preload(start.config.storage)  # 0.2 s, which the next worker of the kind does not wait for
    pid = os.fork()
    if pid == 0:
        _become_worker(start, fuse_fd, control_fd, to_tell, others)
    return pid


def _become_worker(start: Start, fuse_fd: int, control_fd: int, to_tell: int, others: set[int]) -> None:
    """Never returns: what the zygote has on its stack is not this process's business."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in others:
            os.close(fd)
        from mount import worker

        status = worker.main(start, fuse_fd, socket.socket(fileno=control_fd), to_tell)
    finally:
        logging.shutdown()
        os._exit(status)


if __name__ == "__main__":
    main()
