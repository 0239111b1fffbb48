"""docs/python.md: each example runs as it stands, and prints what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
EXAMPLES = re.findall(
    r"```python\n(.*?)```(?:\n\n(?:prints\n\n)?```text\n(.*?)```)?", PAGE.read_text(), flags=re.DOTALL
)


def test_the_page_has_its_examples() -> None:
    assert len(EXAMPLES) == 10
    assert all(printed for _, printed in EXAMPLES), "an example that says nothing of what it prints"


@pytest.mark.mount
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_prints_what_the_page_says(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, printed = EXAMPLES[number]
    (tmp_path / "mnt").mkdir()
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"{PAGE.name} example {number}", "exec"), {"__name__": "example"})
    assert capfd.readouterr().out == printed
    assert not (tmp_path / "mnt").is_mount()
