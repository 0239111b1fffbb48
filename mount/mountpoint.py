"""A mountpoint: the directory on which a session is mounted, and the FUSE connection behind it.

`attach` opens /dev/fuse and mounts it; the descriptor that it returns *is* the mount: as long as one process has it
open, the mount lives. `detach` takes the mount out of the directory tree. Root uses mount(2) and umount2(2), everyone
else the set-uid `fusermount3`, which mounts for us and hands the descriptor over a socket (libfuse's own protocol).
What is mounted where is read from /proc/self/mountinfo, never by touching the mountpoint: a stat(2) of a mount whose
server hangs would hang as well.

The supervisor calls this module; nothing here blocks on a file server except `detach` (call it in a thread).
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import os
import select
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

FSTYPE: Final = "fuse.mount-session"
DEVICE: Final = "/dev/fuse"
FUSE_CONF: Final = Path("/etc/fuse.conf")
MTAB: Final = Path("/etc/mtab")  # a booted system and a container have it, a bare root of debootstrap has not
CONNECTIONS: Final = Path("/sys/fs/fuse/connections")

CLAIM_LIMIT: Final = 1.0  # seconds; mounting takes some milliseconds

MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MNT_FORCE = 1
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


class Entry(NamedTuple):
    """One line of mountinfo (proc_pid_mountinfo(5))."""

    mount_id: int
    device: str  # "major:minor"
    root: bytes  # which part of the file system is mounted here; b"/" unless it is a bind mount of a directory
    mountpoint: bytes
    options: frozenset[str]
    fstype: str
    source: bytes


class Attached(NamedTuple):
    """A new mount: its descriptor and its device number ("0:45"), whose minor is the fusectl connection number."""

    fd: int
    device: str
    allow_other: bool


def _unescape(field: bytes) -> bytes:
    """Undo the kernel's octal escapes (space, tab, newline, backslash, '#')."""
    head, *rest = field.split(b"\\")
    return head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def parse_mountinfo(text: bytes) -> list[Entry]:
    entries = []
    for line in text.removesuffix(b"\n").split(b"\n"):  # a carriage return is a byte of a name like any other
        before, _, after = line.partition(b" - ")
        mount_id, _, device, root, mountpoint, options, *_ = before.split(b" ")
        fstype, source, *_ = after.split(b" ")
        entries.append(
            Entry(
                int(mount_id),
                device.decode(),
                _unescape(root),
                _unescape(mountpoint),
                frozenset(options.decode().split(",")),
                os.fsdecode(_unescape(fstype)),
                _unescape(source),
            )
        )
    return entries


def mounted_on(path: Path) -> Entry | None:
    """The topmost mount on `path`, or None. `path` is compared as the kernel writes it: absolute, without links."""
    wanted = os.fsencode(path)
    found = None
    with open("/proc/self/mountinfo", "rb") as file:
        for entry in parse_mountinfo(file.read()):
            if entry.mountpoint == wanted:
                found = entry
    return found


def is_mounted(path: Path, device: str) -> bool:
    """Is this very file system mounted there, if beneath another?"""
    wanted = os.fsencode(path)
    with open("/proc/self/mountinfo", "rb") as file:
        return any(entry.mountpoint == wanted and entry.device == device for entry in parse_mountinfo(file.read()))


def resolve(path: str | os.PathLike[str]) -> Path:
    """The mountpoint's absolute path without links. What is mounted there is not touched: it may be dead, or wait.
    An empty one is refused: it would be the current directory."""
    if not os.fspath(path):
        raise FileNotFoundError(errno.ENOENT, "the mountpoint is empty; name a directory")
    absolute = Path(os.path.abspath(path))
    parent = Path(os.path.realpath(absolute.parent)) / absolute.name
    if mounted_on(parent) is None and parent.is_symlink():
        return Path(os.path.realpath(parent))
    return parent


