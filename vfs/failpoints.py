"""Failure points: the places where a test kills a process of ours, by name.

`reach(name)` costs one comparison when nothing is armed. Tests arm a point through the environment variable
MOUNT_SESSION_FAILPOINT=`name[:count]`: the process kills itself (SIGKILL, or MOUNT_SESSION_FAILPOINT_SIGNAL) when it
reaches the point for the count-th time (default 1). Names are listed here and nowhere else; an unknown name is refused
at start.

A worker that is killed gets a successor with the same environment. MOUNT_SESSION_FAILPOINT_MARK names a file that the
first to die makes: where it exists, nobody dies any more, and a test sees that the point was reached.
"""

from __future__ import annotations

import os
import signal

__all__ = ["POINTS", "reach"]

POINTS = frozenset(
    {
        "journal.before-record",
        "journal.after-record",
        "record.applied",
        "answer.sent",
        "takeover.recalled",
        "takeover.matched",
        "image.before-rename",
        "image.after-rename",
        "recovery.before-end",
        "upload.before-answer",
        "upload.before-record",
        "upload.after-record",
        "move.before-answer",
        "move.before-record",
        "delete.before-record",
        "batch.before-answer",
        "batch.before-record",
        "s3.delete.before",
        "s3.delete.done",
        "s3.image.before-save",
        "s3.image.saved",
        "s3.lease.before-renew",
        "s3.lease.renewed",
        "s3.many.one-written",
        "s3.move.before-copy",
        "s3.move.copied",
        "s3.move.deleted",
        "s3.multipart.before-complete",
        "s3.multipart.completed",
        "s3.multipart.created",
        "s3.write.before",
        "s3.write.done",
    }
)

_armed, _, _count = os.environ.get("MOUNT_SESSION_FAILPOINT", "").partition(":")
_left = int(_count or 1)
_signal = signal.Signals[os.environ.get("MOUNT_SESSION_FAILPOINT_SIGNAL", "SIGKILL")]
_mark = os.environ.get("MOUNT_SESSION_FAILPOINT_MARK")
if _armed and _armed not in POINTS:
    raise ValueError(f"MOUNT_SESSION_FAILPOINT={_armed!r} is not one of {sorted(POINTS)}")


def reach(name: str) -> None:
    """Die here if this point is armed."""
    if _armed and name == _armed:
        _die()


def _die() -> None:
    global _left
    _left -= 1
    if _left <= 0 and _first():
        os.kill(os.getpid(), _signal)


def _first() -> bool:
    if _mark is None:
        return True
    try:
        os.close(os.open(_mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True
