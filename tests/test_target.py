"""`--callbacks` names an object in a module, or one at the other end of HTTP."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.http.test_callbacks_over_http import Files, answering, ok, remote, url_of
from vfs.persistence import Persistence
from vfs.target import Target, open_target, remember

CALLBACKS = Files()


def persistence(target: Target) -> Persistence:
    return Persistence(target.callbacks, owned=target.owned)


@pytest.mark.parametrize("name", ["CALLBACKS", "Files"])
async def test_an_object_or_a_class_by_its_name(name: str) -> None:
    target = await open_target(f"tests.test_target:{name}")
    assert not target.owned
    assert persistence(target).can >= {"on_list", "on_read", "on_write", "on_delete"}


async def test_a_url_is_asked_what_it_has() -> None:
    async with remote(Files(), token="secret") as files:
        target = await open_target(url_of(files), token="secret")
        assert target.owned
        assert persistence(target).can == files.can
        with pytest.raises(OSError, match="no token, or another one") as caught:
            await open_target(url_of(files), token="wrong")
        assert caught.value.errno == errno.EACCES


async def test_what_it_had_the_last_time_is_enough_to_start_while_it_is_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with remote(Files()) as files:
        url, can = url_of(files), files.can
        remember(tmp_path, url, can)
        assert persistence(await open_target(url, directory=tmp_path)).can == can
    caplog.clear()
    gone = persistence(await open_target(url, directory=tmp_path))
    assert gone.can == can
    assert "going on with what it had the last time" in caplog.text
    with pytest.raises(OSError) as caught:
        await gone.read("a")
    assert caught.value.errno == errno.EIO
    await gone.aclose()
    for spec, directory in ((url, None), (url + "/other", tmp_path), (url, tmp_path / "none")):
        with pytest.raises(OSError, match="cannot be reached"):
            await open_target(spec, directory=directory)
    (tmp_path / "callbacks.json").write_bytes(b"\0")
    with pytest.raises(OSError, match="cannot be reached"):
        await open_target(url, directory=tmp_path)
    remember(tmp_path, url, can)
    await persistence(await open_target(url, directory=tmp_path)).aclose()


async def test_one_that_answers_something_else_is_refused_whatever_it_was_before(tmp_path: Path) -> None:
    async with answering(ok(b"<html>")) as files:
        remember(tmp_path, url_of(files), frozenset({"on_read"}))
        with pytest.raises(OSError, match="not an answer of such callbacks"):
            await open_target(url_of(files), directory=tmp_path)


def test_nothing_is_remembered_of_a_module(tmp_path: Path) -> None:
    remember(tmp_path, "app:Files", frozenset({"on_read"}))
    assert not list(tmp_path.iterdir())


class Hooked(Files):
    """Made once, with its callbacks and its hooks."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1


class Unready(Files):
    def __init__(self) -> None:
        raise RuntimeError("no database")


class BadHook(Files):
    on_file_created = 5


EMPTY = object()


async def test_a_class_is_made_once_for_its_callbacks_and_its_hooks() -> None:
    target = await open_target("tests.test_target:Hooked")
    assert isinstance(target.callbacks, Hooked)
    assert persistence(target).can >= {"on_list", "on_read"}
    assert Hooked.made == 1


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("no_such_module:x", "cannot import 'no_such_module'"),
        ("tests.test_target:Missing", "no attribute 'Missing'"),
        ("os:path", "no callback in posixpath"),
        ("tests.test_target:BadHook", "on_file_created of .* cannot be called"),
        ("tests.test_target:EMPTY", "no callback in a object"),
        ("tests.test_target:Unready", r"Unready\(\) fails: RuntimeError: no database \(.*test_target.py, line \d+\)"),
        ("broken_module:x", r"cannot import 'broken_module': ZeroDivisionError: .* \(.*broken_module.py, line 1\)"),
        ("unparsed_module:x", "cannot import 'unparsed_module': SyntaxError: .*line 1"),
    ],
)
async def test_what_is_wrong_with_it_is_one_line(
    spec: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    (tmp_path / "unparsed_module.py").write_text("def (\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"^--callbacks {spec}: .*{why}"):
        await open_target(spec)
