"""Who a worker is: the user that it runs as, and the environment that it sees. Taken on once, before the session is
opened.

A worker handles what a tenant writes, with libraries written in C; so it gives up what it does not need. The
descriptors that it was handed (/dev/fuse, its channel) keep working. It cannot come back: real, effective and saved
ids change, and `no_new_privs` closes set-id programs too. Its memory (credentials) cannot be read by others of the
same user.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Final

__all__ = ["HARMLESS", "assume"]

PR_SET_DUMPABLE: Final = 4
PR_SET_NO_NEW_PRIVS: Final = 38
HARMLESS: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH", "PYTHONHASHSEED")
"""Variables that every worker may see."""

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def assume(uid: int | None, environment: Mapping[str, str] | None) -> None:
    """Become `uid` (and the group of that number), with no other groups; None: stay who we are. `environment` takes
    the place of all variables but the harmless ones; None: they stay."""
    if environment is not None:
        kept = {name: os.environ[name] for name in HARMLESS if name in os.environ}
        os.environ.clear()
        os.environ.update({**kept, **environment})
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    if uid is not None and uid != os.geteuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if uid is not None:
        _prctl(PR_SET_DUMPABLE, 0)
