from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from vfs.errors import Conflict
from vfs.storage.base import Storage
from vfs.storage.local import LocalStorage


@pytest.fixture
async def local(tmp_path: Path) -> LocalStorage:
    return await LocalStorage(base_path=tmp_path).init("work")


async def test_a_session_has_a_directory_of_its_own_that_cleanup_removes(tmp_path: Path) -> None:
    local = await LocalStorage(base_path=tmp_path, prefix="conjure").init("Xt7kB9mP2Qw5nL3j")
    assert isinstance(local, Storage)
    assert await local.local_path() == tmp_path / "conjure_Xt7kB9mP2Qw5nL3j"
    await local.write("a/b.txt", b"x")
    assert (tmp_path / "conjure_Xt7kB9mP2Qw5nL3j/a/b.txt").read_bytes() == b"x"
    await local.cleanup()
    assert os.listdir(tmp_path) == []


async def test_files_are_kept_where_the_options_say_so(tmp_path: Path) -> None:
    local = await LocalStorage(base_path=tmp_path).init("work", cleanup_on_exit=False, prefix="")
    await local.write("a", b"x")
    await local.cleanup()
    assert (tmp_path / "work/a").read_bytes() == b"x"


async def test_written_files_are_listed_read_and_deleted(local: LocalStorage) -> None:
    ref = await local.write("d/report.pdf", b"%PDF")
    assert (ref.path, ref.size, ref.content_type) == ("d/report.pdf", 4, "application/pdf")
    assert ref.checksum is not None and len(ref.checksum) == 64
    assert [one.path async for one in local.list()] == ["d/report.pdf"]
    assert await local.exists("d/report.pdf") and await local.read("d/report.pdf") == b"%PDF"
    await local.delete("d/report.pdf")
    await local.delete("d/report.pdf")
    assert not await local.exists("d/report.pdf") and not await local.exists("d")
    assert not (local.directory / "d").exists()
    with pytest.raises(FileNotFoundError):
        await local.read("d/report.pdf")


async def test_names_that_are_not_utf8_work(local: LocalStorage) -> None:
    await local.write("caf\udce9", b"x")
    assert [one.path async for one in local.list()] == ["caf\udce9"]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "", "a//b", "a\0b", ".mount-session/image"])
async def test_no_path_leaves_the_session(local: LocalStorage, path: str) -> None:
    for attempt in (local.write(path, b"x"), local.read(path), local.delete(path)):
        with pytest.raises(OSError) as caught:
            await attempt
        assert caught.value.errno in (1, 22)


async def test_a_symlink_leads_nowhere(local: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(b"s")
    os.symlink(tmp_path / "outside", local.directory / "link")
    os.symlink(tmp_path / "outside/secret", local.directory / "file")
    for attempt in (local.read("link/secret"), local.write("link/new", b"x"), local.read("file")):
        with pytest.raises(OSError):
            await attempt
    assert [one.path async for one in local.list()] == []
    assert sorted(os.listdir(tmp_path / "outside")) == ["secret"]


async def test_a_directory_that_becomes_a_symlink_during_a_write_leads_nowhere(
    local: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside").mkdir()
    await local.write("d/f", b"x")

    def swap(*arguments: object) -> None:
        (local.directory / "d").rename(local.directory / "away")
        (local.directory / "d").symlink_to(tmp_path / "outside")

    monkeypatch.setattr(local, "_check", swap)
    with pytest.raises(OSError, match="symlink"):
        await local.write("d/f", b"y")
    assert os.listdir(tmp_path / "outside") == []


async def test_exists_raises_where_it_cannot_tell(local: LocalStorage) -> None:
    os.symlink("loop", local.directory / "loop")
    with pytest.raises(OSError):
        await local.exists("loop/f")


async def test_conditional_writes_find_what_others_did(local: LocalStorage) -> None:
    first = await local.on_write(None, "/f", b"1", {"if_version": None, "mode": 0o600, "mtime_ns": 5})
    assert (first.mode, first.mtime_ns) == (0o600, 5)
    with pytest.raises(Conflict):
        await local.on_write(None, "/f", b"2", {"if_version": None})
    (local.directory / "f").write_bytes(b"theirs")
    with pytest.raises(Conflict):
        await local.on_write(None, "/f", b"2", {"if_version": first.version})
    with pytest.raises(Conflict):
        await local.on_delete(None, "/f", {"if_version": first.version})
    with pytest.raises(Conflict):
        await local.on_move(None, "/f", "/g", {"if_version": first.version})
    with pytest.raises(Conflict):
        await local.on_read_range(None, "/f", 0, 1, {"if_version": first.version})
    assert await local.read("f") == b"theirs"
    current = await local.on_stat(None, "/f", {})
    await local.on_write_file(None, "/f", io.BytesIO(b"ours"), {"if_version": current.version})
    assert await local.read("f") == b"ours"


async def test_ranges_and_moves(local: LocalStorage) -> None:
    ref = await local.write("a/f", bytes(range(100)))
    assert await local.on_read_range(None, "/a/f", 90, 50, {"if_version": ref.version}) == bytes(range(90, 100))
    assert await local.on_read_range(None, "/a/f", 200, 50, {}) == b""
    moved = await local.on_move(None, "/a/f", "/b/g", {"if_version": ref.version})
    assert moved.version == ref.version and await local.read("b/g") == bytes(range(100))
    assert not (local.directory / "a").exists()


async def test_the_image_is_replaced_only_by_who_knows_it(local: LocalStorage) -> None:
    assert await local.on_load_image(None, {}) is None
    version = await local.on_save_image(None, b"1", {"if_version": None})
    with pytest.raises(Conflict):
        await local.on_save_image(None, b"2", {"if_version": None})
    newer = await local.on_save_image(None, b"2", {"if_version": version})
    assert await local.on_load_image(None, {}) == (b"2", newer)
    assert [one.path async for one in local.list()] == []


async def test_a_failed_write_leaves_what_was_there_and_nothing_beside_it(local: LocalStorage) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "broken")

    await local.write("f", b"whole")
    with pytest.raises(OSError, match="broken"):
        await local.on_write_file(None, "/f", Broken(), {})
    assert await local.read("f") == b"whole"
    assert os.listdir(local.directory / ".mount-session") == []


async def test_a_storage_without_a_session_says_what_to_do() -> None:
    with pytest.raises(OSError, match="call init first"):
        await LocalStorage().write("f", b"x")
    with pytest.raises(ValueError, match="session id"):
        await LocalStorage().init("../etc")
    with pytest.raises(ValueError, match="unknown option colour"):
        await LocalStorage().init("work", colour="red")


async def test_a_file_that_another_process_made_meanwhile_is_not_replaced(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(path: str, context: object) -> None:
        (local.directory / path).write_bytes(b"theirs")

    monkeypatch.setattr(local, "_check", check)
    with pytest.raises(Conflict):
        await local.on_write(None, "/f", b"ours", {"if_version": None})
    assert await local.read("f") == b"theirs"
