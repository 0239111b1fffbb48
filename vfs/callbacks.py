"""The integrator's contract: what may be called, with what, and what may come back.

Every callback is optional and may be sync or async; any object may have them: an instance, a class, a module, or a
dict of functions by name. The first argument is always the integrator's own *scope*, which we hand on and never look
at. Paths begin with `/`; bytes of a name that are not UTF-8 are lone surrogates, as `os.fsdecode` makes them. Errors
are OSErrors: FileNotFoundError says "not found", `vfs.errors.Conflict` says that `if_version` no longer holds, and
any other errno reaches the program in the container as it is. `vfs.persistence` is who calls; docs/callbacks.md says
all this for integrators.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, Protocol, TypeAlias, TypedDict, TypeVar

from vfs.errors import told
from vfs.fileref import FileRef

__all__ = [
    "ARGUMENTS",
    "Change",
    "Context",
    "FileSystemCallbacks",
    "OnCommit",
    "OnDelete",
    "OnList",
    "OnLoadImage",
    "OnMove",
    "OnRead",
    "OnReadRange",
    "OnReadStream",
    "OnSaveImage",
    "OnStat",
    "OnWrite",
    "OnWriteFile",
    "OnWriteMany",
    "Outcome",
    "PIECE",
    "discover",
    "load",
    "made",
]

T = TypeVar("T")
MaybeAsync: TypeAlias = T | Awaitable[T]
PIECE = 4 << 20  # bytes; see OnReadStream

Outcome: TypeAlias = FileRef | Mapping[str, Any] | None
"""What a write answers: metadata to keep with the file (its key "version" is the new version), a whole FileRef, or
nothing."""


class Context(TypedDict, total=False):
    """What is known about a call, beside its arguments. Which keys are there depends on `operation`."""

    session_id: str
    agent_id: str
    conversation_id: str
    operation: Literal["list", "stat", "read", "write", "delete", "move", "commit", "load_image", "save_image"]
    base_directory: str  # of the route, without slashes at its ends; "" for the default route
    mode: int  # permission bits of the file
    mtime_ns: int  # of the content, nanoseconds since the epoch
    uid: int  # owner of the file
    gid: int
    content_type: str  # MIME type guessed from the name
    size: int  # bytes of the whole content
    checksum: str  # lower-case hex SHA-256 of the whole content
    generation: int  # counts the content's changes within the session
    if_version: str | None  # the version that must still be there; None: the path must not exist; absent: do not care
    if_target: str | None  # of a move: what must be at the new path; as `if_version`
    metadata: dict[str, str]  # what earlier answers left with the file
    options: dict[str, Any]  # what the route was configured with, for the integrator's own use


@dataclass(frozen=True, slots=True)
class Change:
    """One of many changes (`on_commit`, `on_write_many`). `context` is what a call for it alone would be given."""

    kind: Literal["write", "delete", "move"]
    path: str
    context: Context
    source: str | None = None  # move: the path that it had
    file: BinaryIO | None = None  # write: the content, at its beginning; open only during the call

    def content(self) -> bytes:
        """The whole content of a write."""
        if self.file is None:
            raise ValueError(f"a {self.kind} has no content")
        self.file.seek(0)
        return self.file.read()


class OnList(Protocol):
    """All files of the scope, as paths or as FileRefs (with sizes a mount needs no further question to answer `ls
    -l`)."""

    def on_list(
        self, scope: Any, context: Context, /
    ) -> MaybeAsync[Iterable[str | FileRef]] | AsyncIterable[str | FileRef]: ...


class OnRead(Protocol):
    """The whole content. With `if_version`, of that version or Conflict."""

    def on_read(self, scope: Any, path: str, context: Context, /) -> MaybeAsync[bytes]: ...


class OnWrite(Protocol):
    """Create or replace a file."""

    def on_write(self, scope: Any, path: str, content: bytes, context: Context, /) -> MaybeAsync[Outcome]: ...


class OnDelete(Protocol):
    """Delete a file; FileNotFoundError counts as done."""

    def on_delete(self, scope: Any, path: str, context: Context, /) -> MaybeAsync[object]: ...


class FileSystemCallbacks(OnList, OnRead, OnWrite, OnDelete, Protocol):
    """The four of the original contract, for who wants to inherit or check against all of them."""


class OnStat(Protocol):
    """What `on_list` would say about one file; None: not found."""

    def on_stat(self, scope: Any, path: str, context: Context, /) -> MaybeAsync[FileRef | None]: ...


class OnMove(Protocol):
    """Rename a file on the server's side, replacing `new`. `if_version` is about `old`, `if_target` about `new`."""

    def on_move(self, scope: Any, old: str, new: str, context: Context, /) -> MaybeAsync[Outcome]: ...


class OnReadRange(Protocol):
    """`size` bytes from `offset`; fewer only where the file ends. With it no file is ever held in memory."""

    def on_read_range(
        self, scope: Any, path: str, offset: int, size: int, context: Context, /
    ) -> MaybeAsync[bytes]: ...


class OnReadStream(Protocol):
    """As `on_read_range`, for tens of MiB at once and beside it: what is read far ahead. Yields the bytes in pieces of
    any size; such of PIECE bytes are not copied."""

    def on_read_stream(
        self, scope: Any, path: str, offset: int, size: int, context: Context, /
    ) -> MaybeAsync[Iterable[bytes]] | AsyncIterable[bytes]: ...


