"""`--callbacks` names an object in a module, or one at the other end of HTTP."""

from __future__ import annotations

import errno

import pytest

from tests.http.test_callbacks_over_http import Files, remote, url_of
from vfs.persistence import Persistence
from vfs.target import open_target

CALLBACKS = Files()


@pytest.mark.parametrize("name", ["CALLBACKS", "Files"])
async def test_an_object_or_a_class_by_its_name(name: str) -> None:
    target = await open_target(f"tests.test_target:{name}")
    assert not target.owned
    assert target.can == Persistence(target.callbacks).can >= {"on_list", "on_read", "on_write", "on_delete"}


async def test_a_url_is_asked_what_it_has_unless_that_is_known() -> None:
    async with remote(Files(), token="secret") as files:
        url = url_of(files)
        target = await open_target(url, token="secret")
        assert target.owned
        assert target.can == files.can
        with pytest.raises(OSError, match="no token, or another one"):
            await open_target(url, token="wrong")
    known = await open_target(url, can=target.can)
    gone = Persistence(known.callbacks, owned=known.owned)
    with pytest.raises(OSError) as caught:
        await gone.read("a")
    assert caught.value.errno == errno.EIO
    await gone.aclose()
    with pytest.raises(OSError, match=url):
        await open_target(url)


@pytest.mark.parametrize(
    ("spec", "failure"),
    [("no_such_module:X", ValueError), ("os:path", TypeError), ("ftp://x", ValueError), ("os:no.such", ValueError)],
)
async def test_what_names_no_callbacks_is_refused(spec: str, failure: type[Exception]) -> None:
    with pytest.raises(failure):
        await open_target(spec)
