"""The flags of a policy, for the commands that take one: one flag a field, so that none can be forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

__all__ = ["policy_flags", "policy_of"]

T = TypeVar("T", bound=Callable[..., Any])

_ID: Final = click.IntRange(0, 2**32 - 2)  # the last one is "leave as it is" to chown(2)
_FLAGS: Final = (
    click.option("--uid", type=_ID, help="Everything in it belongs to this user."),
    click.option("--gid", type=_ID, help="Everything in it belongs to this group."),
    click.option("--umask", help="Permission bits that nothing new gets, such as 027."),
    click.option("--read-only/--read-write", default=None, help="Whether nothing can be changed (EROFS)."),
    click.option("--hidden", multiple=True, metavar="GLOB", help="Names that do not exist in it, such as .env."),
    click.option("--local-only", multiple=True, metavar="GLOB", help="What is never persisted, such as node_modules."),
    click.option("--quota-bytes", metavar="SIZE", help="EDQUOT beyond it, such as 10GiB."),
    click.option("--quota-inodes", type=click.IntRange(0), help="EDQUOT beyond that many files and directories."),
    click.option("--soft-bytes", metavar="SIZE", help="An event beyond it."),
    click.option("--soft-inodes", type=click.IntRange(0), help="An event beyond it."),
    click.option("--max-file-bytes", metavar="SIZE", help="EFBIG beyond it, for one file."),
    click.option("--idle-seconds", type=float, help="Its worker goes after so long without requests."),
    click.option("--durability", type=click.Choice(["local", "remote"]), help="What fsync promises."),
    click.option("--cache-bytes", metavar="SIZE", help="Kept on this host of what the storage has."),
    click.option("--cache-wait", type=float, help="Seconds that writers wait in a full cache; then ENOSPC."),
    click.option("--refresh-seconds", type=float, help="Between two looks at what others changed; 0: when asked."),
)


def policy_flags(command: T) -> T:
    for flag in reversed(_FLAGS):
        command = flag(command)
    return command


def policy_of(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, as `vfs.policy.parse` takes it."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in flags.items()
        if value is not None and value != ()
    }
