"""Storages: where a session's files are kept. `open_storage` makes one from what `--storage` says; `OpenSession` is
the other way round: a session that is open, as a Storage."""

from __future__ import annotations

from vfs.storage.base import Storage, StoragePersistence, as_persistence
from vfs.storage.local import LocalStorage
from vfs.storage.opened import OpenSession
from vfs.storage.url import open_storage

__all__ = ["LocalStorage", "OpenSession", "Storage", "StoragePersistence", "as_persistence", "open_storage"]
