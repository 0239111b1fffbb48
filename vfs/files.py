"""Files: an open session by paths, for the program that has it open (`session.files`).

Paths are text or bytes, relative to the session's root; a leading `/` means the same. Empty segments and `.` are passed
over, `..` and NUL are EINVAL. Symlinks are followed as in a file system whose root is the session: one that leads out
of it, or an absolute one, is EXDEV. What is done here is done to the same tree as through a mount, with the same
promises: it is recorded before a call returns, and reaches the persistence behind it.

A write never shows a half-written file to anyone, crash or not: the content goes into a file without a name, which then
takes the place of the old one in one step. Quotas, read-only directories and hidden names hold here too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import trio

from vfs.errors import error
from vfs.fileref import FileRef, compute_checksum, guess_content_type
from vfs.globs import Globs
from vfs.inode import Inode
from vfs.namespace import ROOT
from vfs.paths import Name, Spot, find, parts, shown
from vfs.rules import RENAME_NOREPLACE, Changes
from vfs.stats import Stats, count
from vfs.tree import KERNEL, UNNAMED, Caller

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession
    from vfs.refresh import Refreshed
    from vfs.reset import Reset
    from vfs.routes import Route
    from vfs.session import Session
    from vfs.storage.base import Descriptor, Fetch

__all__ = ["FileRefs", "Files"]

FileRefs: TypeAlias = list[FileRef]

PIECE = 1 << 20


class Files:
    def __init__(self, session: Session, caller: Caller = KERNEL) -> None:
        """`caller` is whom new files belong to, where the session's policy does not say."""
        self.session = session
        self.caller = caller

    # ---- content

    async def read(self, path: Name, offset: int = 0, size: int | None = None) -> bytes:
        """`size` bytes from `offset`, or all there are; fewer only at the file's end."""
        if offset < 0 or (size is not None and size < 0):
            raise error(errno.EINVAL, path)
        content = bytearray()
        async with self._opened(path, os.O_RDONLY) as inode:
            while size is None or len(content) < size:
                wanted = PIECE if size is None else min(PIECE, size - len(content))
                piece = await self.session.read(inode.ino, offset + len(content), wanted)
                content += piece
                if len(piece) < wanted:
                    break
                await trio.lowlevel.checkpoint()
        return bytes(content)

    async def write(self, path: Name, content: bytes, *, mode: int | None = None) -> FileRef:
        """The file's whole content, old or new to whoever looks; directories on the way are made.

        A file that was there keeps its permissions, owner and xattrs; `mode` is for one that was not (0644) or to
        change it. Other names of a hard-linked file keep the old content, as with rename(2).
        """
        return await self._put(path, content, mode, replace=True)

    async def create(self, path: Name, content: bytes = b"", *, mode: int = 0o644) -> FileRef:
        """A file that was not there: FileExistsError if it was, and of many that try at once one wins."""
        return await self._put(path, content, mode, replace=False)

    async def append(self, path: Name, content: bytes) -> FileRef:
        """More at the end of a file, which is made if it is not there. A reader may see a part of a long one."""
        if self._spot(path, make=True).inode is None:
            return await self._put(path, content, None, replace=False)
        async with self._opened(path, os.O_WRONLY) as inode:
            await self._settle(inode)
            await self._write_all(inode, inode.size, content)
        return self._ref(shown(path), inode)

    async def _put(self, path: Name, content: bytes, mode: int | None, *, replace: bool) -> FileRef:
        spot = self._spot(path, make=True)
        self._check_target(spot, path, replace)
        inode = self._unnamed(spot, 0o644 if mode is None else mode)
        try:
            await self._write_all(inode, 0, content)
            spot = self._spot(path, make=True)  # what was there may have changed meanwhile
            self._check_target(spot, path, replace)
            if spot.inode is not None:
                await self._inherit(inode, spot.inode, mode)  # without a size there is nothing to wait for in it
            self.session.publish(inode.ino, spot.parent, spot.name, self.caller)
        finally:
            self.session.release(inode.ino)
        return msgspec.structs.replace(self._ref(shown(path), inode), checksum=compute_checksum(content))

    def _check_target(self, spot: Spot, path: Name, replace: bool) -> None:
        if spot.inode is not None and not replace:
            raise error(errno.EEXIST, path)
        if not spot.name or (spot.inode is not None and spot.inode.is_dir):
            raise error(errno.EISDIR, path)
        if spot.inode is not None and not spot.inode.is_file:
            raise error(errno.EINVAL, path, "not a regular file")

    def _unnamed(self, spot: Spot, mode: int) -> Inode:
        """A new file in the directory, open and without a name, so that nothing is left of it after a crash."""
        name = UNNAMED % self.session.namespace.next_ino
        inode = self.session.create(spot.parent, name, mode, self.caller)
        self.session.unlink(spot.parent, name, self.caller)
        return inode

    async def _inherit(self, inode: Inode, before: Inode, mode: int | None) -> None:
        """The new file is like the old one in all but content. What the persistence said goes with the path."""
        for name, value in (before.xattrs or {}).items():
            self.session.setxattr(inode.ino, name, value, self.caller)
        kept = stat.S_IMODE(before.mode) if mode is None else mode
        await self.session.setattr(inode.ino, Changes(mode=kept, uid=before.uid, gid=before.gid), self.caller)

    async def _write_all(self, inode: Inode, offset: int, content: bytes) -> None:
        view = memoryview(content)
        while view:
            taken = await self.session.write(inode.ino, offset, bytes(view[:PIECE]))
            offset += taken
            view = view[taken:]
            await trio.lowlevel.checkpoint()

    @contextlib.asynccontextmanager
    async def _opened(self, path: Name, flags: int) -> AsyncIterator[Inode]:
        inode = self._there(path)
        await self.session.open_file(inode.ino, flags, self.caller)
        try:
            yield inode
        finally:
            self.session.release(inode.ino)

    # ---- names

    async def exists(self, path: Name) -> bool:
        """Whether a file or directory is there. What keeps that from being found out is raised."""
        try:
            self._there(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    async def stat(self, path: Name, *, checksum: bool = False) -> FileRef:
        """What is known about a file. With `checksum` its content is read for the SHA-256."""
        inode = self._there(path)
        if not inode.is_file:
            raise error(errno.EISDIR if inode.is_dir else errno.EINVAL, path)
        await self._settle(inode)
        ref = self._ref(shown(path), inode)
        if checksum:
            ref = msgspec.structs.replace(ref, checksum=compute_checksum(await self.read(path)))
        return ref

    async def list(self, directory: Name = "", pattern: str | None = None) -> FileRefs:
        """All files in the directory and below it, by path. `pattern` is a glob as in a `.gitignore` (vfs.globs),
        anchored there: `*.md` at any depth, `src/**/*.py`. Symlinks are not followed, and not files."""
        top = self._there(directory)
        if not top.is_dir:
            raise error(errno.ENOTDIR, directory)
        prefix = shown(directory)
        globs = None if pattern is None else Globs([pattern])
        found = []
        for path, inode in self._below(top, prefix, globs):
            await self._settle(inode)
            found.append(self._ref(path, inode))
            if len(found) % 500 == 0:
                await trio.lowlevel.checkpoint()
        return sorted(found, key=lambda ref: os.fsencode(ref.path))

    async def delete(self, path: Name, *, recursive: bool = False, missing_ok: bool = True) -> None:
        """The name is gone. What is not there counts as deleted, unless `missing_ok` is False; a directory goes with
        all that is in it if `recursive`, and is EISDIR otherwise. A symlink goes, not what it leads to."""
        try:
            spot = self._spot(path, follow=False)
            if spot.inode is None:
                raise error(errno.ENOENT, path)
        except (FileNotFoundError, NotADirectoryError):
            if missing_ok:
                return
            raise
        if not spot.inode.is_dir:
            self.session.unlink(spot.parent, spot.name, self.caller)
        elif not recursive:
            raise error(errno.EISDIR, path)
        elif not spot.name:
            raise error(errno.EBUSY, path)
        else:
            await self._empty(spot.inode)
            self.session.rmdir(spot.parent, spot.name, self.caller)

    async def clear(self) -> None:
        """Delete everything."""
        await self._empty(self.session.getattr(ROOT))

    async def _empty(self, directory: Inode) -> None:
        for dentry in list(self.session.readdir(directory.ino, 0)):
            if dentry.inode.is_dir:
                await self._empty(dentry.inode)
                self.session.rmdir(directory.ino, dentry.name, self.caller)
            else:
                self.session.unlink(directory.ino, dentry.name, self.caller)
            await trio.lowlevel.checkpoint()

    async def move(self, old: Name, new: Name, *, replace: bool = False) -> None:
        """A file, or a directory with all that is in it, gets another path; directories on the way are made.

        FileExistsError if there is something, unless `replace`: then as rename(2). The same path twice is nothing.
        """
        source = self._spot(old, follow=False)
        if source.inode is None:
            raise error(errno.ENOENT, old)
        if parts(old) == parts(new):
            return
        target = self._spot(new, follow=False, make=True)
        if not (source.name and target.name):
            raise error(errno.EBUSY, new if source.name else old)
        flags = 0 if replace else RENAME_NOREPLACE
        self.session.rename(source.parent, source.name, target.parent, target.name, flags, self.caller)

    async def mkdir(self, path: Name, *, mode: int = 0o755, exist_ok: bool = True) -> None:
        """A directory, and those on the way to it."""
        spot = self._spot(path, make=True)
        if spot.inode is None:
            self.session.mkdir(spot.parent, spot.name, mode, self.caller)
        elif not (exist_ok and spot.inode.is_dir):
            raise error(errno.EEXIST, path)

    # ---- metadata

    async def metadata(self, path: Name) -> dict[str, str]:
        """The `user.*` xattrs, without that prefix: those that were set, and what the persistence said of the file."""
        return self._metadata(self._there(path))

    async def set_metadata(self, path: Name, metadata: Mapping[str, str | None]) -> None:
        """Set these (a title, tags ...) and leave the others; None takes one away. The persistence gets them with the
        file, in `context["metadata"]`. What the persistence itself said can be overridden, and taken away until it says
        something else."""
        inode = self._there(path)
        await self._settle(inode)
        for key, value in metadata.items():
            name = b"user." + os.fsencode(key)
            if value is not None:
                self.session.setxattr(inode.ino, name, os.fsencode(value), self.caller)
            elif name in self.session.listxattr(inode.ino):
                self.session.removexattr(inode.ino, name, self.caller)

    def _metadata(self, inode: Inode) -> dict[str, str]:
        names = [name for name in self.session.listxattr(inode.ino) if name.startswith(b"user.")]
        return {os.fsdecode(name[5:]): os.fsdecode(self.session.getxattr(inode.ino, name)) for name in names}

    # ---- from elsewhere

    async def sync_from_remote(self, descriptors: Iterable[Descriptor], fetch: Fetch) -> FileRefs:
        """Land files that were made elsewhere: each descriptor's `path` (or `filename`), with the content that
        `fetch(descriptor)` gives, sync or async. EINVAL for a descriptor without a usable path, before any is
        written."""
        from vfs.storage.base import land  # the package of storages imports boto3, and most sessions do without

        return await land(self.write, descriptors, fetch)

    # ---- the session as a whole

    async def refresh(self) -> Refreshed:
        """Take up now what others changed in the persistences; nothing in a session that has none."""
        persisted = self._persisted()
        from vfs.refresh import Refreshed

        return Refreshed() if persisted is None else await persisted.refresh()

    async def add_route(self, route: Route) -> Refreshed:
        """A persistence for a directory, in a session that is in use: what is there goes to it, what it has appears.
        ValueError if the directory has a route already, ENOTEMPTY if it has files that are kept elsewhere, ENOTSUP for
        a session that was opened without any route, or what listing it raises; nothing has changed then."""
        persisted = self._persisted()
        if persisted is None:
            raise error(errno.ENOTSUP, self.session.id, "it was opened without routes")
        return await persisted.add_route(route)

    async def stats(self) -> Stats:
        """How many files and bytes are where."""
        return await count(self.session, self._persisted())

    async def reset(self, *, force: bool = False) -> Reset:
        """Drop clean content that is kept here and list the persistences anew. Unsaved changes stay, unless `force`
        gives them up. ENOTSUP for a session that is nowhere but here."""
        persisted = self._persisted()
        if persisted is None:
            raise error(errno.ENOTSUP, self.session.id, "nothing but this session has its files")
        from vfs.reset import reset

        return await reset(persisted, force=force)

    def register(self, files: Iterable[FileRef | str]) -> None:
        """Files that are known to be in the persistence are in the session, without being read or listed: all, or
        none (EEXIST, EINVAL; ENOTSUP where there is no persistence to read them from)."""
        persisted = self._persisted()
        if persisted is None:
            raise error(errno.ENOTSUP, self.session.id, "there is no persistence that could have them")
        from vfs.reset import register

        register(persisted, files)

    def _persisted(self) -> PersistedSession | None:
        from vfs.persisted import PersistedSession  # a Session itself, so it cannot be imported before that

        return self.session if isinstance(self.session, PersistedSession) else None

    # ---- paths

    def _there(self, path: Name) -> Inode:
        inode = self._spot(path).inode
        if inode is None:
            raise error(errno.ENOENT, path)
        return inode

    def _spot(self, path: Name, *, follow: bool = True, make: bool = False) -> Spot:
        return find(self.session, path, self.caller, follow=follow, make=make)

    def _below(self, top: Inode, prefix: str, globs: Globs | None) -> Iterator[tuple[str, Inode]]:
        stack = [(top.ino, prefix, frozenset() if globs is None else globs.start)]
        while stack:
            ino, prefix, walk = stack.pop()
            for dentry in list(self.session.readdir(ino, 0)):
                name = os.fsdecode(dentry.name)
                path = f"{prefix}/{name}" if prefix else name
                below, matched = (walk, True) if globs is None else globs.step(walk, name, dentry.inode.is_dir)
                if dentry.inode.is_dir:
                    stack.append((dentry.inode.ino, path, below))
                elif matched and dentry.inode.is_file:
                    yield path, dentry.inode

    async def _settle(self, inode: Inode) -> None:
        """The size of a file that was listed as a bare path is found out."""
        if inode.remote and inode.is_file:
            await self.session.settle(inode)

    def _ref(self, path: str, inode: Inode) -> FileRef:
        held = self.session.namespace.remote.newest(inode.ino)
        clean = held is not None and held[1].generation == inode.generation
        return FileRef(
            path=path,
            size=inode.size,
            content_type=guess_content_type(path),
            created_at=datetime.fromtimestamp(inode.ctime_ns / 1e9, UTC),
            version=held[1].version if held is not None and clean else None,
            mtime_ns=inode.mtime_ns,
            mode=stat.S_IMODE(inode.mode),
            metadata=self._metadata(inode),
        )
