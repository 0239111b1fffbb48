"""Sessions kept in your own database: a complete set of callbacks with SQLAlchemy.

    mount-session up work /mnt/work --callbacks examples.database:DatabaseFiles --scope '{"user": "alice"}'

Files belong to the user that the scope names: no query is without it, so the same path of two users is two files.
Content is kept in pieces, so that neither side ever holds a large file in memory. Every write gives the file a new
version, and goes through only if the version that the session knows is still there (`if_version`).

The database is DATABASE_URL, by default SQLite in `files.db`; tested on SQLite and PostgreSQL.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

from sqlalchemy import (
    BigInteger,
    DateTime,
    Engine,
    ForeignKey,
    LargeBinary,
    Select,
    Text,
    UniqueConstraint,
    create_engine,
    delete,
    event,
    insert,
    select,
)
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from vfs import Conflict, FileRef
from vfs.callbacks import Change, Context

PIECE = 1 << 20
PATH_MAX = 2000  # PostgreSQL's B-tree takes keys of up to 2,704 bytes


class Base(DeclarativeBase):
    pass


class File(Base):
    __tablename__ = "file"
    __table_args__ = (UniqueConstraint("owner", "path"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(Text)
    path: Mapped[str] = mapped_column(Text)
    version: Mapped[str] = mapped_column(Text)
    size: Mapped[int] = mapped_column(BigInteger)
    checksum: Mapped[str] = mapped_column(Text)
    content_type: Mapped[str | None] = mapped_column(Text)
    mode: Mapped[int | None]
    mtime_ns: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class Piece(Base):
    """PIECE bytes of a file's content, from `number` * PIECE; the last one may be shorter."""

    __tablename__ = "piece"

    file_id: Mapped[int] = mapped_column(ForeignKey("file.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    content: Mapped[bytes] = mapped_column(LargeBinary)


class DatabaseFiles:
    """The callbacks. They are sync: mount-session runs them in threads, and SQLAlchemy's pool serves those."""

    def __init__(self, url: str | None = None) -> None:
        self.engine = _engine(url or os.environ.get("DATABASE_URL", "sqlite:///files.db"))
        Base.metadata.create_all(self.engine)

    def on_list(self, scope: Mapping[str, Any], context: Context) -> list[FileRef]:
        with self._transaction() as db:
            return [_ref(file) for file in db.scalars(select(File).where(File.owner == _owner(scope)))]

    def on_stat(self, scope: Mapping[str, Any], path: str, context: Context) -> FileRef:
        with self._transaction() as db:
            return _ref(_existing(db, scope, path))

    def on_read(self, scope: Mapping[str, Any], path: str, context: Context) -> bytes:
        with self._transaction() as db:
            file = _expected(_existing(db, scope, path), path, context)
            return b"".join(db.scalars(_pieces(file)))

    def on_read_range(self, scope: Mapping[str, Any], path: str, offset: int, size: int, context: Context) -> bytes:
        first, last = offset // PIECE, (offset + size) // PIECE
        with self._transaction() as db:
            file = _expected(_existing(db, scope, path), path, context)
            found = b"".join(db.scalars(_pieces(file).where(Piece.number.between(first, last))))
        start = offset - first * PIECE
        return found[start : start + size]

    def on_write_file(self, scope: Mapping[str, Any], path: str, file: BinaryIO, context: Context) -> FileRef:
        with self._transaction() as db:
            return _write(db, scope, path, file, context)

    def on_delete(self, scope: Mapping[str, Any], path: str, context: Context) -> None:
        with self._transaction() as db:
            _delete(db, scope, path, context)

    def on_move(self, scope: Mapping[str, Any], old: str, new: str, context: Context) -> FileRef:
        with self._transaction() as db:
            return _move(db, scope, old, new, context)

    def on_commit(self, scope: Mapping[str, Any], changes: Sequence[Change], context: Context) -> list[FileRef | None]:
        """One transaction: another reader of the database sees all of a batch or nothing of it."""
        with self._transaction() as db:
            return [_change(db, scope, change) for change in changes]

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        try:
            with Session(self.engine, expire_on_commit=False) as db, db.begin():
                yield db
        except OperationalError as e:  # down, restarting, a deadlock: mount-session tries again
            raise OSError(errno.EIO, f"the database is not available: {e.orig}") from e


def _engine(url: str) -> Engine:
    engine = create_engine(url, pool_pre_ping=True, pool_size=16)
    if engine.dialect.name == "sqlite":
        # https://docs.sqlalchemy.org/en/20/dialects/sqlite.html: the driver would begin its transactions too late.
        @event.listens_for(engine, "connect")
        def connect(connection: Any, _: object) -> None:
            connection.isolation_level = None
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA busy_timeout = 30000")
            connection.execute("PRAGMA journal_mode = WAL")

        @event.listens_for(engine, "begin")
        def begin(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _owner(scope: Mapping[str, Any]) -> str:
    return str(scope["user"])


def _locked(db: Session, scope: Mapping[str, Any], path: str) -> File | None:
    """The file's row, locked until the end of the transaction."""
    wanted = select(File).where(File.owner == _owner(scope), File.path == _column(path))
    return db.scalar(wanted.with_for_update())


def _existing(db: Session, scope: Mapping[str, Any], path: str) -> File:
    file = db.scalar(select(File).where(File.owner == _owner(scope), File.path == _column(path)))
    if file is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return file


def _expected(file: File | None, path: str, context: Context) -> Any:
    """`file`, if that is what the session knows of."""
    found = None if file is None else file.version
    if "if_version" in context and context["if_version"] != found:
        raise Conflict(path, found)
    return file


def _write(db: Session, scope: Mapping[str, Any], path: str, content: BinaryIO, context: Context) -> FileRef:
    file = _expected(_locked(db, scope, path), path, context)
    if file is None:
        file = File(owner=_owner(scope), path=_column(path), created_at=datetime.now(UTC))
        db.add(file)
    else:
        db.execute(delete(Piece).where(Piece.file_id == file.id))
    file.version = uuid.uuid4().hex  # not a counter: one that begins again with a new row would repeat itself
    file.size, file.checksum = _measure(content)
    file.content_type = context.get("content_type")
    file.mode = context.get("mode")
    file.mtime_ns = context.get("mtime_ns")
    try:
        db.flush()
    except IntegrityError as e:  # someone made it since we looked
        raise Conflict(path) from e
    for number, piece in enumerate(_in_pieces(content)):
        db.execute(insert(Piece), {"file_id": file.id, "number": number, "content": piece})
    return _ref(file)


def _delete(db: Session, scope: Mapping[str, Any], path: str, context: Context) -> None:
    file = _locked(db, scope, path)
    if file is not None:
        db.delete(_expected(file, path, context))
        db.flush()


def _move(db: Session, scope: Mapping[str, Any], old: str, new: str, context: Context) -> FileRef:
    file = _locked(db, scope, old)
    if file is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), old)
    _expected(file, old, context)
    if old != new:
        _delete(db, scope, new, {})
        file.path = _column(new)
        db.flush()
    return _ref(file)


def _change(db: Session, scope: Mapping[str, Any], change: Change) -> FileRef | None:
    if change.kind == "write" and change.file is not None:
        return _write(db, scope, change.path, change.file, change.context)
    if change.kind == "move" and change.source is not None:
        return _move(db, scope, change.source, change.path, change.context)
    _delete(db, scope, change.path, change.context)
    return None


def _pieces(file: File) -> Select[Any]:
    return select(Piece.content).where(Piece.file_id == file.id).order_by(Piece.number)


def _in_pieces(content: BinaryIO) -> Iterator[bytes]:
    content.seek(0)
    return iter(lambda: content.read(PIECE), b"")


def _measure(content: BinaryIO) -> tuple[int, str]:
    size, checksum = 0, hashlib.sha256()
    for piece in _in_pieces(content):
        size += len(piece)
        checksum.update(piece)
    return size, checksum.hexdigest()


def _ref(file: File) -> FileRef:
    return FileRef(
        path=_path(file.path),
        size=file.size,
        content_type=file.content_type,
        checksum=file.checksum,
        created_at=file.created_at.replace(tzinfo=file.created_at.tzinfo or UTC),  # SQLite forgets the zone
        version=file.version,
        mtime_ns=file.mtime_ns,
        mode=file.mode,
        metadata={"id": str(file.id)},
    )


def _column(path: str) -> str:
    """A path as text for the column. Names on Linux are bytes: what is not UTF-8 is kept as %XX, and so is `%`."""
    if len(os.fsencode(path)) > PATH_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    return re.sub("[%\udc80-\udcff]", lambda byte: quote(os.fsencode(byte[0]), safe=""), path)


def _path(column: str) -> str:
    return unquote(column, errors="surrogateescape")
