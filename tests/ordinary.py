"""An ordinary user, for tests that run as root: the user nobody, for whom FUSE is open as on a desktop."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path

from mount.mountpoint import DEVICE, FUSE_CONF

READER = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")
"""For `become`: the interpreter may be in root's home, so this user may search and read what root can; nothing else of
root's."""


def become(user: pwd.struct_passwd) -> list[str]:
    """The beginning of a command that shall run as the user."""
    return [shutil.which("setpriv") or "setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


@contextlib.contextmanager
def edited(file: Path, text: str) -> Iterator[None]:
    """Another text in a file of the machine, for as long as the block lasts."""
    before = file.read_bytes() if file.exists() else None
    file.write_text(text)
    try:
        yield
    finally:
        if before is None:
            file.unlink()
        else:
            file.write_bytes(before)


@contextlib.contextmanager
def fuse_for_all() -> Iterator[None]:
    """/dev/fuse as distributions have it, and mounts that others may use."""
    mode = os.stat(DEVICE).st_mode
    os.chmod(DEVICE, 0o666)
    try:
        with edited(FUSE_CONF, "user_allow_other\n"):
            yield
    finally:
        os.chmod(DEVICE, mode)
