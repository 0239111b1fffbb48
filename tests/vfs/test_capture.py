"""A large file that is uploaded is read from its backing file, in whatever way a callback likes, and quickly."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

from tests.vfs.shelf import BigShelf, put, routes
from vfs import capture
from vfs.session import Session

SIZE = (20 << 20) + 777


async def test_the_file_of_a_capture_reads_as_files_do(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(1).randbytes(SIZE)
    calls: list[int] = []
    preadv = os.preadv

    def counted(fd: int, buffers: Any, offset: int) -> int:
        calls.append(preadv(fd, buffers, offset))
        return calls[-1]

    async with Session.open("s", tmp_path, routes=routes(BigShelf())) as session:
        ino = await put(session, "a", data)
        async with capture.capture(session, session.namespace.inode(ino)) as captured:  # type: ignore[arg-type]
            monkeypatch.setattr(os, "preadv", counted)
            for all_of_it in ((), (-1,), (None,)):
                calls.clear()
                with captured.file() as file:
                    assert file.read(*all_of_it) == data
                    assert file.read() == b"" and file.tell() == SIZE
                assert len(calls) <= 6, "not piece by piece"
            with captured.file() as file:
                assert file.read(10) + file.read() == data
                assert file.seek(-5, os.SEEK_END) == SIZE - 5 and file.read() == data[-5:]
                assert file.seek(7) == 7 and file.read(3 << 20) == data[7 : 7 + (3 << 20)]
                assert file.read(1) == data[7 + (3 << 20) :][:1]
                assert file.seek(SIZE + 10) and file.read() == b""
                file.seek(0)
                assert b"".join(iter(lambda: file.read(1 << 20), b"")) == data
            captured.inode.generation += 1  # type: ignore[union-attr]
            with captured.file() as file, pytest.raises(capture.Torn):
                file.read()
            captured.inode.generation -= 1  # type: ignore[union-attr]
