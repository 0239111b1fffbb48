"""What the registry was told is there after a restart, and one bad file costs one session."""

from __future__ import annotations

from pathlib import Path

import pytest

from mount.registry import Definition, Registry
from vfs.policy import Policy


def definition(session: str, **fields: object) -> Definition:
    return Definition(session=session, storage="local", **fields)  # type: ignore[arg-type]


def test_definitions_survive(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.put(definition("-starts-with-dash", policy=Policy(quota_bytes=5), labels={"team": "a"}))
    registry.put(definition("b"))
    registry.change("b", mounted=False, holders=("m1",))
    registry.put(definition("c"))
    registry.remove("c")
    again = Registry(tmp_path)
    assert {found.session for found in again} == {"-starts-with-dash", "b"}
    assert again.get("-starts-with-dash").policy == Policy(quota_bytes=5)
    assert (again.get("b").mounted, again.get("b").holders) == (False, ("m1",))


@pytest.mark.parametrize("session", ["", ".", "..", "a/b", "a\0", ".hidden", "x" * 129])
def test_an_id_that_cannot_be_a_name_is_refused(session: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="session id"):
        Registry(tmp_path).put(definition(session))
    assert list(tmp_path.rglob("*.json")) == []


def test_one_damaged_definition_is_set_aside_and_the_others_come_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(tmp_path)
    for name in ("a", "b", "c"):
        registry.put(definition(name))
    (tmp_path / "sessions/b.json").write_text("{")
    (tmp_path / "sessions/c.json").write_bytes((tmp_path / "sessions/a.json").read_bytes())
    again = Registry(tmp_path)
    assert [found.session for found in again] == ["a"]
    assert "b.json" in caplog.text and "c.json" in caplog.text
    assert (tmp_path / "sessions/b.damaged").exists()


def test_a_user_that_no_session_has_is_given_until_there_is_none_left(tmp_path: Path) -> None:
    registry = Registry(tmp_path, (70_000, 2))
    assert registry.free_uid({None}) == 70_000
    assert registry.free_uid({70_000}) == 70_001
    assert registry.free_uid({70_001}) == 70_000
    with pytest.raises(RuntimeError, match=r"workers\.uids"):
        registry.free_uid({70_000, 70_001})
    assert Registry(tmp_path).free_uid(set()) is None


def test_credentials_are_in_files_of_their_own_that_nobody_else_reads(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.put(definition("a"))
    registry.put_environment("a", {"AWS_SECRET_ACCESS_KEY": "hush"})
    assert registry.environment("a") == {"AWS_SECRET_ACCESS_KEY": "hush"}
    holding = [path for path in tmp_path.rglob("*") if path.is_file() and b"hush" in path.read_bytes()]
    assert [(path.name, path.stat().st_mode & 0o777) for path in holding] == [("a.json", 0o600)]
    assert holding[0].parent.stat().st_mode & 0o777 == 0o700
    registry.remove("a")
    assert registry.environment("a") is None
