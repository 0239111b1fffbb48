"""URL: what `--storage` says, as a storage.

    local                                   the default: the state directory is the store, nothing else
    file:///dir                             LocalStorage, kept, in /dir/<session id>
    s3://bucket/prefix?endpoint=...&region=...
    tigris                                  all from the environment
    tigris://bucket/prefix
    module:Class                            a backend of yours; ?name=value become keyword arguments

Query parameters are the constructor's options. Credentials are not among them: a command line is visible to everyone
on the host. No error repeats a query: someone may have put some there all the same."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from vfs.callbacks import load
from vfs.errors import told
from vfs.storage.base import Storage

__all__ = ["open_storage", "preload"]

_NOT_IN_A_URL = "credentials do not belong in a URL; use the environment or a profile"
_FORMS = "local, file:///dir, s3://bucket/prefix, tigris, tigris://bucket/prefix or module:Class"
_METHODS = sorted(name for name in vars(Storage) if not name.startswith("_"))
_SECRET = frozenset({"access_key_id", "secret_access_key", "session_token"})


def open_storage(url: str) -> Storage | None:
    """The storage that `url` names, not yet bound to a session; None for `local`. ValueError says what is wrong."""
    if url in ("", "local"):
        return None
    parts, shown = urlsplit(url), url.partition("?")[0]
    try:
        options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    except ValueError:
        raise ValueError(f"--storage {shown}: name=value&name=value is needed behind the question mark") from None
    if secret := _SECRET & options.keys():
        raise ValueError(f"--storage {parts.scheme}: {', '.join(sorted(secret))}: {_NOT_IN_A_URL}")
    if parts.username or parts.password:
        raise ValueError(f"--storage {parts.scheme}: {_NOT_IN_A_URL}")
    try:
        return _open(url, parts.scheme, parts.netloc, unquote(parts.path), options)
    except (TypeError, ValueError) as e:
        raise ValueError(f"--storage {shown}: {e}") from e


def preload(url: str) -> None:
    """Import what `open_storage` will, as far as it is ours: in the process that forks those which open it."""
    if urlsplit(url).scheme in ("s3", "tigris") or url == "tigris":
        import vfs.storage.tigris
        import vfs.storage.writer  # noqa: F401


def _open(url: str, scheme: str, host: str, path: str, options: dict[str, Any]) -> Storage:
    # Imported here: boto3 costs 0.2 s and 25 MB, and most sessions need neither it nor the others.
    if scheme == "file":
        from vfs.storage.local import LocalStorage

        if host not in ("", "localhost") or not path.startswith("/"):
            raise ValueError("file:///absolute/directory is needed")
        return LocalStorage(base_path=path, prefix="", cleanup_on_exit=False, **options)
    if scheme == "s3":
        from vfs.storage.s3 import S3Storage

        if not host:
            raise ValueError("s3://bucket/prefix is needed")
        return S3Storage(host, **_prefix(path), **_typed(options))
    if scheme == "tigris" or (not scheme and path == "tigris"):
        from vfs.storage.tigris import TigrisStorage

        return TigrisStorage(host or None, **_prefix(path if host else ""), **_typed(options))
    if ":" not in url or url.startswith(":") or "://" in url:
        raise ValueError(f"{_FORMS} is needed")
    return _custom(url.partition("?")[0], options)


def _custom(spec: str, options: dict[str, Any]) -> Storage:
    made = load(spec)
    try:
        storage = made(**options) if isinstance(made, type) else made
    except (OSError, TypeError, ValueError):
        raise
    except Exception as e:
        raise ValueError(told(e)) from e
    if not isinstance(storage, Storage):
        missing = (name for name in _METHODS if not callable(getattr(storage, name, None)))
        raise ValueError(f"{spec} is no storage: it lacks {', '.join(missing)}")
    return storage


def _prefix(path: str) -> dict[str, Any]:
    path = path.strip("/")
    return {"prefix": f"{path}/"} if path else {}


def _typed(options: dict[str, str]) -> dict[str, Any]:
    """Query parameters in the types that the constructor takes."""
    typed: dict[str, Any] = dict(options)
    for name in ("requester_pays", "async_upload"):
        if name in typed:
            if typed[name] not in ("true", "false"):
                raise ValueError(f"{name} is true or false")
            typed[name] = typed[name] == "true"
    for name in ("connect_timeout", "request_timeout", "read_patience", "write_patience", "lease_seconds"):
        if name in typed:
            typed[name] = float(typed[name])
    for name in ("concurrency", "cache_bytes"):
        if name in typed:
            typed[name] = int(typed[name])
    return typed
