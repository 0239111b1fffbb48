"""Each path has one route and one policy: the nearest base above it, segment by segment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfs import routes as module
from vfs.globs import Globs
from vfs.persistence import Persistence
from vfs.routes import Place, Route, Routes, parse_base


def persistence(base: str = "") -> Persistence:
    return Persistence({"on_read": lambda *_: b""}, base_directory=base)


def at(routes: Routes, path: str | bytes, is_directory: bool = False) -> Place:
    raw = path.encode() if isinstance(path, str) else path
    return routes.for_path(raw.split(b"/"), is_directory)


def test_the_longest_base_wins_by_whole_segments() -> None:
    outer, inner, default = (Route(base, persistence(base)) for base in ("data", "data/deep/er", ""))
    routes = Routes([outer, inner, default])
    assert set(routes) == {outer, inner, default}
    for path, route in {
        "data": outer,
        "data/x": outer,
        "data/deep": outer,
        "data/deep/er": inner,
        "data/deep/er/x/y": inner,
        "data/deep/erase": outer,
        "database": default,
        "x/data": default,
    }.items():
        assert at(routes, path).route is route, path
        assert at(routes, path).persistence is route.persistence
    assert routes.root.route is default


def test_without_a_default_route_the_rest_stays_in_the_session() -> None:
    routes = Routes([Route("data", persistence("data"))])
    assert at(routes, "elsewhere").persistence is None
    assert at(routes, "data/x").persistence is not None
    assert Routes().root.persistence is None


def test_a_base_has_one_route_however_it_is_written() -> None:
    routes = Routes([Route("/data/")])
    with pytest.raises(ValueError, match="'data' has a route already"):
        routes.add(Route("data"))
    routes.add(Route(""))
    with pytest.raises(ValueError, match="'' has a route already"):
        routes.add(Route("/"))


@pytest.mark.parametrize("base", ["a/../b", "..", "a//b", "a\0", "./a", "x" * 256])
def test_a_base_that_is_no_directory_is_refused(base: str) -> None:
    with pytest.raises(ValueError, match="base directory"):
        parse_base(base)


def test_a_route_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="max_wait"):
        Route(debounce=5, max_wait=1)
    with pytest.raises(ValueError, match="made for 'a', not for 'b'"):
        Route("b", persistence("a"))
    with pytest.raises(ValueError, match="glob"):
        Routes([Route(hidden=["["])])


def test_a_route_added_in_use_holds_at_once_and_has_requests_looked_at() -> None:
    routes = Routes([Route("", persistence())])
    before = at(routes, "new/x")
    assert not routes.guards
    route = Route("new", read_only=True)
    routes.add(route)
    assert not before.read_only
    assert at(routes, "new/x").route is route and at(routes, "new/x").read_only
    assert routes.guards


def test_local_only_is_never_persisted_and_hidden_does_not_exist() -> None:
    routes = Routes(
        [Route("", persistence(), local_only=["node_modules", ".venv/", "/out"], hidden=["*.key", "secret/deep"])]
    )
    for path, local_only, hidden in (
        ("web/node_modules/x/y.js", True, False),
        ("out/x", True, False),
        ("web/out", False, False),
        ("a/server.key", False, True),
        ("secret/deep/x", False, True),
        ("node_modules/my.key", True, True),
        ("x.py", False, False),
    ):
        place = at(routes, path)
        assert (place.local_only, place.hidden) == (local_only, hidden), path
        assert (place.persistence is None) == (local_only or hidden), path
    assert at(routes, ".venv", is_directory=True).local_only
    assert not at(routes, ".venv", is_directory=False).local_only


def test_globs_of_a_route_are_anchored_at_its_base_and_end_at_the_next_base() -> None:
    routes = Routes([Route("", hidden=["/a", "*.key"]), Route("data", local_only=["/a"]), Route("data/in")])
    assert at(routes, "a").hidden
    assert not at(routes, "data/a").hidden
    assert at(routes, "data/a/b").local_only
    assert not at(routes, "data/x.key").hidden
    assert not at(routes, "data/in/a").local_only


def test_globs_of_the_session_hold_in_every_route() -> None:
    routes = Routes([Route("data", persistence("data"))], hidden=[".env", "data/x"], local_only=["*.tmp"])
    assert at(routes, "data/deep/.env").hidden
    assert at(routes, "data/x").hidden
    assert at(routes, "data/a.tmp").persistence is None


def test_names_that_are_not_utf8_have_places() -> None:
    routes = Routes([Route("", hidden=["?"])])
    assert at(routes, b"\xff").hidden
    assert not at(routes, b"\xff\xfe").hidden


def test_places_are_shared_so_that_a_tree_costs_nothing_and_forgetting_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 50)
    routes = Routes([Route("", local_only=["a/b", "c"]), Route("r/s")])
    places = {id(at(routes, f"d{n}/e{n}")) for n in range(20)}
    assert len(places) == 1
    root = routes.root
    for n in range(200):
        assert not at(routes, f"x{n}").local_only
        assert at(routes, "a/b/x").local_only
        assert routes.step(routes.step(root, b"r", True), b"s", True).route.base == "r/s", "held from before"
        assert sum(len(place._children) for place in routes._places.values()) <= 50


NAMES = st.sampled_from(["a", "b", "ab"])
PARTS = st.lists(NAMES, max_size=4)


@given(st.lists(PARTS, unique_by=tuple, max_size=5), st.lists(PARTS, min_size=1, max_size=20))
def test_the_walk_agrees_with_the_definition(bases: list[list[str]], paths: list[list[str]]) -> None:
    globs = ["/a/b", "ab", "b/**/a"]
    routes = Routes((Route("/".join(base), local_only=globs) for base in bases), hidden=["a/ab"])
    for path in paths:
        above = [base for base in bases if path[: len(base)] == base]
        place = routes.for_path([name.encode() for name in path])
        assert place.hidden == Globs(["a/ab"]).matches(path)
        if not above:
            assert place.route not in set(routes)
            assert not place.local_only
        else:
            base = max(above, key=len)
            assert place.route.base == "/".join(base)
            assert place.local_only == Globs(globs).matches(path[len(base) :])
