"""Routes: which persistence a path of the session belongs to, and under which policy.

A route has a base directory ("" for the default one). A path belongs to the route whose base is the path itself or
the nearest directory above it, segment by segment: `data/x` is below `data`, `database` is not. What no route covers
stays in the session.

Globs (`vfs.globs`) are anchored at the base of the route that has them and end at the base of a route further in;
those of the whole session are anchored at its root and hold everywhere. A hidden name does not exist (ENOENT).

A `Place` is what holds for one path. Places are few: paths that are treated alike, all below them included, have the
same one, and each remembers the names that were asked for in it. So a step of a walk costs a fifth of a microsecond,
and nothing at all needs to be kept for each path. Places from before an `add` are stale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vfs import listing
from vfs.globs import Globs, Walk
from vfs.persistence import Persistence

__all__ = ["Place", "Route", "Routes", "parse_base"]

REMEMBERED = 1 << 17  # names, over all places; some 20 MB when full, then forgotten together


def parse_base(base: str) -> str:
    """A base directory without slashes at its ends. ValueError if it cannot be a directory of the session."""
    parsed = base.strip("/")
    if parsed:
        try:
            listing.check_path(parsed)
        except ValueError as e:
            raise ValueError(f"base directory {base!r}: {e}") from None
    return parsed


@dataclass(frozen=True, eq=False)
class Route:
    """One base directory, and how what is below it is kept. `persistence` None: in the session only.

    `debounce`: seconds without a write after which an edit goes out; `max_wait`: seconds after which it goes out
    however often it is written (a new file goes out at its last close). `local_only`: globs of what is never
    persisted, `hidden`: of what does not exist here.
    """

    base: str = ""
    persistence: Persistence | None = None
    read_only: bool = False
    debounce: float = 1.0
    max_wait: float = 10.0
    local_only: Sequence[str] = ()
    hidden: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", parse_base(self.base))
        if not 0 <= self.debounce <= self.max_wait:
            raise ValueError(
                f"debounce {self.debounce:g} s and max_wait {self.max_wait:g} s: 0 <= debounce <= max_wait"
            )
        if self.persistence is not None and self.persistence.base_directory != self.base:
            raise ValueError(f"the persistence was made for {self.persistence.base_directory!r}, not for {self.base!r}")


class _Marks(NamedTuple):
    """Where the globs stand: the route's, and the session's."""

    hidden: Walk
    local_only: Walk
    hidden_anywhere: Walk
    local_only_anywhere: Walk


class Place:
    """What holds for one path."""

    __slots__ = ("_children", "_marks", "_node", "hidden", "local_only", "route")

    def __init__(self, route: Route, node: _Node | None, marks: _Marks, hidden: bool, local_only: bool) -> None:
        self.route = route
        self.hidden = hidden
        self.local_only = local_only
        self._node = node
        self._marks = marks
        self._children: dict[tuple[bytes, bool], Place] = {}

    @property
    def persistence(self) -> Persistence | None:
        """Where the content belongs; None: nowhere but here."""
        return None if self.local_only or self.hidden else self.route.persistence

    @property
    def read_only(self) -> bool:
        return self.route.read_only


@dataclass(eq=False)
class _Node:
    """A directory that is a base, or on the way to one."""

    entered: _Entered | None = None
    children: dict[str, _Node] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Entered:
    """A route with its globs compiled."""

    route: Route
    hidden: Globs
    local_only: Globs


class Routes:
    """All routes of one session. `hidden` and `local_only` are the session's own globs.

    `guards`: a request is to be looked at, for a name may be hidden, a route read-only, or another route's border near.
    `unlisted`: a persistence may have files that no listing tells. `everywhere`: what holds for every path, where one
    route has all of them and there are no globs.
    """

    def __init__(
        self, routes: Iterable[Route] = (), *, hidden: Iterable[str] = (), local_only: Iterable[str] = ()
    ) -> None:
        self._hidden = Globs(hidden)
        self._local_only = Globs(local_only)
        self._top = _Node()
        self._entered: dict[str, _Entered] = {}
        self._unrouted = _Entered(Route(), Globs(), Globs())
        self._changed()
        for route in routes:
            self.add(route)

    def __iter__(self) -> Iterator[Route]:
        return iter([entered.route for entered in self._entered.values()])

    def add(self, route: Route) -> None:
        """Also while the session is in use. ValueError if there is a route with this base, or a glob is no glob."""
        if route.base in self._entered:
            raise ValueError(f"base directory {route.base!r} has a route already")
        entered = _Entered(route, Globs(route.hidden), Globs(route.local_only))
        node = self._top
        for name in route.base.split("/") if route.base else ():
            node = node.children.setdefault(name, _Node())
        node.entered = self._entered[route.base] = entered
        self._changed()

    def govern(self, hidden: Iterable[str], local_only: Iterable[str]) -> None:
        """Other globs of the session's own, also while it is in use. ValueError for what is no glob."""
        self._hidden, self._local_only = Globs(hidden), Globs(local_only)
        self._changed()

    def _changed(self) -> None:
        entered = self._entered.values()
        hides = bool(self._hidden) or any(one.hidden for one in entered)
        self.guards = hides or len(entered) > 1 or any(one.route.read_only for one in entered)
        persistences = [one.route.persistence for one in entered if one.route.persistence is not None]
        self.unlisted = any(persistence.is_asked_by_name for persistence in persistences)
        self._forget()
        keeps = bool(self._local_only) or any(one.local_only for one in entered)
        is_even = not (hides or keeps) and list(self._entered) == [""]
        self.everywhere = self.root if is_even else None

    def for_path(self, parts: Iterable[bytes], is_directory: bool = False) -> Place:
        """The place of the path with these names. What is not the last is a directory anyhow."""
        place = self.root
        names = list(parts)
        last = len(names) - 1
        for n, name in enumerate(names):
            place = self.step(place, name, is_directory or n < last)
        return place

    def step(self, place: Place, name: bytes, is_directory: bool) -> Place:
        """The place of the child `name` of a directory at `place`."""
        found = place._children.get((name, is_directory))
        return self._step(place, name, is_directory) if found is None else found

    def _step(self, place: Place, name: bytes, is_directory: bool) -> Place:
        text = name.decode("utf-8", "surrogateescape")
        marks = place._marks
        entered = self._entered_at(place.route)
        hidden_anywhere, hides = self._hidden.step(marks.hidden_anywhere, text, is_directory)
        local_anywhere, keeps = self._local_only.step(marks.local_only_anywhere, text, is_directory)
        node = place._node.children.get(text) if place._node is not None else None
        if node is not None and node.entered is not None:
            entered = node.entered
            hidden, local_only = entered.hidden.start, entered.local_only.start
        else:
            hidden, hidden_here = entered.hidden.step(marks.hidden, text, is_directory)
            local_only, local_here = entered.local_only.step(marks.local_only, text, is_directory)
            hides, keeps = hides or hidden_here, keeps or local_here
        child = self._place(entered, node, _Marks(hidden, local_only, hidden_anywhere, local_anywhere), hides, keeps)
        self._count += 1
        if self._count > REMEMBERED:
            self._forget()
        else:
            place._children[name, is_directory] = child
        return child

    def _entered_at(self, route: Route) -> _Entered:
        entered = self._entered.get(route.base)
        return entered if entered is not None and entered.route is route else self._unrouted

    def _place(self, entered: _Entered, node: _Node | None, marks: _Marks, hidden: bool, local_only: bool) -> Place:
        key = (id(entered), id(node), marks, hidden, local_only)
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = Place(entered.route, node, marks, hidden, local_only)
        return place

    def _forget(self) -> None:
        """Begin anew: places that are held elsewhere stay right as long as no route is added."""
        self._count = 0
        self._places: dict[tuple[int, int, _Marks, bool, bool], Place] = {}
        entered = self._top.entered or self._unrouted
        marks = _Marks(entered.hidden.start, entered.local_only.start, self._hidden.start, self._local_only.start)
        self.root = self._place(entered, self._top, marks, False, False)
