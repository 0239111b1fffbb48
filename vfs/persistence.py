"""A persistence: any object with callbacks, in the one async form that write-back and hydration call.

Paths are the session's here (relative, no leading slash, `surrogateescape`); the callbacks see them with a leading
slash, and without the route's base directory where `strip_base` says so. What comes back is checked: a wrong type is
EIO with a log line that names the callback and the path, never a surprise further in. The scope is handed on as it
is; nothing here compares, prints or keeps anything of it. `vfs.call` says how a callback is run and how its failures
become OSErrors.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import io
import itertools
import logging
import os
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Literal, cast

import trio

from vfs import callbacks, listing
from vfs.answers import Answers, is_sequence
from vfs.call import AsyncLibrary, Caller
from vfs.callbacks import PIECE, Change, Context
from vfs.fileref import FileRef
from vfs.listing import UNKNOWN_SIZE
from vfs.telemetry import Call, Telemetry

__all__ = ["UNKNOWN_SIZE", "Persistence"]

log = logging.getLogger(__name__)

MAX_FILE_SIZE = 64 << 20
SLOWEST = 1 << 20  # bytes a second that a transfer may take before it counts as hanging
RANGE = 1 << 20
SMALL = 64 << 10  # bytes that are read from a file at once; the way to a thread and back costs more
COMPLAINTS = 100  # log lines about entries of one listing


class Persistence:
    """`target`'s callbacks for one scope.

    `context`: what every call is told (session_id, agent_id ...). `timeout`: seconds for a call, to which a second
    for each MiB moved is added. `threads`: sync callbacks at a time. `max_file_size`: bytes of content that may be
    held in memory, which matters where on_read_range or on_write_file is absent. `owned`: `aclose` closes the target
    too. `can`: names of the callbacks that are there; `writes`, `reads`: whether content can be brought there, and
    from there; `streams`: whether there is `read_stream`; `takes_many`, `deletes_many`: whether `write_many` is better
    than many `write`, and `delete_many` than many `delete`; `telemetry`: what its calls took.
    """

    def __init__(
        self,
        target: object,
        scope: object = None,
        name: str = "callbacks",
        *,
        context: Context | None = None,
        base_directory: str = "",
        strip_base: bool = False,
        timeout: float = 30.0,
        threads: int = 16,
        max_file_size: int = MAX_FILE_SIZE,
        async_library: AsyncLibrary | None = None,
        owned: bool = False,
    ) -> None:
        self.name = name
        self.timeout = timeout
        self.max_file_size = max_file_size
        self.base_directory = base_directory.strip("/")
        self.skipped: dict[str, str] = {}
        self._prefix = f"{self.base_directory}/" if strip_base and self.base_directory else ""
        self._target = target if owned else None
        self._asked = target
        self._given = target
        self._scope = scope
        self._known = cast(Context, {**(context or {}), "base_directory": self.base_directory})
        self._caller = Caller(name, callbacks.discover(target), target, threads=threads, async_library=async_library)
        self._answers = Answers(self._caller)
        self.telemetry = Telemetry()
        self.can = self._caller.callbacks
        self.writes = not self.can.isdisjoint({"on_write", "on_write_file", "on_commit"})
        self.reads = not self.can.isdisjoint({"on_read", "on_read_range"})
        self.streams = {"on_read_range", "on_read_stream"} <= self.can
        self.takes_many = "on_write_many" in self.can or self._caller.is_sync("on_write")
        self.deletes_many = self._caller.is_sync("on_delete")

    @property
    def retried(self) -> int:
        """Requests that write which the target has made again by itself, where it counts them."""
        found = getattr(self._given, "retried_writes", 0)
        return found if isinstance(found, int) else 0

    @property
    def largest_write(self) -> int | None:
        """Bytes of the largest file that can be written; None: no limit."""
        return None if self.can & {"on_write_file", "on_commit"} else self.max_file_size

    @property
    def largest_read(self) -> int | None:
        return None if "on_read_range" in self.can else self.max_file_size

    @property
    def left_out(self) -> dict[str, str]:
        """What was listed last and cannot be a file, and why; a storage's own `misfits` too."""
        misfits = getattr(self._asked, "misfits", ())
        return {**{misfit.key: misfit.why for misfit in misfits}, **self.skipped}

    @property
    def is_asked_by_name(self) -> bool:
        """Whether a name that is not known has to be asked for, as nothing lists it."""
        return "on_list" not in self.can and (self.reads or "on_stat" in self.can)

    def for_scope(self, scope: object) -> Persistence:
        """The same callbacks, threads and limits for another scope."""
        other = copy.copy(self)
        other._scope = scope
        other.skipped = {}
        return other

    async def list(self, context: Context | None = None) -> list[FileRef]:
        """All files, with relative paths. Size UNKNOWN_SIZE where only a path was listed.

        What cannot be a file is left out, logged, and in `skipped` (path -> reason) until the next listing.
        """
        answer = await self._call("on_list", "/", "list", context)
        if isinstance(answer, str | bytes | Mapping) or not isinstance(answer, Iterable):
            raise self._caller.bad_answer("on_list", "/", "paths or FileRefs", answer)
        before, self.skipped = self.skipped, {}
        subject = f"{self.name}: on_list"
        files = listing.checked(answer, self._inward, lambda path, why: self._skip(path, why, before), subject)
        if len(self.skipped) > COMPLAINTS:
            log.warning("%s: on_list: %d entries left out in all", self.name, len(self.skipped))
        return files

    async def stat(self, path: str, context: Context | None = None) -> FileRef:
        answer = await self._call("on_stat", path, "stat", context, self._outward(path))
        if answer is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if not isinstance(answer, FileRef):
            raise self._caller.bad_answer("on_stat", path, "FileRef or None", answer)
        return self._answers.ref("on_stat", path, answer)

    async def read(self, path: str, context: Context | None = None) -> bytes:
        """The whole content, at most `max_file_size` bytes (EFBIG)."""
        context = context or {}
        self._fits(path, context.get("size", 0), "on_read_range")
        if "on_read" not in self.can:
            return await self._read_by_ranges(path, context)
        answer = await self._call("on_read", path, "read", context, self._outward(path))
        content = self._answers.content("on_read", path, answer)
        self._fits(path, len(content), "on_read_range")
        return content

    async def _read_by_ranges(self, path: str, context: Context) -> bytes:
        content = bytearray()
        while True:
            part = await self.read_range(path, len(content), RANGE, context)
            content += part
            self._fits(path, len(content), "on_read_range")
            if len(part) < RANGE:
                return bytes(content)

    async def read_range(self, path: str, offset: int, size: int, context: Context | None = None) -> bytes:
        """`size` bytes from `offset`; fewer only at the file's end."""
        return bytes(await self.read_view(path, offset, size, context))

    async def read_view(self, path: str, offset: int, size: int, context: Context | None = None) -> bytes | memoryview:
        """As `read_range`; a view of bytes that nobody changes is not copied."""
        arguments = (self._outward(path), offset, size)
        answer = await self._call("on_read_range", path, "read", context, *arguments, moving=size)
        return self._answers.view("on_read_range", path, answer, size)

    async def read_stream(
        self, path: str, offset: int, size: int, context: Context | None = None
    ) -> AsyncGenerator[bytes | memoryview]:
        """As `read_view`, in pieces of PIECE bytes, where that `streams`."""
        arguments = (self._scope, self._outward(path), offset, size, self._told(context, "read"))
        timeout = self.timeout + PIECE / SLOWEST
        with self.telemetry.measured(Call(self.name, "on_read_stream", path, size)):
            values = self._caller.values("on_read_stream", path, timeout, *arguments)
            pieces = self._answers.pieces("on_read_stream", path, values, size)
            async with contextlib.aclosing(values), contextlib.aclosing(pieces):
                async for piece in pieces:
                    yield piece

    async def write(self, path: str, content: bytes, context: Context | None = None) -> FileRef:
        """Create or replace the file. Answers what is known about it there: version, metadata ..."""
        context = cast(Context, {**(context or {}), "size": len(content)})
        if "on_write" not in self.can:
            return await self.write_file(path, io.BytesIO(content), context)
        self._fits(path, len(content), "on_write_file")
        answer = await self._call("on_write", path, "write", context, self._outward(path), content, moving=len(content))
        return self._answers.outcome("on_write", path, answer, context)

    async def write_file(self, path: str, file: BinaryIO, context: Context | None = None) -> FileRef:
        """As `write`, from a seekable file that is at its beginning, in bounded memory where the callbacks allow
        it."""
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        context = cast(Context, {**(context or {}), "size": size})
        if "on_write_file" in self.can:
            answer = await self._call("on_write_file", path, "write", context, self._outward(path), file, moving=size)
            return self._answers.outcome("on_write_file", path, answer, context)
        if "on_write" in self.can:
            self._fits(path, size, "on_write_file")
            content = file.read() if size <= SMALL else await trio.to_thread.run_sync(file.read)
            return await self.write(path, content, context)
        [ref] = await self.commit([Change("write", path, context, file=file)], context)
        if ref is None:
            raise AssertionError("a write answers a FileRef")
        return ref

    async def delete(self, path: str, context: Context | None = None) -> None:
        """Delete the file; one that is not there counts as deleted."""
        try:
            if "on_delete" in self.can or "on_commit" not in self.can:
                await self._call("on_delete", path, "delete", context, self._outward(path))
            else:
                await self.commit([Change("delete", path, context or {})], context)
        except FileNotFoundError:
            log.debug("%s: on_delete(%r): was not there", self.name, path)

    async def move(self, old: str, new: str, context: Context | None = None) -> FileRef:
        arguments = (self._outward(old), self._outward(new))
        copied = (context or {}).get("size", 0)  # there, by a server that has no rename
        answer = await self._call("on_move", old, "move", context, *arguments, copied=copied)
        return self._answers.outcome("on_move", new, answer, context or {})

    async def commit(self, changes: Sequence[Change], context: Context | None = None) -> Sequence[FileRef | None]:
        """Carry out all changes or none. Answers for each write and move what `write` would, for each delete None."""
        answer = await self._call_many("on_commit", "commit", changes, context)
        if answer is None:
            answer = [None] * len(changes)
        if not is_sequence(answer) or len(answer) != len(changes):
            raise self._caller.bad_answer("on_commit", changes[0].path, f"{len(changes)} outcomes or None", answer)
        return [
            None
            if change.kind == "delete"
            else self._answers.outcome("on_commit", change.path, outcome, change.context)
            for change, outcome in zip(changes, answer, strict=True)
        ]

    async def write_many(self, changes: Sequence[Change], context: Context | None = None) -> Sequence[FileRef]:
        """Write small files, where that `takes_many`. Answers for the first of them what `write` would, as many as were
        written."""
        if "on_write_many" not in self.can:
            return await self._write_each(changes)
        answer = await self._call_many("on_write_many", "write", changes, context)
        if not is_sequence(answer) or len(answer) > len(changes):
            raise self._caller.bad_answer("on_write_many", changes[0].path, f"at most {len(changes)} outcomes", answer)
        written = zip(changes, answer, strict=False)
        return [
            self._answers.outcome("on_write_many", change.path, outcome, change.context) for change, outcome in written
        ]

    async def _call_many(
        self, callback: str, operation: Literal["write", "commit"], changes: Sequence[Change], context: Context | None
    ) -> Any:
        size = sum(change.context.get("size", 0) for change in changes)
        outward = [self._change(change) for change in changes]
        return await self._call(callback, changes[0].path, operation, context, outward, moving=size)

    async def _write_each(self, changes: Sequence[Change]) -> Sequence[FileRef]:
        """By calls of a sync on_write in one thread, for a thread costs more than most of them."""
        outward = [self._change(change) for change in changes]
        contents = list(itertools.takewhile(self._is_held, (change.content() for change in outward)))
        calls = [(self._scope, c.path, content, c.context) for c, content in zip(outward, contents, strict=False)]
        answers = await self._each("on_write", changes, calls)
        refs = []
        with contextlib.suppress(OSError):
            for change, answer in zip(changes, answers, strict=False):
                refs.append(self._answers.outcome("on_write", change.path, answer, change.context))
        return refs

    async def delete_many(self, changes: Sequence[Change]) -> Sequence[None]:
        """Delete files, where that `deletes_many`. Answers None for the first of them, as many as were deleted."""
        outward = [self._change(change) for change in changes]
        calls = [(self._scope, change.path, change.context) for change in outward]
        return [None for _ in await self._each("on_delete", changes, calls)]

    async def _each(
        self, callback: str, changes: Sequence[Change], calls: Sequence[tuple[object, ...]]
    ) -> Sequence[Any]:
        """Answers of a sync callback to the first of these calls, all in one thread."""
        answers = await self._caller.call_each(callback, self.timeout, calls)
        for change, answer in zip(changes, answers, strict=False):
            size = change.context.get("size", 0)
            self.telemetry.count(Call(self.name, callback, change.path, size, answer.seconds))
        return [answer.value for answer in answers]

    def _is_held(self, content: bytes) -> bool:
        return len(content) <= self.max_file_size

    async def load_image(self, context: Context | None = None) -> tuple[bytes, str] | None:
        answer = await self._call("on_load_image", "/", "load_image", context)
        match answer:
            case None:
                return None
            case (bytes() as image, version):
                return image, self._answers.version("on_load_image", version)
        raise self._caller.bad_answer("on_load_image", "/", "(bytes, version) or None", answer)

    async def save_image(self, image: bytes, context: Context | None = None) -> str:
        answer = await self._call("on_save_image", "/", "save_image", context, image, moving=len(image))
        return self._answers.version("on_save_image", answer)

    async def aclose(self) -> None:
        """End what was started for these callbacks; the target itself where it is `owned`."""
        await self._caller.aclose()
        if self._target is not None and (close := getattr(self._target, "aclose", None)) is not None:
            await close()

    async def _call(
        self,
        callback: str,
        subject: str,
        operation: Literal["list", "stat", "read", "write", "delete", "move", "commit", "load_image", "save_image"],
        context: Context | None,
        *arguments: object,
        moving: int = 0,
        copied: int = 0,
    ) -> Any:
        if callback not in self.can:
            raise OSError(errno.ENOSYS, f"{self.name} has no {callback}", subject)
        timeout = self.timeout + (moving + copied) / SLOWEST
        with self.telemetry.measured(Call(self.name, callback, subject, moving)) as call:
            answer = await self._caller.call(
                callback, subject, timeout, self._scope, *arguments, self._told(context, operation)
            )
            if operation == "read" and isinstance(answer, bytes | bytearray | memoryview):
                call.bytes = len(answer)
            return answer

    def _told(self, context: Context | None, operation: str) -> Context:
        """What a callback is told: what is known of all calls, and of this one."""
        return cast(Context, {**self._known, **(context or {}), "operation": operation})

    def _outward(self, path: str) -> str:
        return "/" + path.removeprefix(self._prefix)

    def _inward(self, path: str) -> str:
        path = path.removeprefix("/")
        listing.check_path(path)
        path = self._prefix + path
        if self.base_directory and not path.startswith(f"{self.base_directory}/"):
            raise ValueError(f"not below the base directory {self.base_directory!r}")
        return path

    def _change(self, change: Change) -> Change:
        source = None if change.source is None else self._outward(change.source)
        told = self._told(change.context, change.kind)
        return Change(change.kind, self._outward(change.path), told, source, change.file)

    def _skip(self, path: str, reason: str, before: Mapping[str, str]) -> None:
        self.skipped[path] = reason
        if before.get(path) != reason and len(self.skipped) <= COMPLAINTS:
            log.warning("%s: on_list: %r is left out: %s", self.name, path, reason)

    def _fits(self, path: str, size: int, remedy: str) -> None:
        if size <= self.max_file_size or (remedy == "on_read_range" and "on_read" not in self.can):
            return
        log.error(
            "%s: %r has %d bytes; without %s at most max_file_size=%d are moved",
            *(self.name, path, size, remedy, self.max_file_size),
        )
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
