"""A process that stores a session in S3, prints what its receipt promised, and dies on the way to the next one.

    python -m tests.storage.killing URL BUCKET STATE POINT [copy | many]

`copy`: what it does last is a rename of a file whose copy goes in parts. `many`: it writes more small files than may be
in flight.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import trio

from tests.vfs.shelf import put, routes
from vfs import failpoints
from vfs.rules import Changes
from vfs.session import Session
from vfs.storage import multipart, objects
from vfs.storage.bucket import ANY
from vfs.storage.s3 import S3Storage
from vfs.storage.writer import sole_writer
from vfs.tree import KERNEL

SESSION = "work"
BIG = b"b" * ((17 << 20) + 5)  # two parts, and a third
MANY = {f"many/{n}": b"%d" % n for n in range(100)}
EDITED, NEW, NEW_BIG = b"edited", b"new", b"n" * len(BIG)


async def described(session: Any) -> dict[str, list[Any]]:
    """All that a receipt promises: by path the mode, time, number of links, and what is in it."""
    found: dict[str, list[Any]] = {}
    stack = [("", session.namespace.root)]
    while stack:
        above, directory = stack.pop()
        for name, dentry in directory.entries.items():
            path, inode = f"{above}{name.decode()}", dentry.inode
            inside = (inode.target or b"").decode()
            if inode.is_dir:
                stack.append((f"{path}/", inode))
            elif inode.is_file:
                inside = hashlib.sha256(await session.read(inode.ino, 0, 1 << 30)).hexdigest()
            found[path] = [inode.mode, inode.mtime_ns, 0 if inode.is_dir else inode.nlink, inside]
    return found


async def populate(session: Session) -> None:
    for name in ("kept", "moved", "gone", "mode", "tree/one", "tree/deep/two"):
        await put(session, name, f"content of {name}".encode() * 100)
    await put(session, "edited", b"before")
    await put(session, "big", BIG)
    kept = session.lookup(1, b"kept").ino
    await session.setattr(kept, Changes(mode=0o751, mtime_ns=1_234_567_890_987_654_321), KERNEL)
    folder = session.mkdir(1, b"folder", 0o750, KERNEL).ino
    session.mkdir(folder, b"empty", 0o700, KERNEL)
    session.link(kept, folder, b"twin", KERNEL)
    session.symlink(folder, b"link", b"../kept", KERNEL)
    session.setxattr(kept, b"user.note", b"\0\xff", KERNEL)


async def change(session: Session) -> None:
    await put(session, "edited", EDITED)
    session.rename(1, b"moved", 1, b"moved here", 0, KERNEL)
    session.rename(1, b"tree", 1, b"renamed", 0, KERNEL)
    session.unlink(1, b"gone", KERNEL)
    await session.setattr(session.lookup(1, b"mode").ino, Changes(mode=0o600), KERNEL)
    session.mkdir(1, b"new directory", 0o755, KERNEL)
    await put(session, "new", NEW)
    await put(session, "new big", NEW_BIG)


async def main(url: str, bucket: str, state: Path, point: str, last: str) -> None:
    async with S3Storage(bucket, endpoint=url, region="us-east-1") as s3:
        await s3.init(SESSION)
        async with (
            sole_writer(s3, state / SESSION),
            Session.open(SESSION, state, routes=routes(s3)) as session,
        ):
            await populate(session)
            receipt = await session.sync()
            assert receipt.pending == 0
            print(json.dumps(await described(session)), flush=True)
            failpoints._armed = point
            if last == "many":
                for path, content in MANY.items():
                    await put(session, path, content)
            elif last == "copy":
                vars(objects)["COPY_AT_ONCE"] = 1 << 20
                multipart.copy_in_parts.__defaults__ = (ANY, 5 << 20)
                session.rename(1, b"big", 1, b"big here", 0, KERNEL)
            else:
                await change(session)
            assert s3.lease is not None
            await s3.lease.renew()
            await session.sync()
    os._exit(1)  # the point was never reached


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4], "".join(sys.argv[5:]))
