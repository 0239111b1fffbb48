"""A persistence in memory: what `compare.py` has beside local storage, to see what write-back costs the requests.

`mount-session up ... --callbacks bench.memory:Memory`
"""

from __future__ import annotations

from typing import Any, BinaryIO

__all__ = ["Memory"]


class Memory:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def on_list(self, scope: Any, context: Any) -> list[str]:
        return list(self.files)

    def on_read(self, scope: Any, path: str, context: Any) -> bytes:
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def on_read_range(self, scope: Any, path: str, offset: int, size: int, context: Any) -> bytes:
        return self.on_read(scope, path, context)[offset : offset + size]

    def on_write(self, scope: Any, path: str, content: bytes, context: Any) -> None:
        self.files[path] = content

    def on_write_file(self, scope: Any, path: str, file: BinaryIO, context: Any) -> None:
        self.files[path] = file.read()

    def on_delete(self, scope: Any, path: str, context: Any) -> None:
        self.files.pop(path, None)
