"""A receipt: what a sync or a stop leaves behind."""

from __future__ import annotations

import msgspec

__all__ = ["Pending", "Receipt", "StoredFile"]


class StoredFile(msgspec.Struct, frozen=True):
    """A file that the persistence has acknowledged, as what version (an ETag, say)."""

    size: int
    version: str | None


class Pending(msgspec.Struct, frozen=True):
    """A path that the persistence does not hold as it should, and the last error."""

    path: str
    error: str
    tries: int


class Receipt(msgspec.Struct, frozen=True):
    """Files and bytes in the session, and changes that are not yet persisted; where there is a persistence, also what
    it has stored since the last sync, by path, and (the first thousand of) what is pending."""

    session: str
    files: int
    bytes: int
    pending: int
    stored: dict[str, StoredFile] = {}
    reasons: list[Pending] = []
