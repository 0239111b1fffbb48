"""What POSIX allows: each function checks one request against the namespace and gives the record that carries it out.

It raises the OSError that rename(2), unlink(2) ... would raise, or returns None where the request is allowed and
changes nothing. Who may do it is the kernel's business (`default_permissions`); callers of the Python API are trusted.
"""

from __future__ import annotations

import errno
import os
import stat

import msgspec

from vfs.errors import error
from vfs.inode import Inode
from vfs.namespace import ROOT, Namespace
from vfs.records import TIME_MAX, TIME_MIN, Link, Make, Removexattr, Rename, Setattr, Setxattr, Unlink

__all__ = [
    "NAME_MAX",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "Changes",
    "check_name",
    "child",
    "link",
    "make",
    "mode_after_write",
    "removexattr",
    "rename",
    "rmdir",
    "setattr",
    "setxattr",
    "unlink",
]

NAME_MAX = 255
SYMLINK_MAX = os.pathconf("/", "PC_PATH_MAX") - 1
XATTR_NAME_MAX = 255  # linux/limits.h
XATTR_SIZE_MAX = 65536
RENAME_NOREPLACE = 1  # linux/fs.h
RENAME_EXCHANGE = 2

SETID = stat.S_ISUID | stat.S_ISGID
_KINDS = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK}


class Changes(msgspec.Struct, kw_only=True):
    """What a setattr sets; None: leave as it is. Times in nanoseconds, `size` in bytes."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


def check_name(name: bytes) -> None:
    """A name that an entry may have: 1 to 255 bytes of anything but `/` and NUL, and not `.` or `..`."""
    if len(name) > NAME_MAX:
        raise error(errno.ENAMETOOLONG, name)
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise error(errno.EINVAL, name)


def child(namespace: Namespace, parent: int, name: bytes) -> Inode:
    """The inode that `name` means in the directory `parent`; `.` and `..` are understood."""
    directory = namespace.directory(parent)
    assert directory.entries is not None
    dentry = directory.entries.get(name)
    if dentry is not None:
        return dentry.inode
    if name == b".":
        return directory
    if name == b"..":
        return directory.dentries[0].parent if directory.dentries else directory
    if len(name) > NAME_MAX:
        raise error(errno.ENAMETOOLONG, name)
    raise error(errno.ENOENT, name)


def _vacant(namespace: Namespace, parent: int, name: bytes) -> Inode:
    """The directory, if a new entry `name` may be made in it."""
    directory = namespace.directory(parent)
    assert directory.entries is not None
    if name in directory.entries:
        raise error(errno.EEXIST, name)
    check_name(name)
    if directory.nlink == 0:
        raise error(errno.ENOENT, name)
    return directory


def make(
    namespace: Namespace,
    parent: int,
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    time_ns: int,
    *,
    pid: int = 0,
    rdev: int = 0,
    target: bytes = b"",
) -> Make:
    """A new inode; in a set-group-id directory it takes the directory's group (inode_init_owner in the kernel)."""
    directory = _vacant(namespace, parent, name)
    if stat.S_IFMT(mode) not in _KINDS:
        raise error(errno.EINVAL, name)
    if stat.S_ISLNK(mode):
        if not target or b"\0" in target:
            raise error(errno.ENOENT if not target else errno.EINVAL, name)
        if len(target) > SYMLINK_MAX:
            raise error(errno.ENAMETOOLONG, name)
    if directory.mode & stat.S_ISGID:
        gid = directory.gid
        if stat.S_ISDIR(mode):
            mode |= stat.S_ISGID
    return Make(parent, name, namespace.next_ino, mode, uid, gid, time_ns, pid, rdev, target)


def link(
    namespace: Namespace, ino: int, parent: int, name: bytes, time_ns: int, *, pid: int = 0, unnamed: bool = False
) -> Link:
    """link(2); `unnamed`: also of a file that has no name, as linkat(2) of an O_TMPFILE."""
    inode = namespace.inode(ino)
    _vacant(namespace, parent, name)
    if inode.is_dir:
        raise error(errno.EPERM, name)
    if inode.nlink == 0 and not unnamed:
        raise error(errno.ENOENT, name)
    return Link(ino, parent, name, time_ns, pid)


def unlink(namespace: Namespace, parent: int, name: bytes, time_ns: int, *, pid: int = 0) -> Unlink:
    if name in (b".", b".."):
        raise error(errno.EISDIR, name)
    if child(namespace, parent, name).is_dir:
        raise error(errno.EISDIR, name)
    return Unlink(parent, name, time_ns, pid)


def rmdir(namespace: Namespace, parent: int, name: bytes, time_ns: int, *, pid: int = 0) -> Unlink:
    if name == b".":
        raise error(errno.EINVAL, name)
    if name == b"..":
        raise error(errno.ENOTEMPTY, name)
    inode = child(namespace, parent, name)
    if inode.entries is None:
        raise error(errno.ENOTDIR, name)
    if inode.entries:
        raise error(errno.ENOTEMPTY, name)
    return Unlink(parent, name, time_ns, pid)


