"""The state directory: one process at a time, nothing of an unknown version, damage by the name of the file."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disk import fill, small_tmpfs
from vfs.errors import DamagedState, StateInUse, UnsupportedState
from vfs.session import KERNEL, Session
from vfs.state import VERSION, State


def made(directory: Path, session: str = "work") -> Path:
    State(directory, session).close(clean=True)
    return directory


def test_a_new_session_is_made_with_all_that_it_must_have(tmp_path: Path) -> None:
    directory = made(tmp_path / "a" / "b" / "work")
    assert {entry.name for entry in directory.iterdir()} == {"lock", "session.json", "content", "journal.0"}
    about = json.loads((directory / "session.json").read_bytes())
    assert (about["version"], about["session"]) == (VERSION, "work")
    assert all(entry.stat().st_mode & 0o077 == 0 for entry in (directory, directory / "lock", directory / "journal.0"))


def test_a_directory_that_is_open_is_refused_and_can_be_had_after_it_was_closed(tmp_path: Path) -> None:
    state = State(tmp_path / "work", "work")
    with pytest.raises(StateInUse) as caught:
        State(tmp_path / "work", "work")
    assert caught.value.errno == errno.EBUSY
    assert str(tmp_path / "work") in str(caught.value)
    state.close(clean=True)
    State(tmp_path / "work", "work").close(clean=True)


def test_a_clean_end_is_told_from_a_crash(tmp_path: Path) -> None:
    state = State(tmp_path / "work", "work")
    assert not state.crashed
    state.close(clean=False)
    state = State(tmp_path / "work", "work")
    assert (state.crashed, state.powered_off) == (True, False)
    state.close(clean=True)
    state = State(tmp_path / "work", "work")
    assert not state.crashed
    state.close(clean=True)


def hold_and_die(directory: Path) -> None:
    State(directory, "work")
    os._exit(9)


def test_a_process_that_dies_lets_go_and_leaves_a_crash(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=hold_and_die, args=(tmp_path / "work",))
    process.start()
    process.join()
    assert process.exitcode == 9
    state = State(tmp_path / "work", "work")
    assert state.crashed
    state.close(clean=True)


def test_another_boot_id_is_power_loss(tmp_path: Path) -> None:
    State(tmp_path / "work", "work").close(clean=False)
    (tmp_path / "work" / "lock").write_bytes(b"0" * 36)
    state = State(tmp_path / "work", "work")
    assert (state.crashed, state.powered_off) == (True, True)
    state.close(clean=True)


def test_an_unknown_version_is_refused_and_named(tmp_path: Path) -> None:
    directory = made(tmp_path / "work")
    (directory / "session.json").write_text(json.dumps({"version": VERSION + 1, "session": "work"}))
    with pytest.raises(UnsupportedState, match=str(VERSION + 1)) as caught:
        State(directory, "work")
    assert caught.value.filename == str(directory)
    (directory / "session.json").write_text(json.dumps({"version": VERSION, "session": "work"}))
    State(directory, "work").close(clean=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"version": 1, "session": "other"}', b"\xff\xfe"])
def test_a_damaged_session_json_is_named(tmp_path: Path, content: bytes) -> None:
    directory = made(tmp_path / "work")
    (directory / "session.json").write_bytes(content)
    with pytest.raises(DamagedState) as caught:
        State(directory, "work")
    assert caught.value.filename == str(directory / "session.json")


@pytest.fixture
async def session_state(tmp_path: Path) -> Path:
    """The state of a session that has a file."""
    async with Session.open("work", tmp_path) as session:
        ino = session.create(1, b"file", 0o644, KERNEL).ino
        await session.write(ino, 0, b"content")
        session.release(ino)
    return tmp_path / "work"


@pytest.mark.parametrize("gone", ["session.json", "journal.0", "content"])
async def test_a_part_that_has_gone_is_an_error_that_names_it_never_an_empty_tree(
    session_state: Path, gone: str
) -> None:
    (session_state / gone).rename(session_state.parent / "elsewhere")
    for _ in range(2):
        with pytest.raises(DamagedState) as caught:
            async with Session.open("work", session_state.parent):
                pass
        assert caught.value.filename == str(session_state / gone)
    (session_state.parent / "elsewhere").rename(session_state / gone)
    async with Session.open("work", session_state.parent) as session:
        assert session.lookup(1, b"file").size == 7


@pytest.mark.parametrize("last", ["lock", "content", "journal.0", "session.json.new"])
def test_a_session_whose_making_was_cut_short_is_made_anew(tmp_path: Path, last: str) -> None:
    directory = made(tmp_path / "work")
    (directory / "session.json").rename(directory / "session.json.new")
    order = ["lock", "content", "journal.0", "session.json.new"]
    for name in order[order.index(last) + 1 :]:
        path = directory / name
        path.rmdir() if path.is_dir() else path.unlink()
    State(directory, "work").close(clean=True)
    assert json.loads((directory / "session.json").read_bytes())["session"] == "work"


def drop_privileges_and_open(directory: Path) -> None:
    os.setgid(65534)
    os.setuid(65534)
    try:
        State(directory, "work")
    except PermissionError:
        os._exit(3)
    os._exit(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_a_directory_that_cannot_be_written_is_a_permission_error(tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents):
        if path.owner() == "root" and path != Path("/") and path != Path("/tmp"):
            path.chmod(0o755)
    process = multiprocessing.get_context("spawn").Process(target=drop_privileges_and_open, args=(tmp_path / "work",))
    process.start()
    process.join()
    assert process.exitcode == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_tmpfs(tmp_path / "disk", 4 << 20) as path:
        yield path


@pytest.mark.parametrize("clean", [True, False])
async def test_a_session_opens_on_a_full_disk_and_its_files_can_be_deleted(small_disk: Path, clean: bool) -> None:
    async with Session.open("work", small_disk) as session:
        for n in range(100):
            session.release(session.create(1, b"empty %d" % n, 0o644, KERNEL).ino)
    if not clean:
        State(small_disk / "work", "work").close(clean=False)
    fill(small_disk)
    async with Session.open("work", small_disk) as session:
        for n in range(100):
            session.unlink(1, b"empty %d" % n, KERNEL)
        assert list(session.readdir(1, 0)) == []
