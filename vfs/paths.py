"""Paths: text or bytes from a program that embeds a session, to a directory and a name in it.

Relative to the session's root; a leading `/` means the same, empty segments and `.` nothing. `..` and NUL are EINVAL.
Symlinks are followed as in a file system whose root is the session: what leads out of it is EXDEV, as for openat2(2)
with RESOLVE_BENEATH. Every step is a lookup of the session, so what it hides is not there. `files` calls this.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple, TypeAlias

from vfs.errors import error
from vfs.inode import Inode
from vfs.namespace import ROOT
from vfs.tree import Caller, Tree

__all__ = ["Name", "Spot", "find", "parts", "shown"]

Name: TypeAlias = str | bytes

SYMLINKS = 40  # MAXSYMLINKS, linux/namei.h


class Spot(NamedTuple):
    """Where a path leads: an entry of a directory, and the inode there, if there is one. `name` b"": a directory that
    was reached other than by its name."""

    parent: int
    name: bytes
    inode: Inode | None


def parts(path: Name) -> list[bytes]:
    """The names that a path is made of; EINVAL if one cannot be in it."""
    try:
        raw = path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path
    except UnicodeEncodeError:
        raise error(errno.EILSEQ, repr(path)) from None
    names = [name for name in raw.split(b"/") if name not in (b"", b".")]
    if b".." in names or b"\0" in raw:
        raise error(errno.EINVAL, path, "a path with '..' or NUL")
    return names


def shown(path: Name) -> str:
    """The path as a FileRef has it: relative, without what means nothing."""
    return os.fsdecode(b"/".join(parts(path)))


def find(tree: Tree, path: Name, caller: Caller, *, follow: bool = True, make: bool = False) -> Spot:
    """Where the path leads. `follow`: also a symlink at its end; `make`: directories on the way that are missing."""
    at, ahead, links = ROOT, parts(path)[::-1], 0
    while ahead:
        name = ahead.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            if at == ROOT:
                raise error(errno.EXDEV, path, "a symlink leads out of the session")
            at = tree.lookup(at, b"..").ino
            continue
        try:
            inode = tree.lookup(at, name)
        except FileNotFoundError:
            if not ahead:
                return Spot(at, name, None)
            if not make:
                raise
            inode = tree.mkdir(at, name, 0o755, caller)
        if inode.is_symlink and (follow or ahead):
            links += 1
            if links > SYMLINKS:
                raise error(errno.ELOOP, path)
            if inode.target.startswith(b"/"):
                raise error(errno.EXDEV, path, "a symlink leads out of the session")
            ahead.extend(reversed(inode.target.split(b"/")))
        elif not ahead:
            return Spot(at, name, inode)
        else:
            at = inode.ino
    return Spot(at, b"", tree.getattr(at))
