"""The callbacks over HTTP: `connect` for who calls them, `application`, `serve` and `serving` for who has them."""

from vfs.http.client import HttpCallbacks, connect
from vfs.http.server import application, serve, serving

__all__ = ["HttpCallbacks", "application", "connect", "serve", "serving"]
