"""Globs: patterns over the paths of a session, as in a `.gitignore`.

    *      any number of characters but `/`          [abc] [a-z] [!a]   one character of a set
    ?      one character but `/`                     \\x                 x itself
    **     as a whole segment: any number of directories, none included

A pattern without a slash, other than at its end, matches a name at any depth; with one it is anchored at the base of
what has it. A slash at the end: directories only. Everything below a directory that matches is matched too. `!` in
front takes back what earlier patterns said, but nothing below a directory that is matched. Other than in a file, `#`
and blanks mean themselves.

Matching is a walk: a `Walk` is where all patterns stand in one directory, and `step` takes it into a child. Walks
are values and there are few different ones (most directories of a tree have the same), so what a walk has found out
about a name can be kept by (walk, name).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["COVERED", "Globs", "Walk"]

Walk = frozenset[tuple[int, int]]
"""Pairs (pattern, segment): that pattern waits for that segment. COVERED: below something that matches."""

COVERED: Walk = frozenset({(-1, -1)})


class _Pattern(NamedTuple):
    segments: tuple[re.Pattern[str] | None, ...]  # None: `**`
    takes_back: bool
    directories_only: bool


class Globs:
    """An ordered list of patterns. ValueError names one that cannot be understood."""

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self.patterns = tuple(patterns)
        self._compiled = [_pattern(text) for text in self.patterns]
        self.start: Walk = self._settled((n, 0) for n in range(len(self._compiled)))

    def __bool__(self) -> bool:
        return bool(self._compiled)

    def step(self, walk: Walk, name: str, is_directory: bool) -> tuple[Walk, bool]:
        """The walk in the child `name`, and whether that child is matched."""
        if walk is COVERED:
            return COVERED, True
        if not walk:
            return walk, False
        decides, ahead = -1, set()
        for number, at in walk:
            pattern = self._compiled[number]
            segment = pattern.segments[at]
            if segment is None:
                ahead.add((number, at))
                if at + 1 == len(pattern.segments):  # at the end it matches all below
                    decides = self._last(decides, number, is_directory)
            elif segment.fullmatch(name):
                if at + 1 == len(pattern.segments):
                    decides = self._last(decides, number, is_directory)
                else:
                    ahead.add((number, at + 1))
        if decides >= 0 and not self._compiled[decides].takes_back:
            return COVERED, True
        return self._settled(ahead), False

    def matches(self, parts: Sequence[str], is_directory: bool = False) -> bool:
        """Whether the path, or a directory above it, is matched."""
        walk, matched = self.start, False
        for n, name in enumerate(parts, 1):
            walk, matched = self.step(walk, name, is_directory or n < len(parts))
        return matched

    def _last(self, decides: int, number: int, is_directory: bool) -> int:
        return max(decides, number) if is_directory or not self._compiled[number].directories_only else decides

    def _settled(self, pairs: Iterable[tuple[int, int]]) -> Walk:
        """With each `**` also stepped over: it may stand for nothing, except at the end."""
        found: set[tuple[int, int]] = set()
        for number, at in pairs:
            segments = self._compiled[number].segments
            found.add((number, at))
            while segments[at] is None and at + 1 < len(segments):
                at += 1
                found.add((number, at))
        return frozenset(found)


@functools.cache
def _pattern(text: str) -> _Pattern:
    takes_back = text.startswith("!")
    body = text[1:] if takes_back else text
    directories_only = body.endswith("/")
    body = body.removesuffix("/")
    anchored = "/" in body
    body = body.removeprefix("/")
    if not body or "\0" in body or any(part in ("", ".", "..") for part in body.split("/")):
        raise ValueError(f"glob {text!r}: empty, or with a segment that is empty, '.' or '..'")
    try:
        segments = tuple(None if part == "**" else _segment(part) for part in body.split("/"))
    except ValueError as e:
        raise ValueError(f"glob {text!r}: {e}") from None
    return _Pattern(segments if anchored else (None, *segments), takes_back, directories_only)


def _segment(glob: str) -> re.Pattern[str]:
    """One segment as a regular expression. A `*` that is not the last is atomic, up to the first place where what
    follows fits: if the rest does not match from there it does not from later either, and matching takes linear
    time."""
    pieces = _pieces(glob)
    runs: list[str] = [""]
    for piece in pieces:
        if piece == "*":
            runs.append("")
        else:
            runs[-1] += piece
    if len(runs) == 1:
        return re.compile(runs[0], re.DOTALL)
    first, *between, last = runs
    return re.compile(first + "".join(f"(?>.*?{run})" for run in between if run) + ".*" + last, re.DOTALL)


def _pieces(glob: str) -> list[str]:
    pieces: list[str] = []
    at = 0
    while at < len(glob):
        character = glob[at]
        at += 1
        if character == "*":
            pieces.append("*")
        elif character == "?":
            pieces.append(".")
        elif character == "[":
            piece, at = _set(glob, at)
            pieces.append(piece)
        elif character == "\\":
            if at == len(glob):
                raise ValueError("nothing after the last backslash")
            pieces.append(re.escape(glob[at]))
            at += 1
        else:
            pieces.append(re.escape(character))
    return pieces


def _set(glob: str, at: int) -> tuple[str, int]:
    """The regular expression for the set that begins after `[`, and where it ends. A `]` that comes first means
    itself."""
    negated = glob[at : at + 1] in ("!", "^")
    at += negated
    body, first = "", True
    while at < len(glob) and (first or glob[at] != "]"):
        low, at = _member(glob, at)
        if glob[at : at + 1] == "-" and glob[at + 1 : at + 2] not in ("", "]"):
            high, at = _member(glob, at + 1)
            if low > high:
                raise ValueError(f"the range {low}-{high} is empty")
            body += f"{re.escape(low)}-{re.escape(high)}"
        else:
            body += re.escape(low)
        first = False
    if at >= len(glob):
        raise ValueError("a [ without its ]")
    return f"[{'^' if negated else ''}{body}]", at + 1


def _member(glob: str, at: int) -> tuple[str, int]:
    if glob[at] == "\\" and at + 1 < len(glob):
        at += 1
    return glob[at], at + 1
