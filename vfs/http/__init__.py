"""The callbacks over HTTP: `connect` for who calls them, `application`, `serve` and `serving` for who has them.

Names are looked up when they are used: a session needs no web server, an application no web client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vfs.http.client import HttpCallbacks, connect
    from vfs.http.server import application, serve, serving

__all__ = ["HttpCallbacks", "application", "connect", "serve", "serving"]

_MODULES = {
    "HttpCallbacks": "vfs.http.client",
    "application": "vfs.http.server",
    "connect": "vfs.http.client",
    "serve": "vfs.http.server",
    "serving": "vfs.http.server",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
