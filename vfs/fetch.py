"""Fetches: blocks on their way from the persistence into backing files.

Each block is fetched once however many readers want it, by a task of the session, so a reader that goes away takes
nothing with it; only who wants a block that a stream has not come near does not wait for that. `Hydration` is who asks;
`Fills` brings what comes into the backing file.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import cachetools
import trio

from vfs.blockmap import BLOCK
from vfs.callbacks import PIECE, Context
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
STREAM = 128  # of one that is answered in pieces
AT_ONCE = 16  # requests in flight
STREAMS = 8  # in flight beside them
NEAR = 2  # pieces of a stream that who wants one waits for
PAUSES = (0.1, 0.5, 2.0)  # seconds before each retry
WAITED = 1.0  # seconds; who got nothing after so many is not made to wait for the same once more:
AGAIN = 0.1  # the kernel asks a second time for one read(2), within so many seconds
SOON = 10.0  # seconds after a long wait for a file's size in which it is not asked for anew
LONG = 5.0  # a persistence that took so many seconds to fail has tried again by itself


class _Fetch:
    """`blocks` of a file on their way, -1 for all of it: `here` when who reads them can have them, `done` when they are
    in the backing file; `is_near` when they are asked for or their stream comes to them."""

    __slots__ = ("blocks", "done", "error", "here", "is_near")

    def __init__(self, blocks: Sequence[int]) -> None:
        self.blocks = blocks
        self.is_near = False
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
        self._streams = trio.Semaphore(STREAMS)
        self._unsized: cachetools.TTLCache[int, OSError] = cachetools.TTLCache(10_000, SOON, timer=trio.current_time)
        self._told: cachetools.TTLCache[int, OSError] = cachetools.TTLCache(1000, AGAIN, timer=trio.current_time)

    async def settle(self, inode: Inode) -> None:
        """Find out the size of a file that was listed as a bare path. Who asks again soon after a long wait for nothing
        (`ls -l`, of file after file) gets the same error."""
        if (failed := self._unsized.get(inode.ino)) is not None:
            raise failed.with_traceback(None)
        [fetch] = self._begin(inode, [-1])
        await self._wait(fetch, fetch.done)

    async def need(
        self, inode: Inode, first: int, end: int, reading: tuple[int, int] | None = None, *, at_once: bool = True
    ) -> bool:
        """The blocks are here, or the file is no more; whether that had to be waited for. Errors are those of the
        persistence, EIO where it says that nothing is there. For who is `reading` (offset, end) it is enough that the
        bytes are in memory: a slow disk holds up nobody who reads."""
        waited = False
        if (told := self._told.pop(inode.ino, None)) is not None:
            raise told.with_traceback(None)
        while self._is_wanted(inode):
            absent = list(self.hydration.map(inode).absent(first, end))
            if not absent or (reading is not None and self.hydration.fresh.has(inode, *reading)):
                break
            waited = True
            began = trio.current_time()
            try:
                for fetch in self.start(inode, absent, at_once=at_once):
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

    def start(self, inode: Inode, blocks: Iterable[int], *, at_once: bool = False) -> list[_Fetch]:
        """Have the blocks fetched, in runs, unless they are already (`at_once`: and are near); what to wait for."""
        blocks, waiting, run = list(blocks), dict[_Fetch, None](), list[int]()
        if blocks and not self._by_range(inode):
            return self._begin(inode, [-1])
        longest = SPAN if at_once else self.longest(inode)
        for block in blocks:
            running = self._running.get((inode.ino, block))
            if running is not None and (running.is_near or not at_once):
                waiting[running] = None
            elif run and block == run[-1] + 1 and len(run) < longest:
                run.append(block)
            else:
                waiting.update(dict.fromkeys(self._begin(inode, run)))
                run = [block]
        waiting.update(dict.fromkeys(self._begin(inode, run)))
        return list(waiting)

    def longest(self, inode: Inode) -> int:
        """Blocks that are fetched by one request at most."""
        persistence = self._persistence(inode)
        return STREAM if persistence is not None and persistence.streams else SPAN

    def _by_range(self, inode: Inode) -> bool:
        if self.namespace.remote.newest(inode.ino) is None:
            return True
        persistence = self._persistence(inode)
        return persistence is not None and "on_read_range" in persistence.can

    def _persistence(self, inode: Inode) -> Persistence | None:
        newest = self.namespace.remote.newest(inode.ino)
        return None if newest is None else self.session.place(newest[0]).route.persistence

    def _begin(self, inode: Inode, blocks: Sequence[int]) -> list[_Fetch]:
        """Fetch these blocks, which follow each other; [-1]: the whole file."""
        if blocks == [-1] and (running := self._running.get((inode.ino, -1))) is not None:
            return [running]
        size = SPAN if len(blocks) <= SPAN else PIECE // BLOCK
        fetches = [_Fetch(blocks[at : at + size]) for at in range(0, len(blocks), size)]
        for nth, fetch in enumerate(fetches):
            fetch.is_near = nth < NEAR
            for block in fetch.blocks:
                self._running[inode.ino, block] = fetch
        if fetches:
            self.session.spawn(self._run, inode, deque(fetches))
        return fetches

    async def _run(self, inode: Inode, fetches: deque[_Fetch]) -> None:
        began, failed = trio.current_time(), None
        try:
            async with self._slots if len(fetches) == 1 else self._streams:
                await self._persistently(inode, fetches)
        except OSError as e:
            failed = e
            if inode.ino in self.hydration.unsized and trio.current_time() > began + LONG:
                self._unsized[inode.ino] = e
        except Exception as e:
            log.exception("%s: fetching content of inode %d failed", self.session.id, inode.ino)
            failed = error(errno.EIO, f"inode {inode.ino}", f"{type(e).__name__}: {e}")
        finally:
            for fetch in fetches:
                self._finish(inode, fetch, failed)

    def _finish(self, inode: Inode, fetch: _Fetch, failed: OSError | None = None) -> None:
        for block in fetch.blocks:
            if self._running.get((inode.ino, block)) is fetch:
                del self._running[inode.ino, block]
        fetch.error = failed
        fetch.here.set()
        fetch.done.set()

    async def _persistently(self, inode: Inode, fetches: deque[_Fetch]) -> None:
        """A few tries, after each that brought nothing; at once where the path or the version has changed meanwhile."""
        tries = 0
        while tries <= len(PAUSES):
            began, left = trio.current_time(), len(fetches)
            source = self._source(inode)
            try:
                await self._once(inode, fetches, *source)
                return
            except Conflict as e:
                tries += 1
                if self._source(inode) == source:
                    await self._changed(inode, *source, e)
            except OSError as e:
                if not self._is_wanted(inode):
                    return
                tries = 1 if len(fetches) < left else tries + 1
                if isinstance(e, FileNotFoundError):
                    await self._moved(source[0])
                if self._source(inode) != source:
                    continue
                final = isinstance(e, FileNotFoundError) or e.errno == errno.EFBIG
                if final or tries > len(PAUSES) or trio.current_time() > began + LONG:
                    raise
                log.warning("%s: %s cannot be read: %s; it is tried again", self.session.id, os.fsdecode(source[0]), e)
                await trio.sleep(PAUSES[tries - 1])
        raise error(errno.EIO, f"inode {inode.ino}", "it changes in the persistence faster than it can be read")

    async def _moved(self, path: bytes) -> None:
        """No move from there may have been carried out without our knowing any more, unless that takes LONG."""
        writeback = self.session.writeback
        if any(self.namespace.remote.leaving(path)):
            writeback.hurry()
        with trio.move_on_after(LONG):
            while any(self.namespace.remote.leaving(path)):
                await writeback.progressed.wait()

    def _is_wanted(self, inode: Inode) -> bool:
        """Whether the file is there, and not all of it here."""
        return inode.remote and self.namespace.inodes.get(inode.ino) is inode

    def _source(self, inode: Inode) -> tuple[bytes, Entry]:
        newest = self.namespace.remote.newest(inode.ino)
        if newest is None:
            raise error(errno.EIO, f"inode {inode.ino}", "the persistence does not hold its content any more")
        return newest

    async def _once(self, inode: Inode, fetches: deque[_Fetch], path: bytes, entry: Entry) -> None:
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
        elif fetches[0].blocks[0] < 0:
            content = await persistence.read(name, context)
            if len(content) != entry.size:
                raise Conflict(name)
            await self._fills.into(inode, entry, content, 0)
        elif len(fetches) == 1:
            view = await persistence.read_view(name, *_extent(fetches, entry.size), context)
            await self._arrived(inode, fetches, path, entry, view)
        else:
            stream = persistence.read_stream(name, *_extent(fetches, entry.size), context)
            async with contextlib.aclosing(stream) as pieces:
                async for piece in pieces:
                    await self._arrived(inode, fetches, path, entry, piece)
                    if not self._is_wanted(inode):
                        return
            if fetches:
                raise Conflict(name)

    async def _arrived(
        self, inode: Inode, fetches: deque[_Fetch], path: bytes, entry: Entry, piece: bytes | memoryview
    ) -> None:
        fetch = fetches[0]
        offset, size = _extent([fetch], entry.size)
        if len(piece) != size:
            raise Conflict(os.fsdecode(path))
        for near in itertools.islice(fetches, 1, 1 + NEAR):
            near.is_near = True
        if inode.remote and self.hydration.map(inode).lacks(fetch.blocks):
            self.hydration.fresh.keep(inode, entry.generation, offset, piece)
        fetch.here.set()
        await self._fills.into(inode, entry, piece, fetch.blocks[0])
        fetches.popleft()
        self._finish(inode, fetch)

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
        # What was written here is kept: write-back finds the conflict, and saves it beside the other version.
        self.hydration.give_up(inode)


def _extent(fetches: Sequence[_Fetch], limit: int) -> tuple[int, int]:
    """Offset and size of all their blocks together, in a file of `limit` bytes."""
    offset = fetches[0].blocks[0] * BLOCK
    return offset, min((fetches[-1].blocks[-1] + 1) * BLOCK, limit) - offset
