"""The directories of a session on its host: where it is mounted, and where its state is. All of this blocks."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from mount import mountpoint

__all__ = ["prepare", "remove_empty", "remove_state"]


def prepare(mounted_on: Path, state: Path, uid: int | None) -> None:
    """As the mount and the worker, which may have a user of its own, need them."""
    _make_mountpoint(mounted_on)
    state.mkdir(mode=0o700, exist_ok=True)
    if uid is not None:
        _give(state, uid)


def _make_mountpoint(path: Path) -> None:
    """ROOT/<session>, a directory of ours; NotADirectoryError for a link or a file that someone put there."""
    if mountpoint.mounted_on(path) is not None:
        return
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o755)
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "is not a directory; remove it", str(path))


def _give(directory: Path, uid: int) -> None:
    """The state directory and all in it belong to the worker's user, if they do not yet."""
    if os.lstat(directory).st_uid == uid:
        return
    for path in _walk(directory):
        os.chown(path, uid, uid, follow_symlinks=False)
    os.chown(directory, uid, uid, follow_symlinks=False)


def _walk(directory: Path) -> Iterable[str]:
    for parent, directories, files in os.walk(directory, followlinks=False):
        yield from (os.path.join(parent, name) for name in (*directories, *files))


def remove_empty(path: Path) -> None:
    """Only an empty one, which is what is left when nothing is mounted on it."""
    try:
        path.rmdir()
    except OSError as e:
        if e.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY):
            raise


def remove_state(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
