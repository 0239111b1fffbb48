"""A session's files as tar, and back: a process of its own, because it reads and writes through the mount.

python -m mount.tarball export DIRECTORY > TAR python -m mount.tarball import DIRECTORY < TAR

As root it first makes DIRECTORY its root directory, so that no link in the session, nor one that a container makes
meanwhile, leads anywhere else. Not as root, a check of each path does what can be done. Modes, owners,
hard links, times to the nanosecond and extended attributes are kept; sockets are not. An error ends it with status 1
and one line of JSON on standard error. Only the standard library is imported, and all of it before the change of
root: what is loaded after that would be the session's own, and run as root.
"""

from __future__ import annotations

import bz2  # noqa: F401 - tarfile imports these when it needs them, which is too late
import encodings.utf_8  # noqa: F401
import gzip  # noqa: F401
import json
import lzma  # noqa: F401
import os
import stat
import sys
import tarfile
import zlib  # noqa: F401
from collections.abc import Iterator
from typing import Final

_XATTR: Final = "SCHILY.xattr."  # as GNU tar and bsdtar have it
_BLOCK: Final = 1 << 20


def enter(directory: str) -> None:
    """From here on no code is loaded: not by an import, nor by libc, which looks for a user's name with plug-ins."""
    tarfile.pwd = tarfile.grp = None  # type: ignore[attr-defined]  # as where there are no such modules: ids, no names
    os.chdir(directory)
    if os.geteuid() == 0:
        os.chroot(".")
        sys.meta_path.clear()


def export() -> None:
    """The directory that we are in, parents first, names in order."""
    with tarfile.open(
        fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_BLOCK, errors="surrogateescape"
    ) as tar:
        pending = ["."]
        while pending:
            path = pending.pop()
            if _add(tar, path):
                with os.scandir(path) as entries:
                    names = sorted((entry.name for entry in entries), reverse=True)
                pending.extend(os.path.join(path, name) for name in names)


def _add(tar: tarfile.TarFile, path: str) -> bool:
    """One entry; True for a directory. What is deleted while we are at it is left out."""
    try:
        member = tar.gettarinfo(path)
        if member is None:  # a socket
            return False
        seconds, rest = divmod(os.lstat(path).st_mtime_ns, 10**9)
        member.pax_headers = {"mtime": f"{seconds}.{rest:09d}", **_xattrs(path)}
        if not member.isreg():
            tar.addfile(member)
        else:
            with open(path, "rb") as file:
                member.size = os.fstat(file.fileno()).st_size
                tar.addfile(member, file)
    except FileNotFoundError:
        return False
    return member.isdir()


def _xattrs(path: str) -> dict[str, str]:
    names = os.listxattr(path, follow_symlinks=False)
    return {
        _XATTR + name: os.getxattr(path, name, follow_symlinks=False).decode("utf-8", "surrogateescape")
        for name in names
        if name.startswith("user.")
    }


def extract() -> None:
    """Into the directory that we are in; what is there stays, or is replaced where the names are the same."""
    seen: list[tarfile.TarInfo] = []
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*", bufsize=_BLOCK, errors="surrogateescape") as tar:
        tar.extraction_filter = _as_admitted
        tar.extractall(".", members=_admitted(tar, seen), numeric_owner=True)
    for member in reversed(seen):
        _finish(member)


def _as_admitted(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo:
    """Python's own filters, which 3.11.2 has not, have nothing left to do."""
    return member


def _admitted(tar: tarfile.TarFile, seen: list[tarfile.TarInfo]) -> Iterator[tarfile.TarInfo]:
    """Each member just before it is extracted, so that the check of its path sees the links made until then."""
    for member in tar:
        if member.isdev() and not member.isfifo():
            raise PermissionError(1, "a device node is not taken into a session", member.name)
        member.name = member.name.lstrip("/")
        if os.geteuid() != 0:
            _check_inside(member.name)
            if member.islnk():
                _check_inside(member.linkname)
        if member.name not in ("", "."):
            seen.append(member)
            yield member


def _check_inside(path: str) -> None:
    """Not root, so not in a root directory of our own: nothing may be written through `..` or a link out of here."""
    inside = os.path.realpath(".")
    if os.path.commonpath([inside, os.path.realpath(path)]) != inside:
        raise PermissionError(1, "what leads out of the session is not taken", path)


def _finish(member: tarfile.TarInfo) -> None:
    """What tarfile leaves out: xattrs, and times to the nanosecond. Children come before their directories."""
    headers, path = member.pax_headers, member.name.lstrip("/")
    for header, value in headers.items():
        if header.startswith(_XATTR + "user.") and not member.issym():
            name = header.removeprefix(_XATTR)
            os.setxattr(path, name, value.encode("utf-8", "surrogateescape"), follow_symlinks=False)
    seconds, _, fraction = str(headers.get("mtime", member.mtime)).partition(".")
    stamp = int(seconds) * 10**9 + int(fraction.ljust(9, "0")[:9] or 0)
    if not member.islnk() and stat.S_IFMT(os.lstat(path).st_mode) != stat.S_IFLNK:
        os.utime(path, ns=(stamp, stamp))


def main() -> int:
    work, directory = sys.argv[1:]
    try:
        enter(directory)
        {"export": export, "import": extract}[work]()
        sys.stdout.flush()
    except BrokenPipeError:
        return 1  # who read it is gone
    except Exception as e:  # tarfile lets much out of an archive that is none: KeyError, EOFError, zlib.error
        code = e.errno if isinstance(e, OSError) else 22
        text = e.strerror if isinstance(e, OSError) and e.strerror else f"not a tar archive: {e}"
        json.dump({"errno": code, "message": text, "path": getattr(e, "filename", None)}, sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
