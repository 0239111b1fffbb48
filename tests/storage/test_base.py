"""Any Storage as a persistence, as write-back and hydration call it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Self

import pytest

from vfs.fileref import FileRef, build_file_ref
from vfs.persistence import Persistence
from vfs.storage.base import Fetch, Storage, StoragePersistence, as_persistence, land
from vfs.storage.local import LocalStorage


class Shelf:
    """The least that a backend of a user's own can be."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.closed = False

    async def init(self, session_id: str, **options: Any) -> Self:
        return self

    async def write(self, path: str, content: bytes) -> FileRef:
        self.files[path] = content
        return build_file_ref(path, content)

    async def read(self, path: str) -> bytes:
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(2, "no such file", path) from None

    async def exists(self, path: str) -> bool:
        return path in self.files

    async def delete(self, path: str) -> None:
        self.files.pop(path, None)

    async def list(self) -> AsyncIterator[FileRef]:
        for path, content in self.files.items():
            yield build_file_ref(path, content)

    async def local_path(self) -> Path:
        raise OSError(95, "no local path")

    async def sync_to_remote(self) -> Any:
        return []

    async def sync_from_remote(self, descriptors: Iterable[Any], fetch: Fetch) -> Any:
        return await land(self.write, descriptors, fetch)

    async def cleanup(self) -> None:
        self.files.clear()

    async def aclose(self) -> None:
        self.closed = True


async def test_a_backend_of_ones_own_serves_a_session() -> None:
    shelf = Shelf()
    assert isinstance(shelf, Storage)
    persistence = Persistence(as_persistence(shelf), owned=True)
    assert persistence.can == {"on_list", "on_read", "on_write", "on_delete"}
    ref = await persistence.write("d/f.md", b"x", {"if_version": None})
    assert (ref.path, ref.content_type) == ("d/f.md", "text/markdown")
    assert shelf.files == {"d/f.md": b"x"}
    assert [one.path for one in await persistence.list()] == ["d/f.md"]
    assert await persistence.read("d/f.md") == b"x"
    await persistence.delete("d/f.md")
    with pytest.raises(FileNotFoundError):
        await persistence.read("d/f.md")
    await persistence.aclose()
    assert shelf.closed


async def test_our_own_backends_are_persistences_with_everything(tmp_path: Path) -> None:
    local = await LocalStorage(base_path=tmp_path).init("work")
    assert as_persistence(local) is local
    persistence = Persistence(local)
    assert persistence.can >= {"on_stat", "on_move", "on_read_range", "on_write_file", "on_load_image", "on_save_image"}
    ref = await persistence.write("a", b"12345", {"if_version": None, "mode": 0o640})
    moved = await persistence.move("a", "b/c", {"if_version": ref.version})
    assert (moved.path, moved.mode) == ("b/c", 0o640)
    assert await persistence.read_range("b/c", 1, 2) == b"23"
    assert isinstance(as_persistence(Shelf()), StoragePersistence)


async def test_files_made_elsewhere_are_fetched_by_sync_and_async_functions() -> None:
    shelf = Shelf()
    refs = await shelf.sync_from_remote([{"path": "a", "id": 1}], lambda descriptor: str(descriptor["id"]).encode())
    assert [ref.path for ref in refs] == ["a"]
    assert shelf.files == {"a": b"1"}
