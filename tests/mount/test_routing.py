"""Routes of a mounted session: from a file at its start, and added while it is in use, by `up` and by the daemon."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mount.routing import RouteConfig, keep, kept, load
from tests.daemon.conftest import serving  # noqa: F401 - a fixture
from tests.daemon.serving import Serving, until
from tests.mounted import COMMAND, Mounted

Mount = Callable[..., Mounted]
STORE = "tests.stores:Directory"


def table(base: str, store: Path, *lines: str) -> str:
    """A [[route]] of which `store` has the files, in a directory called as the base."""
    fields = {"base": base, "callbacks": STORE, "scope": base, "options.directory": str(store)}
    own = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    return "\n".join(["[[route]]", *own, "strip_base = true", *lines])


def route(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(COMMAND), "route", "--state", str(state), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_file_says_which_directories_are_kept_elsewhere_and_how(mounted: Mount, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "manuals").mkdir(parents=True)
    (store / "manuals" / "guide").write_text("read me")
    results = table("results", store, 'local_only = ["*.tmp"]', 'hidden = [".env"]', 'max_file_size = "1KiB"')
    (tmp_path / "routes.toml").write_text(table("manuals", store, "read_only = true") + "\n" + results)
    session = mounted("work", "--routes", str(tmp_path / "routes.toml"))
    assert sorted(os.listdir(session.path)) == ["manuals", "results"]
    assert (session.path / "manuals/guide").read_text() == "read me"
    with pytest.raises(OSError, match="Read-only"):
        (session.path / "manuals/guide").write_text("")
    with pytest.raises(FileNotFoundError):
        (session.path / "results/.env").write_text("secret")
    (session.path / "results/scratch.tmp").write_text("")
    (session.path / "elsewhere").write_text("")
    (session.path / "results/table").write_text("1,2")
    session.stop()
    assert {file.name for file in store.rglob("*") if file.is_file()} == {"guide", "table"}


def test_a_route_is_added_to_what_up_has_mounted_and_is_there_at_the_next_up(mounted: Mount, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "late").mkdir(parents=True)
    (store / "late" / "there").write_text("before")
    session = mounted("work")
    (session.path / "data").mkdir()
    (session.path / "data" / "mine").write_text("mine")
    held = os.open(session.path / "data" / "mine", os.O_RDONLY)
    late = ("--callbacks", STORE, "--scope", '"late"', "--strip-base", "--hidden", "*.key")
    options = ("--option", f"directory={store}")
    for base in ("data", "second"):  # a session without routes gets another worker; one that has some does not
        added = route(session.state, "work", base, *late, *options)
        assert added.returncode == 0, added.stderr
        until((session.path / base / "there").exists)
    assert os.read(held, 100) == b"mine"
    os.close(held)
    assert (session.path / "data" / "there").read_text() == "before"
    with pytest.raises(FileNotFoundError):
        (session.path / "data" / "x.key").write_text("")
    until((store / "late" / "mine").exists)
    refused = {
        "data": "has a route already",
        "third": "cannot import 'no_such_module'",
        "../x": "segment",
        "data/deep": "kept elsewhere",
    }
    (session.path / "data" / "deep").mkdir()
    (session.path / "data" / "deep" / "file").write_text("")
    until((store / "late" / "deep%file").exists)
    for base, why in refused.items():
        callbacks = "no_such_module:X" if base == "third" else STORE
        failed = route(session.state, "work", base, "--callbacks", callbacks)
        assert failed.returncode != 0 and why in failed.stderr and "Traceback" not in failed.stderr, failed.stderr
    assert route(session.state, "nobody", "data").returncode != 0
    assert session.stop()["pending"] == 0
    again = mounted("work")
    assert (again.path / "second" / "there").read_text() == "before"
    again.stop()


def test_the_daemon_takes_routes_with_a_session_and_adds_one_in_use(
    serving: Callable[..., Serving],  # noqa: F811
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    (store / "late").mkdir(parents=True)
    (store / "late" / "there").write_text("before")
    (tmp_path / "routes.toml").write_text(table("results", store))
    daemon = serving()
    daemon.run("new", "a", "--routes", str(tmp_path / "routes.toml"))
    late = ("--callbacks", STORE, "--scope", '"late"', "--strip-base", "--option", f"directory={store}")
    assert daemon.json("route", "a", "data", *late)["new"] == 1
    assert (daemon.root / "a/data/there").read_text() == "before"
    (daemon.root / "a/results/r").write_text("result")
    (daemon.root / "a/data/d").write_text("datum")
    assert daemon.json("sync", "a")["pending"] == 0
    assert {file.name for file in store.rglob("*") if file.is_file()} == {"there", "r", "d"}
    daemon.run("route", "a", "data", *late, status=1)
    daemon.run("unmount", "a")
    daemon.run("mount", "a")
    assert sorted(os.listdir(daemon.root / "a/data")) == ["d", "there"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[route]]\nbase = 'a'\ncolour = 1", "unknown field `colour`"),
        ("[[route]]\nbase = 'a'\n[[route]]\nbase = '/a/'", "two routes for 'a'"),
        ("[[route]]\nbase = '../a'", r"a segment '\.\.'"),
        ("[[route]]\nmax_file_size = 'much'", "size 'much'"),
        ("[[route]]\ndebounce = 20", "debounce 20 s"),
        ("[[rout]]\nbase = 'a'", "rout: only"),
        ("[[route", "routes.toml"),
    ],
)
def test_what_is_wrong_with_a_file_of_routes_is_named(text: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "routes.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=why) as caught:
        load(file)
    assert str(file) in str(caught.value)


def test_what_was_added_is_kept_once_for_each_base(tmp_path: Path) -> None:
    assert kept(tmp_path) == ()
    for base, scope in (("a", 1), ("b", 2), ("a", 3)):
        keep(tmp_path, RouteConfig(base=base, callbacks=STORE, scope=scope))
    assert [(found.base, found.scope) for found in kept(tmp_path)] == [("b", 2), ("a", 3)]
    (tmp_path / "routes.json").write_bytes(b"[{]")
    with pytest.raises(ValueError, match=r"routes\.json"):
        kept(tmp_path)


def test_where_callbacks_take_no_writes_the_status_says_that_changes_stay_here(
    serving: Callable[..., Serving],  # noqa: F811
) -> None:
    daemon = serving()
    daemon.run("new", "a", "--callbacks", "tests.stores:Shown")
    (daemon.root / "a/new").write_text("mine")
    assert (daemon.root / "a/there").read_text() == "before"
    assert daemon.json("status", "a")["unwritten"] == ["tests.stores:Shown"]
    assert b"take no writes" in daemon.run("rm", "a", status=5).stderr
    assert (daemon.root / "a/new").read_text() == "mine"
    daemon.run("rm", "a", "--force")
