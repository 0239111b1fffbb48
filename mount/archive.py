"""Export and import of a session: the daemon's side of `tarball`, streamed through it and never held in memory."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Final

import msgspec
import trio

from mount.hosted import Hosted
from mount.spawner import PROJECT

__all__ = ["export", "extract"]

CHUNK: Final = 256 * 1024
STALL: Final = 300.0  # seconds without a byte; a cold file may have to come from far away


class _Complaint(msgspec.Struct):
    errno: int | None
    message: str
    path: str | None = None

    def error(self) -> OSError:
        return OSError(self.errno or errno.EIO, self.message, self.path)


async def _start(work: str, hosted: Hosted) -> trio.Process:
    if hosted.mounted is None:
        raise FileNotFoundError(errno.ENOENT, f"it is {hosted.state}; mount it first", hosted.session)
    return await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", "mount.tarball", work, str(hosted.mountpoint)],
        env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(PROJECT)},
        stdin=subprocess.PIPE if work == "import" else subprocess.DEVNULL,
        stdout=subprocess.PIPE if work == "export" else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


async def _end(process: trio.Process) -> None:
    """Its status; what it complained of is raised."""
    assert process.stderr is not None
    complaint = b""
    with trio.fail_after(STALL):
        while chunk := await process.stderr.receive_some(65536):
            complaint = (complaint + chunk)[-65536:]
        status = await process.wait()
    if status == 0:
        return
    try:
        raise msgspec.json.decode(complaint, type=_Complaint).error()
    except msgspec.DecodeError:
        raise RuntimeError(f"tarball ended with status {status}: {complaint.decode(errors='replace')}") from None


async def _kill(process: trio.Process) -> None:
    if process.returncode is None:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with trio.CancelScope(shield=True):
                await stream.aclose()


async def export(hosted: Hosted) -> AsyncIterator[bytes]:
    """The tar's bytes. An error after the first chunk ends the stream before its end."""
    process = await _start("export", hosted)
    assert process.stdout is not None
    try:
        while True:
            with trio.fail_after(STALL):
                chunk = await process.stdout.receive_some(CHUNK)
            if not chunk:
                break
            yield bytes(chunk)
        await _end(process)
    finally:
        await _kill(process)


async def extract(hosted: Hosted, chunks: AsyncIterator[bytes]) -> None:
    """Take the tar's bytes. Raises what stood in the way: EDQUOT, ENOSPC, EROFS, or EINVAL for what is no tar."""
    process = await _start("import", hosted)
    assert process.stdin is not None
    try:
        try:
            async for chunk in chunks:
                with trio.fail_after(STALL):
                    await process.stdin.send_all(chunk)
            await process.stdin.aclose()
        except trio.BrokenResourceError:
            await _end(process)  # it stopped reading: it says why
            raise OSError(errno.EINVAL, "there is more behind the end of the archive", hosted.session) from None
        await _end(process)
    finally:
        await _kill(process)
