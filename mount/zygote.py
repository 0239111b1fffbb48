"""The zygote: a process with all imports done and no threads, of which every worker is a fork.

Importing pyfuse3, the session and the storage clients takes half a second and tens of megabytes; a fork takes
milliseconds, and shares them. The supervisor starts the zygote and sends it, for each worker, a `Start` with the
/dev/fuse descriptor and the worker's end of a channel. It answers with the new process's id and pidfd, and reports each
exit with its status, for it is the parent. It ends when the supervisor is gone; the workers do not.
"""

from __future__ import annotations

import array
import gc
import logging
import os
import select
import signal
import socket
import sys

import msgspec

from mount import quietlog, title
from mount.channel import MAX_DESCRIPTORS, MAX_MESSAGE, pack_descriptors, unpack_descriptors
from mount.config import Order, Start


class Forked(msgspec.Struct, tag="forked", frozen=True):
    """The answer to a `Start`; the pidfd comes with it."""

    pid: int


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
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _ignore)
    poll = select.poll()
    poll.register(supervisor, select.POLLIN)
    poll.register(read_end, select.POLLIN)
    private = (supervisor.fileno(), read_end, write_end)
    kept: dict[str, tuple[Start, int]] = {}
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if read_end in ready:
            os.read(read_end, 512)
            _reap(supervisor)
        if supervisor.fileno() in ready and not _obey(supervisor, private, kept):
            break
    for start, fuse_fd in kept.values():  # their mounts would die with us
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.close()
        others = tuple(fd for _, fd in kept.values() if fd != fuse_fd)
        _fork(start, fuse_fd, theirs.fileno(), private + others)
        theirs.close()


def _reap(supervisor: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        supervisor.send(msgspec.msgpack.encode(Exited(pid, os.waitstatus_to_exitcode(status))))


def _obey(supervisor: socket.socket, private: tuple[int, ...], kept: dict[str, tuple[Start, int]]) -> bool:
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
    _, before = kept.pop(start.config.session, (None, -1))
    if before >= 0:
        os.close(before)
    if order.what == "keep":
        kept[start.config.session] = (start, descriptors[0])
    elif order.what == "fork":
        fuse_fd, control_fd = descriptors
        pid = _fork(start, fuse_fd, control_fd, private + tuple(fd for _, fd in kept.values()))
        os.close(fuse_fd)
        os.close(control_fd)
        pidfd = os.pidfd_open(pid)  # nobody else reaps, so this is that process, dead or alive
        supervisor.sendmsg([msgspec.msgpack.encode(Forked(pid))], pack_descriptors((pidfd,)))
        os.close(pidfd)
    return True


def _fork(start: Start, fuse_fd: int, control_fd: int, private: tuple[int, ...]) -> int:
    from vfs.storage.url import preload  # here, for the supervisor imports this module

    preload(start.config.storage)  # 0.2 s, which the next worker of the kind does not wait for
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in private:
            os.close(fd)
        _become_worker(start, fuse_fd, control_fd)
    return pid


def _become_worker(start: Start, fuse_fd: int, control_fd: int) -> None:
    """Never returns: what the zygote has on its stack is not this process's business."""
    status = 1
    try:
        from mount import worker

        status = worker.main(start, fuse_fd, socket.socket(fileno=control_fd))
    finally:
        logging.shutdown()
        os._exit(status)


if __name__ == "__main__":
    main()
