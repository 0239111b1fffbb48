"""Who a worker is: the user that it runs as, and the environment that it sees. Taken on once, before the session is
opened.

A worker handles what a tenant writes, with libraries written in C; so it gives up what it does not need. The
descriptors that it was handed (/dev/fuse, its channel) keep working. It cannot come back: real, effective and saved
ids change, and `no_new_privs` closes set-id programs too. Its memory (credentials) cannot be read by others of the
same user.
"""

from __future__ import annotations

import ctypes
import fnmatch
import os
from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["assume", "take_environment"]

PR_SET_DUMPABLE: Final = 4
PR_SET_NO_NEW_PRIVS: Final = 38
HARMLESS: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH", "PYTHONHASHSEED")
"""Variables that every worker may see."""
_SERVICE: Final = ("HOME", "USER", "LOGNAME", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_*")
_OWN: Final = "MOUNT_SESSION_*"

_libc = ctypes.CDLL(None, use_errno=True)


def take_environment(patterns: Iterable[str]) -> dict[str, str]:
    """Take what may be a secret out of this process's environment, before it starts another: a forked worker's
    memory holds all that its parent was started with. The result is what matches the patterns."""
    taken = {name: value for name, value in os.environ.items() if _matches(name, patterns)}
    for name in list(os.environ):
        if not _matches(name, (*HARMLESS, *_SERVICE, _OWN)):
            del os.environ[name]
    return taken


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def assume(uid: int | None, environment: Mapping[str, str] | None) -> None:
    """Become `uid` (and the group of that number), with no other groups; None: stay who we are. `environment` takes
    the place of all variables but the harmless ones; None: they stay."""
    if environment is not None:
        kept = {name: value for name, value in os.environ.items() if _matches(name, (*HARMLESS, _OWN))}
        os.environ.clear()
        os.environ.update({**kept, **environment})
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    if uid is not None and uid != os.geteuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if uid is not None:
        _prctl(PR_SET_DUMPABLE, 0)
