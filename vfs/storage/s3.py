"""S3Storage: a session in a bucket of S3, or of anything that speaks S3.

A file is the object `<prefix><session id>/<path>`; what objects cannot say is in the image. The callbacks (`on_...`)
serve a mounted session and are conditional wherever the caller names a version; the contract's own methods serve
programs that use a storage directly.

No request is made before the first one that is needed: a session whose endpoint is down starts, and works, from its
state directory."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import msgspec
import trio

from vfs.callbacks import Change, Context
from vfs.errors import Conflict, Emptied, error
from vfs.fileref import FileRef, validate_session_id
from vfs.storage.base import Backend, FileRefs, relative
from vfs.storage.bucket import ANY, Bucket
from vfs.storage.cache import Cache
from vfs.storage.endpoint import Endpoint
from vfs.storage.failures import Unavailable, for_readers
from vfs.storage.image import Image
from vfs.storage.keys import Keys, Misfit
from vfs.storage.lease import Lease, LeaseLost
from vfs.storage.objects import Listing, Objects
from vfs.storage.probe import probe
from vfs.storage.sweep import sweep

__all__ = ["S3Storage"]

log = logging.getLogger(__name__)

COMPLAINTS = 20  # log lines about the misfits of one listing


class S3Storage(Backend):
    """Options not named here are those of `Endpoint`; `endpoint` is its `url`.

    `cache_path`: keep copies in `<cache_path>/mount-session_s3_<session id>`, at most `cache_bytes` of them, which
    gives a session that is not mounted a `local_path`. `async_upload`: with a cache, `write` returns before the
    upload; `sync_to_remote` finishes and raises what failed. `lease_seconds`: how long a writer that is not
    heard of any more keeps others out."""

    def __init__(
        self,
        bucket: str,
        *,
        prefix: str = "sessions/",
        endpoint: str | None = None,
        cache_path: str | Path | None = None,
        cache_bytes: int = 1 << 30,
        async_upload: bool = False,
        concurrency: int = 64,
        lease_seconds: float = 60.0,
        **options: Any,
    ) -> None:
        self.prefix = prefix
        self.endpoint = msgspec.convert({**options, "bucket": bucket, "url": endpoint}, Endpoint)
        self._refuse_unknown(options)
        self._cache_path = cache_path
        self._cache_bytes = cache_bytes
        self._async_upload = async_upload
        self._concurrency = concurrency
        if lease_seconds < 3:
            raise ValueError(f"lease_seconds is at least 3 (servers tell whole seconds), not {lease_seconds:g}")
        self.lease_seconds = lease_seconds
        self.mountpoint: Path | None = None
        self.misfits: tuple[Misfit, ...] = ()
        self.lease: Lease | None = None
        self.refusal: OSError | None = None
        """Why nothing may be written now."""
        self.taking_up: trio.Event | None = None
        """Set when the lease has been taken, or cannot be: until then writes wait."""
        self._probing = trio.Lock()
        self._probed = False

    @staticmethod
    def _refuse_unknown(options: dict[str, Any]) -> None:
        if unknown := options.keys() - set(Endpoint.__struct_fields__):
            ours = {"endpoint", "prefix", "cache_path", "cache_bytes", "async_upload", "concurrency", "lease_seconds"}
            known = sorted(ours.union(Endpoint.__struct_fields__) - {"url"})
            raise ValueError(f"unknown option {', '.join(sorted(unknown))}; the options are {', '.join(known)}")

    @property
    def retried_writes(self) -> int:
        return self.bucket.counts["retried writes"]

    async def init(self, session_id: str, **options: Any) -> Self:
        """Bind to a session. No request is made: `check` tells whether the bucket is there."""
        self._session_id = validate_session_id(session_id)
        self.prefix = options.pop("prefix", self.prefix)
        if options:
            self._refuse_unknown(options)
            self.endpoint = msgspec.structs.replace(self.endpoint, **options)
        self.keys = Keys(self.prefix, session_id)
        self.bucket = Bucket(self.endpoint, concurrency=self._concurrency)
        self.objects = Objects(self.bucket, self.keys)
        self.image = Image(self.bucket, self.keys.own)
        self.cache = None
        if self._cache_path is not None:
            directory = Path(self._cache_path) / f"mount-session_s3_{session_id}"
            self.cache = Cache(directory, self._cache_bytes, self.objects)
            await self.cache.open()
        return self

    async def check(self) -> None:
        """Fail now if the bucket cannot be reached or used; warn of what its endpoint cannot do."""
        await self.bucket.call(
            self.bucket.name, lambda clients: clients.boto.head_bucket(Bucket=self.bucket.name), reading=True, head=True
        )
        await self._ready()

    async def aclose(self) -> None:
        if self._session_id is not None:
            if self.cache is not None:
                self.cache.close()
            await self.bucket.aclose()

    # The storage contract

    async def write(self, path: str, content: bytes) -> FileRef:
        await self._ready()
        if self.cache is None:
            return await self.objects.write(path, content, {})
        return await self.cache.write(path, content, later=self._async_upload)

    async def read(self, path: str) -> bytes:
        if self.cache is None:
            return (await self.objects.read(path)).content
        return await self.cache.read(path)

    async def exists(self, path: str) -> bool:
        try:
            await self.objects.stat(path)
        except FileNotFoundError:
            return self.cache is not None and self.cache.is_pending(path)
        return True

    async def stat(self, path: str) -> FileRef:
        return await self.objects.stat(path)

    async def delete(self, path: str) -> None:
        if self.cache is not None:
            await self.cache.forget(path)
        await self.objects.delete(path, {})

    async def list(self) -> AsyncIterator[FileRef]:
        for ref in await self._listed():
            yield ref

    async def local_path(self) -> Path:
        if self.mountpoint is not None:
            return self.mountpoint
        if self.cache is not None:
            return self.cache.directory
        raise error(errno.ENOTSUP, why="an S3 session has a local path only while it is mounted, or with cache_path")

    async def sync_to_remote(self) -> FileRefs:
        """Upload what was written to the local path, or asynchronously; OSErrors in an ExceptionGroup for what could
        not be. Conflict: what was edited in the local path has been changed by someone else in the bucket, too. It
        stays in the local path until `write` says what the file shall be, or `delete`."""
        await self._ready()
        return [] if self.cache is None else await self.cache.sync()

    async def cleanup(self) -> None:
        """Remove everything under the session's prefix, and the cache. CleanupIncomplete says what is left."""
        if self.cache is not None:
            await self.cache.remove()
        removed = await sweep(self.bucket, self.keys.prefix, self.keys.own)
        log.info("%s: removed %d objects of session %s", self.bucket.name, removed, self.session_id)

    async def presigned_url(
        self, path: str, *, expires: int = 3600, method: Literal["get_object", "put_object"] = "get_object"
    ) -> str:
        """A URL that anyone may use for `expires` seconds."""
        return await self.objects.presigned_url(path, expires=expires, method=method)

    # The callbacks of a mounted session. The scope of a storage is the session that it is bound to.

    async def on_list(self, scope: object, context: Context) -> FileRefs:
        return await self._listed()

    async def on_stat(self, scope: object, path: str, context: Context) -> FileRef:
        return await self.objects.stat(relative(path))

    async def on_read(self, scope: object, path: str, context: Context) -> bytes:
        with for_readers(path):
            return (await self.objects.read(relative(path), context.get("if_version"))).content

    async def on_read_range(self, scope: object, path: str, offset: int, size: int, context: Context) -> memoryview:
        with for_readers(path):
            return (await self.objects.read_range(relative(path), offset, size, context.get("if_version"))).view

    async def on_read_stream(
        self, scope: object, path: str, offset: int, size: int, context: Context
    ) -> AsyncGenerator[memoryview]:
        with for_readers(path):
            stream = self.objects.read_stream(relative(path), offset, size, context.get("if_version"))
            async with contextlib.aclosing(stream) as pieces:
                async for piece in pieces:
                    yield piece

    async def on_write(self, scope: object, path: str, content: bytes, context: Context) -> FileRef:
        await self._ready()
        return await self.objects.write(relative(path), content, context)

    async def on_write_file(self, scope: object, path: str, file: BinaryIO, context: Context) -> FileRef:
        await self._ready()
        return await self.objects.write_file(relative(path), file, context)

    async def on_write_many(self, scope: object, changes: Sequence[Change], context: Context) -> FileRefs:
        await self._ready()
        return await self.objects.write_many([(relative(c.path), c.content(), c.context) for c in changes])

    async def on_delete(self, scope: object, path: str, context: Context) -> None:
        await self._ready()
        await self.objects.delete(relative(path), context)

    async def on_move(self, scope: object, old: str, new: str, context: Context) -> FileRef:
        await self._ready()
        return await self.objects.move(relative(old), relative(new), context)

    async def on_load_image(self, scope: object, context: Context) -> tuple[bytes, str] | None:
        return await self.image.load()

    async def on_save_image(self, scope: object, image: bytes, context: Context) -> str:
        await self._ready()
        try:
            return await self.image.save(image, context.get("if_version", ANY))
        except Conflict:
            await self._still_ours()
            raise

    async def _still_ours(self) -> None:
        """Someone else has written: LeaseLost, now and at every write to come, if it is the session's new holder."""
        if self.lease is not None:
            with self._refused_when_lost():
                await self.lease.renew()

    @contextlib.contextmanager
    def _refused_when_lost(self) -> Iterator[None]:
        try:
            yield
        except LeaseLost as e:
            self.refusal = e
            raise

    # The one writer

    async def acquire(self, holder: str, who: str, *, steal: bool = False) -> Lease:
        """Become the session's writer; LeaseHeld where another is. The caller runs `Lease.keep` and `Lease.release`."""
        await self._probe()
        lease = Lease(self.bucket, self.keys.own, holder, who, self.lease_seconds)
        fence = await lease.acquire(steal=steal)
        if lease.held is None:
            raise AssertionError("an acquired lease is held")
        if fence:
            await self.image.fence(lease.held.epoch)
        else:
            self.image.epoch = lease.held.epoch
        self.lease, self.refusal = lease, None
        return lease

    async def _listed(self) -> FileRefs:
        listing = await self.objects.list()
        await self._expect_own(listing)
        known = set(self.misfits)
        self.misfits = tuple(listing.misfits)
        for misfit in [one for one in self.misfits if one not in known][:COMPLAINTS]:
            log.warning("%s: key %r is left out: it %s", self.bucket.name, misfit.key, misfit.why)
        return listing.files

    async def _expect_own(self, listing: Listing) -> None:
        """While we hold the lease its object is there, unless someone emptied the prefix or made the bucket anew."""
        if self.lease is None or self.lease.held is None:
            return
        if not listing.has_own:
            await self._still_ours()
        if self.lease.vanished:
            self.lease.vanished = False
            raise Emptied(f"{self.bucket.name}/{self.keys.prefix}")

    async def _ready(self) -> None:
        """Before a write: whether one may be made, and before the first whether writes can be conditional here."""
        if self.taking_up is not None:
            with trio.move_on_after(self.endpoint.write_patience):
                await self.taking_up.wait()
            if not self.taking_up.is_set():
                raise Unavailable(self.bucket.name, "the session's lease is not taken up yet")
        if self.refusal is not None:
            raise self.refusal.with_traceback(None)
        await self._probe()
        if self.lease is not None:
            with self._refused_when_lost():
                await self.lease.confirm()

    async def _probe(self) -> None:
        if not self._probed:
            async with self._probing:
                if not self._probed:
                    await probe(self.bucket, self.keys.own)
                    self._probed = True