def prepare(mountpoint: Path, state: Path) -> None:
    """Refuse what cannot be mounted on, with a message that says what to do; take away a dead mount of ours. `state` is
    the session's state directory: a mount over it would wait for itself."""
    entry = mounted_on(mountpoint)
    if entry is not None and entry.fstype == FSTYPE and _is_dead(mountpoint):
        detach(mountpoint, lazy=True)
    _refuse_second(mountpoint)
    try:
        mode = os.stat(mountpoint).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT, "the mountpoint does not exist; create the directory first", str(mountpoint)
        ) from None
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, "the mountpoint is not a directory; name a directory", str(mountpoint))
    if Path(os.path.realpath(state)).is_relative_to(mountpoint):
        raise OSError(
            errno.EINVAL, f"the mount would cover its own state, {state}; choose another directory", str(mountpoint)
        )


def _refuse_second(mountpoint: Path) -> None:
    if (entry := mounted_on(mountpoint)) is not None:
        raise OSError(
            errno.EBUSY,
            f"something is mounted there already ({entry.fstype} from {os.fsdecode(entry.source)}); "
            "unmount it first, or choose another directory",
            str(mountpoint),
        )


@contextlib.contextmanager
def claimed(mountpoint: Path) -> Iterator[None]:
    """Nothing is mounted there, and no other process of ours mounts there meanwhile: the kernel would stack the two.

    The claim is a lock on the directory below. Whoever may read that can hold the lock, and no longer than we wait keep
    us from it.
    """
    try:
        fd = _directory_below(mountpoint)
    except PermissionError:
        raise PermissionError(
            errno.EACCES, "this user may not read the mountpoint; name a directory of yours", str(mountpoint)
        ) from None
    try:
        end = time.monotonic() + CLAIM_LIMIT
        while not _locked(fd) and time.monotonic() < end:
            time.sleep(0.01)
        _refuse_second(mountpoint)
        yield
    finally:
        os.close(fd)


def _directory_below(mountpoint: Path) -> int:
    """Opened in two steps, of which none asks a file server that may be mounted there at this moment."""
    path = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _refuse_second(mountpoint)
        return os.open(f"/proc/self/fd/{path}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(path)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno != errno.EWOULDBLOCK  # a file system without such locks (NFS) can only be taken as it is
    return True


def is_ours(mountpoint: Path) -> bool:
    entry = mounted_on(mountpoint)
    return entry is not None and entry.fstype == FSTYPE


def is_alive(mountpoint: Path) -> bool:
    """Is there a mount of ours that answers? Waits for the answer, so for a worker that is just starting."""
    return is_ours(mountpoint) and not _is_dead(mountpoint)


def _is_dead(mountpoint: Path) -> bool:
    """Has the mount lost its server? One whose supervisor alone is gone is not dead."""
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return True
        raise
    return False


def attach(mountpoint: Path, session: str, *, read_only: bool = False) -> Attached:
    """Mount a new FUSE connection on `mountpoint`. The kernel's first request, FUSE_INIT, waits on the descriptor."""
    allow_other = os.geteuid() == 0 or user_allow_other()
    source = f"mount-session:{session}"
    if os.geteuid() == 0:
        fd = _mount_as_root(mountpoint, source, read_only)
    else:
        fd = _mount_as_user(mountpoint, source, read_only, allow_other)
    entry = mounted_on(mountpoint)
    if entry is None or entry.fstype != FSTYPE:
        os.close(fd)
        raise OSError(errno.EIO, "the mount has vanished again: who else mounts there?", str(mountpoint))
    return Attached(fd, entry.device, allow_other)


def open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT,
            "no FUSE here: load the kernel module (`modprobe fuse`), or, in a container, "
            "start it with `--device /dev/fuse --cap-add SYS_ADMIN`",
            DEVICE,
        ) from None
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENXIO):
            raise OSError(error.errno, "the kernel has no FUSE: load its module (`modprobe fuse`)", DEVICE) from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise PermissionError(
                error.errno,
                "no permission: run as root, or let others use it (`chmod 0666 /dev/fuse`), or, in a "
                "container, start it with `--device /dev/fuse --cap-add SYS_ADMIN`",
                DEVICE,
            ) from None
        raise


