"""How the command ends when something is wrong: what a user can mend is a message, not a traceback."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mount.cli import main
from mount.commands import serve, up

MISSING = FileNotFoundError(errno.ENOENT, "the mountpoint does not exist", "/a")
BUSY = OSError(errno.EBUSY, "in use by another process", "/b")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    monkeypatch.chdir(tmp_path)
    yield lambda *arguments: CliRunner().invoke(main, arguments)
    assert not os.path.ismount(tmp_path), "the current directory is nobody's mountpoint"


@pytest.mark.parametrize("command", [up, serve])
def test_several_failures_at_once_are_told_without_a_traceback(
    command: object, run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ExceptionGroup("nursery", [MISSING, ExceptionGroup("inner", [BUSY, BUSY])])

    monkeypatch.setattr(command, "trio", type("trio", (), {"run": fail}))
    result = run(*(("up", "a", "mnt") if command is up else ("serve", "--root", "mnt", "--state", str(tmp_path / "s"))))
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: /a: the mountpoint does not exist\n/b: in use by another process\n",
    )


def test_a_defect_among_them_is_shown_whole(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ExceptionGroup("nursery", [MISSING, KeyError("defect")])

    monkeypatch.setattr(up, "trio", type("trio", (), {"run": fail}))
    assert isinstance(run("up", "a", "mnt").exception, ExceptionGroup)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("up", "a", ""), 1),
        (("up", "a", "mnt", "--state", ""), 2),
        (("up", "", "mnt"), 1),
        (("serve", "--root", ""), 2),
        (("ls", "--state", ""), 2),
    ],
)
def test_an_empty_argument_is_refused_and_is_not_the_current_directory(
    arguments: tuple[str, ...], status: int, run: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "mnt").mkdir()
    result = run(*arguments)
    assert result.exit_code == status and "Error: " in result.stderr
    assert os.listdir(tmp_path) == ["mnt"]
