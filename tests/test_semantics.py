"""docs/semantics.md names a test for each promise: the tests are there, and no operation lacks a line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mount.operations import Operations

ROOT = Path(__file__).parent.parent
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "semantics.md").read_text().splitlines()
    if line.startswith("|") and not line.startswith("|--")
]
PROMISES = [row for row in ROWS if row[2] != "test"]


def defined(path: Path) -> set[str]:
    """The names that a module binds at its top: tests are functions, or classes made by hypothesis."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return names


@pytest.mark.parametrize("promise", PROMISES, ids=lambda row: row[0])
def test_every_promise_names_tests_that_exist(promise: list[str]) -> None:
    assert len(promise) == 3
    tests = [test.strip() for test in promise[2].split(",")]
    for test in tests:
        assert re.fullmatch(r"tests/\S+\.py::\w+", test), test
        path, name = test.split("::")
        assert name.lower().startswith("test")
        assert name in defined(ROOT / path), test


def test_every_operation_has_a_line() -> None:
    handlers = {name for name in vars(Operations) if not name.startswith("_")}
    handlers -= {"supports_dot_lookup", "enable_writeback_cache"}
    named = {row[0] for row in PROMISES}
    private = {name for name in handlers if not hasattr(Operations.__mro__[1], name)}  # ours, not the kernel's
    assert handlers - private <= named, "a handler without a promise"
    inherited = {"init", "stacktrace", "poll"}  # pyfuse3's own, which we leave as they are
    offered = {name for name in vars(Operations.__mro__[1]) if not name.startswith("_")}
    offered -= {"supports_dot_lookup", "enable_writeback_cache", "enable_acl"} | inherited
    assert offered <= named, "an operation that pyfuse3 offers and nobody promises anything for"