def _mount_as_root(mountpoint: Path, source: str, read_only: bool) -> int:
    fd = open_device()
    options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},default_permissions,allow_other"
    flags = MS_NOSUID | MS_NODEV | (MS_RDONLY if read_only else 0)
    result = _libc.mount(
        source.encode(), os.fsencode(mountpoint), FSTYPE.encode(), ctypes.c_ulong(flags), options.encode()
    )
    if result != 0:
        code = ctypes.get_errno()
        os.close(fd)
        if code == errno.EPERM:
            raise PermissionError(
                code, "mount(2) is not permitted; in a container, start it with `--cap-add SYS_ADMIN`", str(mountpoint)
            )
        raise OSError(code, f"mount(2) failed: {os.strerror(code)}", str(mountpoint))
    return fd


def fusermount() -> str:
    path = shutil.which("fusermount3")
    if path is None:
        raise FileNotFoundError(
            errno.ENOENT,
            "`fusermount3` is needed to mount without being root: install the package fuse3, or run as root",
        )
    if not MTAB.exists():
        raise FileNotFoundError(
            errno.ENOENT,
            "without it fusermount3 mounts and cannot unmount: `ln -s /proc/self/mounts /etc/mtab`",
            str(MTAB),
        )
    return path


def user_allow_other() -> bool:
    """May an ordinary user let other users (so containers with their own uids) into the mount?"""
    if not FUSE_CONF.exists():
        return False
    return any(line.split("#")[0].strip() == "user_allow_other" for line in FUSE_CONF.read_text().splitlines())


def _mount_as_user(mountpoint: Path, source: str, read_only: bool, allow_other: bool) -> int:
    os.close(open_device())  # the device's own messages say more than fusermount3's
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    escaped = source.replace("\\", "\\\\").replace(",", "\\,")
    options = ["default_permissions", "nosuid", "nodev", f"fsname={escaped}", "subtype=mount-session"]
    options += ["allow_other"] * allow_other + ["ro"] * read_only
    with ours, theirs:
        done = subprocess.run(
            [fusermount(), "-o", ",".join(options), "--", os.fspath(mountpoint)],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        if done.returncode != 0:
            raise OSError(errno.EPERM, _complaint(done.stderr), str(mountpoint))
        return _receive_descriptor(ours)


def _receive_descriptor(sock: socket.socket) -> int:
    fds = array.array("i")
    _, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_LEN(fds.itemsize))
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: fds.itemsize])
    if not fds:
        raise OSError(errno.EPROTO, "fusermount3 mounted, but handed over no descriptor")
    os.set_inheritable(fds[0], False)
    return fds[0]


def _complaint(stderr: bytes) -> str:
    return stderr.decode(errors="replace").strip().removeprefix("fusermount3: ") or "fusermount3 failed"


def detach(mountpoint: Path, *, lazy: bool = False) -> None:
    """Take the mount off the directory; EBUSY when something still uses it, unless `lazy`."""
    if os.geteuid() == 0:
        if _libc.umount2(os.fsencode(mountpoint), MNT_DETACH if lazy else 0) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"umount2(2) failed: {os.strerror(code)}", str(mountpoint))
        return
    done = subprocess.run(
        [fusermount(), "-u", *["-z"] * lazy, "--", os.fspath(mountpoint)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    if done.returncode != 0:
        complaint = _complaint(done.stderr)
        raise OSError(errno.EBUSY if "busy" in complaint.lower() else errno.EPERM, complaint, str(mountpoint))


def has_ended(fd: int) -> bool:
    """Is the file system behind this /dev/fuse gone: off every directory, in containers too, and nothing of it open?"""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))  # POLLERR: the kernel has ended the connection


def abort(mountpoint: Path, device: str) -> None:
    """End the connection whatever is in flight: through fusectl, or where that is not mounted, as umount(8) -f does it.

    An ordinary user can do neither where fusectl is not mounted: there it ends with the last descriptor of it.
    """
    minor = device.partition(":")[2]
    try:
        (CONNECTIONS / minor / "abort").write_text("1")
    except (FileNotFoundError, PermissionError):
        _libc.umount2(os.fsencode(mountpoint), MNT_FORCE)  # EBUSY says that it is mounted still, not that it is alive
