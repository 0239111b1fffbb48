"""The types of flags that click has not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

__all__ = ["DIRECTORY"]


class _Directory(click.Path):
    """A directory, there or not. An empty one, which scripts give by mistake, would be the current directory."""

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; name a directory", param, ctx)
        return super().convert(value, param, ctx)


DIRECTORY = _Directory(path_type=Path, readable=False)  # who may not list the state may pass through it, to the socket
