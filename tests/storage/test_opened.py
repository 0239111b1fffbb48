"""An open session is a Storage: the whole contract, on a session without and with a persistence."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from tests.vfs.shelf import BigShelf, routes
from vfs.session import Session
from vfs.storage.base import Storage
from vfs.storage.opened import OpenSession


@pytest.mark.parametrize("persisted", [False, True])
async def test_an_open_session_does_all_that_a_storage_does(tmp_path: Path, persisted: bool) -> None:
    shelf = BigShelf()
    options: dict[str, Any] = {"routes": routes(shelf)} if persisted else {}
    async with Session.open("s", tmp_path, **options) as session:
        storage: Storage = await OpenSession(session).init("s")
        assert isinstance(storage, Storage)
        ref = await storage.write("d/f.txt", b"one")
        assert (ref.path, ref.size, ref.content_type) == ("d/f.txt", 3, "text/plain")
        assert await storage.read("d/f.txt") == b"one"
        with pytest.raises(FileNotFoundError):
            await storage.read("nothing")
        assert [await storage.exists(path) for path in ("d/f.txt", "nothing")] == [True, False]
        await storage.delete("nothing")
        landed = await storage.sync_from_remote([{"filename": "b"}], lambda descriptor: b"two")
        assert [ref.path for ref in landed] == ["b"]
        assert [ref.path async for ref in storage.list()] == ["b", "d/f.txt"]
        brought = await storage.sync_to_remote()
        assert [(ref.path, ref.version) for ref in brought] == (
            [(path, shelf.files["/" + path][1]) for path in ("b", "d/f.txt")] if persisted else []
        )
        assert await storage.sync_to_remote() == []
        await storage.cleanup()
        assert [ref async for ref in storage.list()] == []
        assert shelf.files == {}
        with pytest.raises(OSError, match="open") as e:
            await storage.init("another")
        assert e.value.errno == errno.EINVAL


async def test_where_it_is_mounted_is_its_local_path(tmp_path: Path) -> None:
    async with Session.open("s", tmp_path) as session:
        assert await OpenSession(session, mountpoint=tmp_path).local_path() == tmp_path
        with pytest.raises(OSError, match="not mounted") as e:
            await OpenSession(session).local_path()
        assert e.value.errno == errno.ENOTSUP


async def test_what_could_not_be_brought_there_is_an_error_with_its_reason(tmp_path: Path) -> None:
    shelf = BigShelf()

    def refuse(operation: str, path: str) -> None:
        if operation == "write":
            raise PermissionError(errno.EACCES, "not yours")

    shelf.fault = refuse
    async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
        await session.files.write("f", b"1")
        with pytest.raises(OSError, match="not yours"):
            await OpenSession(session).sync_to_remote()
        shelf.fault = lambda operation, path: None
