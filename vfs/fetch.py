"""Fetches: blocks on their way from the persistence into backing files.

Each block is fetched once however many readers want it, by a task of the session, so a reader that goes away takes
nothing with it. `Hydration` is who asks; `Fills` brings what comes into the backing file.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import cachetools
import trio

from vfs.blockmap import BLOCK
from vfs.callbacks import Context
from vfs.errors import Conflict, error
from vfs.fill import Fills
from vfs.inode import Inode
from vfs.persistence import Persistence
from vfs.records import Renewed
from vfs.remote import UNKNOWN_SIZE, Entry
from vfs.sizes import measure

if TYPE_CHECKING:
    from vfs.hydrate import Hydration
    from vfs.persisted import PersistedSession

__all__ = ["SPAN", "Fetches"]

log = logging.getLogger(__name__)

SPAN = 32  # blocks of one request at most: 8 MiB
AT_ONCE = 16  # requests in flight
PAUSES = (0.1, 0.5, 2.0)  # seconds before each retry
WAITED = 1.0  # seconds; who got nothing after so many is not made to wait for the same once more:
AGAIN = 0.1  # the kernel asks a second time for one read(2), within so many seconds
SOON = 10.0  # seconds after a long wait for a file's size in which it is not asked for anew
LONG = 5.0  # a persistence that took so many seconds to fail has tried again by itself


class _Fetch:
    """Some blocks on their way: `here` when who reads them can have them, `done` when they are in the backing file."""

    __slots__ = ("done", "error", "here")

    def __init__(self) -> None:
        self.here = trio.Event()
        self.done = trio.Event()
        self.error: OSError | None = None


class Fetches:
    def __init__(self, session: PersistedSession, hydration: Hydration, fills: Fills) -> None:
        self.session = session
        self.namespace = session.namespace
        self.hydration = hydration
        self._fills = fills
        self._running: dict[tuple[int, int], _Fetch] = {}
        self._slots = trio.Semaphore(AT_ONCE)
        self._unsized: cachetools.TTLCache[int, OSError] = cachetools.TTLCache(10_000, SOON, timer=trio.current_time)
        self._told: cachetools.TTLCache[int, OSError] = cachetools.TTLCache(1000, AGAIN, timer=trio.current_time)

    async def settle(self, inode: Inode) -> None:
        """Find out the size of a file that was listed as a bare path. Who asks again soon after a long wait for nothing
        (`ls -l`, of file after file) gets the same error."""
        if (failed := self._unsized.get(inode.ino)) is not None:
            raise failed.with_traceback(None)
        fetch = self._begin(inode, -1)
        await self._wait(fetch, fetch.done)

    async def need(self, inode: Inode, first: int, end: int, reading: tuple[int, int] | None = None) -> bool:
        """The blocks are here, or the file is no more; whether that had to be waited for. Errors are those of the
        persistence, EIO where it says that nothing is there. For who is `reading` (offset, end) it is enough that the
        bytes are in memory: a slow disk holds up nobody who reads."""
        waited = False
        if (told := self._told.pop(inode.ino, None)) is not None:
            raise told.with_traceback(None)
        while inode.remote and self.namespace.inodes.get(inode.ino) is inode:
            absent = list(self.hydration.map(inode).absent(first, end))
            if not absent or (reading is not None and self.hydration.fresh.has(inode, *reading)):
                break
            waited = True
            began = trio.current_time()
            try:
                for fetch in self.start(inode, absent):
                    await self._wait(fetch, fetch.done if reading is None or fetch.here.is_set() else fetch.here)
            except OSError as e:
                if trio.current_time() > began + WAITED:
                    self._told[inode.ino] = e
                raise
        return waited

    async def _wait(self, fetch: _Fetch, event: trio.Event) -> None:
        with trio.move_on_after(self.session.options.read_timeout):
            await event.wait()
        if not event.is_set():
            raise error(errno.EIO, None, "the persistence does not answer")
        if fetch.error is not None:
            raise fetch.error

    def start(self, inode: Inode, blocks: Iterable[int]) -> list[_Fetch]:
        """Have the blocks fetched, in runs, unless they are already; what to wait for."""
        waiting: dict[_Fetch, None] = {}
        run: list[int] = []
        whole = not self._by_range(inode)
        for block in blocks:
            running = self._running.get((inode.ino, -1 if whole else block))
            if running is not None:
                waiting[running] = None
            elif whole:
                return [self._begin(inode, -1)]
            elif run and block == run[-1] + 1 and len(run) < SPAN:
                run.append(block)
            else:
                if run:
                    waiting[self._begin(inode, *run)] = None
                run = [block]
        if run:
            waiting[self._begin(inode, *run)] = None
        return list(waiting)

    def _by_range(self, inode: Inode) -> bool:
        newest = self.namespace.remote.newest(inode.ino)
        if newest is None:
            return True
        persistence = self.session.place(newest[0]).route.persistence
        return persistence is not None and "on_read_range" in persistence.can

    def _begin(self, inode: Inode, *blocks: int) -> _Fetch:
        """Fetch these blocks, which follow each other; -1: the whole file."""
        running = self._running.get((inode.ino, blocks[0]))
        if running is not None:
            return running
        fetch = _Fetch()
        for block in blocks:
            self._running[inode.ino, block] = fetch
        self.session.spawn(self._run, inode, fetch, blocks)
        return fetch

    async def _run(self, inode: Inode, fetch: _Fetch, blocks: tuple[int, ...]) -> None:
        began = trio.current_time()
        try:
            async with self._slots:
                await self._persistently(inode, fetch, blocks)
        except OSError as e:
            fetch.error = e
            if inode.ino in self.hydration.unsized and trio.current_time() > began + LONG:
                self._unsized[inode.ino] = e
        except Exception as e:
            log.exception("%s: fetching content of inode %d failed", self.session.id, inode.ino)
            fetch.error = error(errno.EIO, f"inode {inode.ino}", f"{type(e).__name__}: {e}")
        finally:
            for block in blocks:
                del self._running[inode.ino, block]
            fetch.here.set()
            fetch.done.set()

    async def _persistently(self, inode: Inode, fetch: _Fetch, blocks: tuple[int, ...]) -> None:
        """A few tries; at once where the path or the version has changed meanwhile."""
        for pause in (*PAUSES, None):
            began = trio.current_time()
            source = self._source(inode)
            try:
                await self._once(inode, fetch, blocks, *source)
                return
            except Conflict as e:
                if self._source(inode) == source:
                    await self._changed(inode, *source, e)
            except OSError as e:
                if self.namespace.inodes.get(inode.ino) is not inode or not inode.remote:
                    return
                if self._source(inode) != source:
                    continue
                final = isinstance(e, FileNotFoundError) or e.errno == errno.EFBIG
                if final or pause is None or trio.current_time() > began + LONG:
                    raise
                log.warning("%s: %s cannot be read: %s; it is tried again", self.session.id, os.fsdecode(source[0]), e)
                await trio.sleep(pause)
        raise error(errno.EIO, f"inode {inode.ino}", "it changes in the persistence faster than it can be read")

    def _source(self, inode: Inode) -> tuple[bytes, Entry]:
        newest = self.namespace.remote.newest(inode.ino)
        if newest is None:
            raise error(errno.EIO, f"inode {inode.ino}", "the persistence does not hold its content any more")
        return newest

    async def _once(self, inode: Inode, fetch: _Fetch, blocks: tuple[int, ...], path: bytes, entry: Entry) -> None:
        persistence = self.session.place(path).route.persistence
        if persistence is None:
            raise error(errno.EIO, path, "there is no persistence to read it from")
        context: Context = {}
        if entry.version is not None:
            context["if_version"] = entry.version
        if entry.size != UNKNOWN_SIZE:
            context["size"] = entry.size
        name = os.fsdecode(path)
        if entry.size == UNKNOWN_SIZE:
            await self._size_up(persistence, inode, path, entry, context)
        elif blocks[0] < 0:
            content = await persistence.read(name, context)
            if len(content) != entry.size:
                raise Conflict(name)
            await self._fills.into(inode, entry, content, 0)
        else:
            offset = blocks[0] * BLOCK
            wanted = min(len(blocks) * BLOCK, entry.size - offset)
            view = await persistence.read_view(name, offset, wanted, context)
            if len(view) != wanted:
                raise Conflict(name)
            self.hydration.fresh.keep(inode, entry.generation, offset, view)
            fetch.here.set()
            await self._fills.into(inode, entry, view, blocks[0])

    async def _size_up(
        self, persistence: Persistence, inode: Inode, path: bytes, entry: Entry, context: Context
    ) -> None:
        """Find out the size of a file that was listed as a bare path."""
        found = await measure(persistence, os.fsdecode(path), context)
        is_absent = self._sized(inode, path, entry, found.size, found.version or entry.version, found.mtime_ns)
        if is_absent and found.content is not None:
            await self._fills.into(inode, self.namespace.remote.entries[path], found.content, 0)

    def _sized(
        self, inode: Inode, path: bytes, entry: Entry, size: int, version: str | None, mtime_ns: int | None
    ) -> bool:
        if self.namespace.remote.get(path) != entry or self.namespace.inodes.get(inode.ino) is not inode:
            return False
        mtime_ns = inode.mtime_ns if mtime_ns is None else mtime_ns
        record = Renewed(path, inode.ino, entry.generation, size, mtime_ns, version, inode.ctime_ns, entry.metadata)
        self.session.commit_foreign(record)
        self.hydration.maps.pop(inode.ino, None)
        return inode.remote

    async def _changed(self, inode: Inode, path: bytes, entry: Entry, e: Conflict) -> None:
        """The persistence holds another version. A clean file becomes that one."""
        conflicts = self.session.writeback.transfer.conflicts
        persistence = self.session.place(path).route.persistence
        if persistence is None:
            raise e
        ref = await conflicts.current(persistence, path, e.found)
        if self._source(inode) != (path, entry):
            return
        if ref is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(path))
        if inode.generation == entry.generation:
            conflicts.renew(path, inode, ref)
            return
        # Written in part over a version that is gone before the rest of it was fetched. What was written here is
        # kept: write-back finds the conflict, and saves it beside the other version, with holes for the rest.
        log.error(
            "%s: %r was written in part and changed by someone else before the rest was read", self.session.id, path
        )
        known = self.hydration.map(inode)
        known.truncate(0)
        self.hydration.check_complete(inode, known)
