"""The command `mount-session`: a click group whose subcommands are the modules of `mount.commands`.

A subcommand is imported when it is named, so `up` does not wait for what `serve` needs. Errors that a user can mend
(`OSError`, `ValueError`, or a group of nothing else) end a command with their messages and status 1; a wrong command
line ends it with status 2.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import click

from mount import commands
from vfs.errors import leaves


class Subcommands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"mount.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (OSError, ValueError) as error:
            raise click.ClickException(say(error)) from error
        except BaseExceptionGroup as group:
            raise _outcome(group) from None


def _outcome(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What nurseries put together: every line of it, if a user can mend all of it; else the defect, or the group."""
    failures = leaves(group)
    told = [say(e) for e in failures if isinstance(e, OSError | ValueError)]
    if len(told) == len(failures):
        return click.ClickException("\n".join(dict.fromkeys(told)))
    return failures[0] if len(failures) == 1 else group


def say(error: OSError | ValueError) -> str:
    """One line for a person: what it is about, what is wrong, what to do."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error)


@click.group(cls=Subcommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mount-session")
def main() -> None:
    """A real directory for every agent session.

    What programs and containers write there is kept, whatever dies, and reaches the session's storage.
    """


if __name__ == "__main__":
    main()