class OnWriteFile(Protocol):
    """As `on_write`, with the content as a binary file that is open, at its beginning, during the call."""

    def on_write_file(self, scope: Any, path: str, file: BinaryIO, context: Context, /) -> MaybeAsync[Outcome]: ...


class OnWriteMany(Protocol):
    """Create or replace small files, for which calls of their own would be dear. Answers outcomes for the first of
    them, as many as were written; the others are written one by one, which tells what is wrong with which."""

    def on_write_many(
        self, scope: Any, changes: Sequence[Change], context: Context, /
    ) -> MaybeAsync[Sequence[Outcome]]: ...


class OnCommit(Protocol):
    """Carry out a whole batch, in order, all or nothing. Answers one outcome for each change, or None for all."""

    def on_commit(
        self, scope: Any, changes: Sequence[Change], context: Context, /
    ) -> MaybeAsync[Sequence[Outcome] | None]: ...


class OnLoadImage(Protocol):
    """What `on_save_image` kept last, with its version; None: nothing yet. The image says what the files cannot:
    empty directories, links, owners, xattrs."""

    def on_load_image(self, scope: Any, context: Context, /) -> MaybeAsync[tuple[bytes, str] | None]: ...


class OnSaveImage(Protocol):
    """Keep the image, on `if_version` only, and answer its new version."""

    def on_save_image(self, scope: Any, image: bytes, context: Context, /) -> MaybeAsync[str]: ...


ARGUMENTS: dict[str, tuple[str, ...]] = {
    "on_list": ("scope", "context"),
    "on_stat": ("scope", "path", "context"),
    "on_read": ("scope", "path", "context"),
    "on_read_range": ("scope", "path", "offset", "size", "context"),
    "on_read_stream": ("scope", "path", "offset", "size", "context"),
    "on_write": ("scope", "path", "content", "context"),
    "on_write_file": ("scope", "path", "file", "context"),
    "on_write_many": ("scope", "changes", "context"),
    "on_delete": ("scope", "path", "context"),
    "on_move": ("scope", "old", "new", "context"),
    "on_commit": ("scope", "changes", "context"),
    "on_load_image": ("scope", "context"),
    "on_save_image": ("scope", "image", "context"),
}


def discover(target: object) -> dict[str, Callable[..., Any]]:
    """The callbacks that `target` has, by name. TypeError names what cannot be called as the contract calls it.

    What it inherits of the Protocols above does not count: it would answer None to everything, a write too.

    A class is used as it is where its callbacks take no `self` (static methods, class methods, plain functions that
    begin with the scope), and instantiated without arguments otherwise.
    """
    if isinstance(target, Mapping):
        if unknown := sorted(str(name) for name in target if name not in ARGUMENTS):
            raise TypeError(f"not callbacks: {', '.join(unknown)}; the callbacks are {', '.join(ARGUMENTS)}")
        found = {name: target[name] for name in ARGUMENTS if target.get(name) is not None}
    else:
        target = made(target)
        functions = {name: getattr(target, name, None) for name in ARGUMENTS}
        found = {name: fn for name, fn in functions.items() if fn is not None and not _is_stub(fn)}
    if not found:
        raise TypeError(f"no callback in {_named(target)}; it needs at least one of {', '.join(ARGUMENTS)}")
    for name, function in found.items():
        _check_arguments(target, name, function)
    return found


def made(target: object) -> object:
    """An instance, where `target` is a class whose callbacks take `self`; else `target`. ValueError if it cannot be."""
    if not isinstance(target, type) or not any(_wants_self(target, name) for name in ARGUMENTS):
        return target
    try:
        return target()
    except Exception as e:
        raise ValueError(f"{target.__name__}() fails: {told(e)}") from e


def _wants_self(cls: type, name: str) -> bool:
    function = inspect.getattr_static(cls, name, None)
    if not inspect.isfunction(function) or _is_stub(function):
        return False
    return next(iter(inspect.signature(function).parameters), None) == "self"


def _is_stub(function: object) -> bool:
    return getattr(function, "__module__", None) == __name__


def _check_arguments(target: object, name: str, function: object) -> None:
    if not callable(function):
        raise TypeError(f"{name} of {_named(target)} cannot be called")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C do not tell
        return
    try:
        signature.bind(*ARGUMENTS[name])
    except TypeError as e:
        wanted = f"{name}({', '.join(ARGUMENTS[name])})"
        raise TypeError(f"{name}{signature} of {_named(target)} cannot be called as {wanted}: {e}") from e


def _named(target: object) -> str:
    """How an error may name the target; its repr could show what is the integrator's own."""
    if isinstance(target, type) or inspect.ismodule(target):
        return target.__name__
    return f"a {type(target).__qualname__}"


def load(spec: str) -> object:
    """The object that `MODULE:NAME` or `MODULE` names (`app.files:Callbacks`). ValueError says what is wrong with
    it."""
    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as e:
        raise ValueError(f"cannot import {module_name!r}: {e}") from e
    except Exception as e:
        raise ValueError(f"cannot import {module_name!r}: {told(e)}") from e
    if not name:
        return module
    try:
        target: object = functools.reduce(getattr, name.split("."), module)
    except AttributeError as e:
        raise ValueError(str(e)) from e
    return target
