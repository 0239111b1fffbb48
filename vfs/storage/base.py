"""Storage: where a session's files are kept, as the storage contract names it; and any Storage as a persistence.

A backend is a class whose constructor takes its options, whose `init` binds it to one session, and whose paths are
relative. Errors are OSErrors: FileNotFoundError is "no such file", and everything else "could not tell"
(`vfs.storage.failures`).

Write-back and hydration know persistences only (`vfs.callbacks`). A backend that has those callbacks itself
(`LocalStorage`, `S3Storage`) is used as it is, with ranges, versions and moves; `StoragePersistence` gives them to
every other one."""

from __future__ import annotations

import errno
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, runtime_checkable

from vfs.callbacks import Context
from vfs.errors import error
from vfs.fileref import FileRef
from vfs.storage.keys import misfit

__all__ = ["Backend", "Fetch", "FileRefs", "Storage", "StoragePersistence", "as_persistence", "land"]

Descriptor: TypeAlias = Mapping[str, Any]
FileRefs: TypeAlias = list[FileRef]
Fetch: TypeAlias = Callable[[Descriptor], bytes | Awaitable[bytes]]


@runtime_checkable
class Storage(Protocol):
    """The contract of a backend. Paths are relative to the session."""

    async def init(self, session_id: str, **options: Any) -> Self:
        """Bind to a session and make what it needs. `options` override the constructor's, for this session."""
        ...

    async def write(self, path: str, content: bytes) -> FileRef:
        """Create or replace a file."""
        ...

    async def read(self, path: str) -> bytes:
        """The whole content. FileNotFoundError if there is no such file."""
        ...

    async def exists(self, path: str) -> bool:
        """Whether the file is there. Raises OSError where that could not be found out."""
        ...

    async def delete(self, path: str) -> None:
        """Delete a file; one that is not there counts as deleted."""
        ...

    def list(self) -> AsyncIterator[FileRef]:
        """All files, however many."""
        ...

    async def local_path(self) -> Path:
        """A local directory with the files, for a container to mount. ENOTSUP where there is none."""
        ...

    async def sync_to_remote(self) -> FileRefs:
        """Bring what is only here to the remote store; what was brought."""
        ...

    async def sync_from_remote(self, descriptors: Iterable[Descriptor], fetch: Fetch) -> FileRefs:
        """Land files that were made elsewhere: each descriptor's `path` (or `filename`), with the content that
        `fetch` gives."""
        ...

    async def cleanup(self) -> None:
        """Remove all files of the session, remote ones too, and release what is held."""
        ...


class Backend:
    """What our own backends share: `async with`, landing, and the session that they are bound to."""

    async_library = "trio"  # vfs.call: what our coroutines are written for
    _session_id: str | None = None

    @property
    def session_id(self) -> str:
        if self._session_id is None:
            raise error(errno.EINVAL, why=f"{type(self).__name__} is bound to no session; call init first")
        return self._session_id

    async def write(self, path: str, content: bytes) -> FileRef:
        raise NotImplementedError

    async def sync_from_remote(self, descriptors: Iterable[Descriptor], fetch: Fetch) -> FileRefs:
        return await land(self.write, descriptors, fetch)

    async def aclose(self) -> None:
        """Release what is held; files stay."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def land(
    write: Callable[[str, bytes], Awaitable[FileRef]], descriptors: Iterable[Descriptor], fetch: Fetch
) -> list[FileRef]:
    """Fetch each descriptor's content and write it. EINVAL for a descriptor without a usable path, before anything is
    written."""
    wanted = [(_landing_path(descriptor), descriptor) for descriptor in descriptors]
    landed: list[FileRef] = []
    for path, descriptor in wanted:
        content = fetch(descriptor)
        landed.append(await write(path, await content if inspect.isawaitable(content) else content))
    return landed


def _landing_path(descriptor: Descriptor) -> str:
    path = descriptor.get("path") or descriptor.get("filename")
    if not isinstance(path, str):
        raise error(errno.EINVAL, why=f"a descriptor has neither path nor filename: {sorted(descriptor)}")
    if (why := misfit(path)) is not None:
        raise error(errno.EINVAL, path, f"a descriptor's path {why}")
    return path


class StoragePersistence:
    """A Storage of someone else's, with the callbacks that a persistence has. Whole files only, and no versions."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.async_library = getattr(storage, "async_library", "trio")

    async def on_list(self, scope: object, context: Context) -> list[FileRef]:
        return [ref async for ref in self.storage.list()]

    async def on_read(self, scope: object, path: str, context: Context) -> bytes:
        return await self.storage.read(relative(path))

    async def on_write(self, scope: object, path: str, content: bytes, context: Context) -> FileRef:
        return await self.storage.write(relative(path), content)

    async def on_delete(self, scope: object, path: str, context: Context) -> None:
        await self.storage.delete(relative(path))

    async def aclose(self) -> None:
        if (close := getattr(self.storage, "aclose", None)) is not None:
            await close()


def as_persistence(storage: Storage) -> object:
    """`storage` as a target for `vfs.persistence.Persistence`."""
    return storage if hasattr(storage, "on_list") else StoragePersistence(storage)


def relative(path: str) -> str:
    """A persistence's path as a storage's."""
    return path.removeprefix("/")
