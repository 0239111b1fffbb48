"""Failure points: one list, each of it in the code, and what is killed at one is recovered from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount import test_takeover
from tests.storage import test_killed
from tests.vfs import test_upload_crash
from vfs import image
from vfs.failpoints import POINTS
from vfs.session import KERNEL, Session

PROJECT = Path(__file__).resolve().parent.parent


def test_every_point_of_the_list_is_in_the_code_and_no_other() -> None:
    sources = [*PROJECT.glob("vfs/**/*.py"), *PROJECT.glob("mount/**/*.py")]
    reached = {name for path in sources for name in re.findall(r'reach\("([^"]+)"\)', path.read_text())}
    assert reached == POINTS


def test_every_point_of_the_list_is_one_that_a_test_kills_at() -> None:
    """Each of these tests fails where the process did not die at its point."""
    on_the_way_to_the_bucket = set(test_killed.ON_THE_WAY)
    in_batches = {point for _, point, _ in test_upload_crash.POINTS}
    in_requests = {*test_takeover.ON_THE_WAY, *test_takeover.IN_TAKEOVER}
    in_images = {point for point in POINTS if point.startswith("image.")}
    assert on_the_way_to_the_bucket | in_batches | in_requests | in_images == POINTS


def test_an_unknown_point_is_refused() -> None:
    environment = os.environ | {"MOUNT_SESSION_FAILPOINT": "nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", "import vfs.failpoints"], env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "'nowhere' is not one of" in done.stderr


def test_only_the_first_process_dies_where_a_mark_is_asked_for(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    environment = os.environ | {"MOUNT_SESSION_FAILPOINT": "answer.sent:2", "MOUNT_SESSION_FAILPOINT_MARK": str(mark)}
    script = "from vfs.failpoints import reach\nreach('answer.sent')\nprint('once', flush=True)\nreach('answer.sent')"
    command = [sys.executable, "-c", script]
    first = subprocess.run(command, env=environment, capture_output=True)
    assert (first.returncode, first.stdout) == (-9, b"once\n")
    assert mark.exists()
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0


@pytest.mark.parametrize("point", ["image.before-rename", "image.after-rename"])
async def test_an_image_that_is_killed_in_its_rename_loses_nothing(tmp_path: Path, point: str) -> None:
    async with Session.open("work", tmp_path) as session:
        for number in range(20):
            session.mkdir(1, b"%d" % number, 0o700, KERNEL)
        segment = session.journal.rotate()
        session.mkdir(1, b"later", 0o700, KERNEL)
        directory = session.directory
    environment = os.environ | {"MOUNT_SESSION_FAILPOINT": point}
    reader, writer = os.pipe()
    command = [*image.COMMAND, str(directory), str(segment)]
    done = subprocess.run(command, stdin=reader, env=environment, capture_output=True)  # noqa: ASYNC221
    os.close(reader)
    os.close(writer)
    assert done.returncode == -9, done.stderr
    async with Session.open("work", tmp_path) as session:
        assert len(list(session.readdir(1, 0))) == 21
