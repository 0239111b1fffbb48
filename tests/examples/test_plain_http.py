"""What docs/callbacks.md says is enough for a program that has none of our code."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from examples import plain_http
from vfs.errors import Conflict
from vfs.persistence import Persistence
from vfs.target import open_target


@pytest.fixture
def url() -> Iterator[str]:
    with plain_http.server(0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_a_server_of_the_standard_library_is_a_complete_integrator(url: str) -> None:
    target = await open_target(url)
    alice = Persistence(target.callbacks, {"user": "alice"}, owned=target.owned)
    assert alice.can == {"on_list", "on_read", "on_write", "on_delete"}
    bob = alice.for_scope({"user": "bob"})
    first = await alice.write("notes/a b%é.md", b"hello", {"if_version": None})
    [listed] = await alice.list()
    assert (listed.path, listed.size, listed.version) == ("notes/a b%é.md", 5, first.version)
    assert await alice.read(listed.path) == b"hello"
    assert await bob.list() == []
    with pytest.raises(FileNotFoundError):
        await bob.read(listed.path)
    with pytest.raises(Conflict) as caught:
        await alice.write(listed.path, b"lost?", {"if_version": None})
    assert caught.value.found == first.version
    await alice.write(listed.path, b"more", {"if_version": first.version})
    with pytest.raises(Conflict):
        await alice.delete(listed.path, {"if_version": first.version})
    await alice.delete(listed.path)
    assert await alice.list() == []
    await alice.aclose()
