"""A persistence in files of a directory, for sessions in other processes: which directory, its route's options say."""

from __future__ import annotations

from pathlib import Path

from vfs.callbacks import Context


def _file(scope: str, path: str, context: Context) -> Path:
    return Path(context["options"]["directory"]) / scope / path.strip("/").replace("/", "%")


class Directory:
    def on_list(self, scope: str, context: Context) -> list[str]:
        directory = _file(scope, "", context)
        return [file.name.replace("%", "/") for file in directory.iterdir()] if directory.exists() else []

    def on_read(self, scope: str, path: str, context: Context) -> bytes:
        return _file(scope, path, context).read_bytes()

    def on_write(self, scope: str, path: str, content: bytes, context: Context) -> None:
        file = _file(scope, path, context)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    def on_delete(self, scope: str, path: str, context: Context) -> None:
        _file(scope, path, context).unlink()


class Shown:
    """To be read and nothing else."""

    def on_list(self, scope: object, context: Context) -> list[str]:
        return ["there"]

    def on_read(self, scope: object, path: str, context: Context) -> bytes:
        return b"before"
