"""Callbacks that take their time, for a daemon: `--callbacks tests.daemon.slow:STORE`. The scope is a file; until it is
there nothing is written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

FILES: dict[str, bytes] = {}


class Slow:
    def on_write(self, scope: Any, path: str, data: bytes, context: Any) -> None:
        while not Path(scope).exists():
            time.sleep(0.02)
        time.sleep(0.3)
        FILES[path] = bytes(data)

    def on_read(self, scope: Any, path: str, context: Any) -> bytes:
        return FILES[path]

    def on_list(self, scope: Any, context: Any) -> list[str]:
        return list(FILES)

    def on_delete(self, scope: Any, path: str, context: Any) -> None:
        del FILES[path]


STORE = Slow()
