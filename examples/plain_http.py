"""The wire format with nothing but the standard library: what a program in any other language has to do.

    python examples/plain_http.py 8700 &
    mount-session up work /mnt/work --callbacks http://127.0.0.1:8700 --scope '{"user": "alice"}'

Files are in memory, by user. docs/callbacks.md has the whole format; these five requests are enough.
"""

from __future__ import annotations

import json
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote_to_bytes


class Store:
    """Files of all users: (user, path in bytes) -> (content, version)."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, bytes], tuple[bytes, int]] = {}
        self.lock = threading.Lock()
        self.versions = 0


class Callbacks(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def do_GET(self) -> None:
        if self.path == "/":
            self.answer(200, {"mount_session": 1, "callbacks": ["on_list", "on_read", "on_write", "on_delete"]})
        elif self.path == "/files":
            self.send(200, b"".join(json.dumps(entry).encode() + b"\n" for entry in self.entries()))
        else:
            with self.store.lock:
                found = self.store.files.get(self.key())
            if found is None:
                self.answer(404, {"errno": "ENOENT"})
            else:
                self.send(200, found[0])

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        with self.store.lock:
            if not self.expected():
                return
            self.store.versions += 1
            self.store.files[self.key()] = content, self.store.versions
            version = self.store.versions
        self.answer(200, {"version": version})

    def do_DELETE(self) -> None:
        with self.store.lock:
            if not self.expected():
                return
            self.store.files.pop(self.key(), None)
        self.send(204)

    def key(self) -> tuple[str, bytes]:
        scope = json.loads(self.headers["Mount-Session-Scope"])
        return scope["user"], unquote_to_bytes(self.path.removeprefix("/files"))

    def expected(self) -> bool:
        """Whether the file still has the version that the session knows; else the conflict is answered."""
        context = json.loads(self.headers["Mount-Session-Context"])
        _, found = self.store.files.get(self.key(), (b"", None))
        version = None if found is None else str(found)
        if context.get("if_version", version) == version:
            return True
        self.answer(412, {"errno": "ESTALE", "found": version})
        return False

    def entries(self) -> list[dict[str, Any]]:
        user = json.loads(self.headers["Mount-Session-Scope"])["user"]
        with self.store.lock:
            mine = [(path, *file) for (owner, path), file in self.store.files.items() if owner == user]
        return [{"path": path.decode(), "size": len(content), "version": version} for path, content, version in mine]

    def answer(self, status: int, told: dict[str, Any]) -> None:
        self.send(status, json.dumps(told).encode())

    def send(self, status: int, body: bytes = b"") -> None:
        self.send_response(HTTPStatus(status))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """No line for each request."""


def server(port: int) -> ThreadingHTTPServer:
    handler = type("Handler", (Callbacks,), {"store": Store()})
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


if __name__ == "__main__":
    server(int(sys.argv[1])).serve_forever()
