"""`mount-session policy`: change what a session is allowed."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from mount.client import Client
from mount.commandline import DaemonCommand, json_option, show, state_option
from mount.policyflags import policy_flags, policy_of
from vfs.policy import UNLIMITED


@click.command(cls=DaemonCommand)
@click.argument("session")
@click.option("--unset", multiple=True, metavar="FIELD", help="As if never set, such as quota_bytes.")
@policy_flags
@state_option
@json_option
def command(session: str, unset: tuple[str, ...], daemon: Client, as_json: bool, **flags: Any) -> None:
    """Change SESSION's policy, without a remount: it is in force when this returns. Shows the whole policy."""
    fields = policy_of(flags) | {field: msgspec.structs.asdict(UNLIMITED).get(field) for field in unset}
    status = daemon.policy(session, fields) if fields else daemon.status(session)
    show(status.policy, as_json)
