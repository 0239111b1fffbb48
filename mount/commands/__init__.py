"""The subcommands of `mount-session`, one module each: its `command` is found by `mount.cli` when it is asked for."""