def rename(
    namespace: Namespace,
    old_parent: int,
    old_name: bytes,
    new_parent: int,
    new_name: bytes,
    flags: int,
    time_ns: int,
    *,
    pid: int = 0,
) -> Rename | None:
    """rename(2) and renameat2(2); None where both names mean the same inode, which is allowed and does nothing."""
    if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise error(errno.EINVAL, new_name)
    if {old_name, new_name} & {b".", b".."}:
        raise error(errno.EBUSY, old_name)
    inode = child(namespace, old_parent, old_name)
    directory = namespace.directory(new_parent)
    assert directory.entries is not None
    check_name(new_name)
    if directory.nlink == 0:
        raise error(errno.ENOENT, new_name)
    dentry = directory.entries.get(new_name)
    if dentry is None and flags == RENAME_EXCHANGE:
        raise error(errno.ENOENT, new_name)
    if dentry is not None and flags == RENAME_NOREPLACE:
        raise error(errno.EEXIST, new_name)
    if inode.is_dir and _is_below(directory, inode):
        raise error(errno.EINVAL, new_name)
    if dentry is not None:
        exchange = flags == RENAME_EXCHANGE
        if dentry.inode.is_dir and _is_below(namespace.directory(old_parent), dentry.inode):
            raise error(errno.EINVAL if exchange else errno.ENOTEMPTY, new_name)
        if dentry.inode is inode:
            return None
        if not exchange:
            _may_replace(inode, dentry.inode, new_name)
    return Rename(old_parent, old_name, new_parent, new_name, time_ns, flags == RENAME_EXCHANGE, pid)


def _may_replace(inode: Inode, other: Inode, new_name: bytes) -> None:
    if other.entries is None:
        if inode.is_dir:
            raise error(errno.ENOTDIR, new_name)
        return
    if not inode.is_dir:
        raise error(errno.EISDIR, new_name)
    if other.entries:
        raise error(errno.ENOTEMPTY, new_name)


def _is_below(directory: Inode, ancestor: Inode) -> bool:
    """Whether `directory` is `ancestor` or somewhere below it."""
    while directory is not ancestor:
        if directory.ino == ROOT or not directory.dentries:
            return False
        directory = directory.dentries[0].parent
    return True


def mode_after_write(inode: Inode, uid: int) -> int | None:
    """What is left of the mode when someone without CAP_FSETID writes or truncates, or None: all of it.

    The kernel does it by a setattr of its own, except for O_TRUNC that comes with the open (fuse_do_setattr).
    """
    if uid == 0 or not inode.mode & SETID:
        return None
    return _without_setid(inode.mode)


def _without_setid(mode: int) -> int:
    """Set-group-id without group execution is something else (mandatory locking), and stays."""
    mode = stat.S_IMODE(mode) & ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


def setattr(inode: Inode, changes: Changes, time_ns: int, *, pid: int = 0) -> Setattr:
    """chmod, chown, truncate and utimens in one. Setting the size sets mtime; either settles the file.

    A change of owner of a file takes its set-id bits away, unless the mode is set with it (chown(2)).
    """
    mode = changes.mode
    if mode is not None:
        mode &= 0o7777
    elif (changes.uid is not None or changes.gid is not None) and not inode.is_dir and inode.mode & SETID:
        mode = _without_setid(inode.mode)
    size, mtime_ns = changes.size, changes.mtime_ns
    if size is not None:
        if inode.is_dir:
            raise error(errno.EISDIR, f"inode {inode.ino}")
        if not inode.is_file or size < 0:
            raise error(errno.EINVAL, f"inode {inode.ino}")
        if mtime_ns is None:
            mtime_ns = time_ns
    elif mtime_ns is not None and inode.is_file:
        size = inode.size
    atime_ns = None if changes.atime_ns is None else _kept(changes.atime_ns)
    mtime_ns = None if mtime_ns is None else _kept(mtime_ns)
    return Setattr(inode.ino, time_ns, mode, changes.uid, changes.gid, size, atime_ns, mtime_ns, pid)


def _kept(time_ns: int) -> int:
    """The nearest time that a record can hold."""
    return max(TIME_MIN, min(time_ns, TIME_MAX))


def setxattr(inode: Inode, name: bytes, value: bytes, time_ns: int, *, pid: int = 0) -> Setxattr:
    """The namespaces `user.`, `trusted.` and `security.`; ACLs (`system.`) are not supported: ENOTSUP."""
    if len(name) > XATTR_NAME_MAX:
        raise error(errno.ERANGE, name)
    if len(value) > XATTR_SIZE_MAX:
        raise error(errno.E2BIG, name)
    if not name.startswith((b"user.", b"trusted.", b"security.")):
        raise error(errno.ENOTSUP, name)
    if name.count(b".") == 1 and name.endswith(b"."):
        raise error(errno.EINVAL, name)
    held = sum(len(n) + len(v) for n, v in inode.xattrs.items() if n != name) if inode.xattrs else 0
    if held + len(name) + len(value) > 4 * XATTR_SIZE_MAX:
        raise error(errno.ENOSPC, name)
    return Setxattr(inode.ino, name, value, time_ns, pid)


def removexattr(inode: Inode, name: bytes, time_ns: int, *, pid: int = 0) -> Removexattr:
    if not inode.xattrs or name not in inode.xattrs:
        raise error(errno.ENODATA, name)
    return Removexattr(inode.ino, name, time_ns, pid)
