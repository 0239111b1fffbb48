"""What every S3 server must do with us, asked of moto, `rclone serve s3` and the JuiceFS gateway."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable

import pytest
import trio

from tests.storage.conftest import Open
from tests.storage.faults import FaultProxy
from tests.storage.servers import Server
from vfs.callbacks import PIECE, Change, Context
from vfs.errors import Conflict
from vfs.storage import precondition
from vfs.storage.s3 import S3Storage

pytestmark = pytest.mark.s3

ODD_NAMES = [
    "a b", "a#b", "a%b", "a%20b", "a~b", "a[b]", "a{b}", "a^b", "a`b", "a|b", 'a"b', "a<b>", "a*b", "a?b", "a+b",
    "a&b=c",
    "é", "☃", "😀", "..a", "a..", "-a", "a;b:c@d,$!'()", " lead", "deep/er/name", "a\nb", "a\tb",
    "a\x01b", "\udcff", "\u201bFF",
]  # fmt: skip
NOT_EVERYWHERE = {
    # MinIO's code takes these for parts of a path.
    "juicefs": {"a\\b"},
    "rclone": set[str](),
    "moto": set[str](),
}


async def test_content_type_metadata_and_bytes_come_back(any_server: Server, open_s3: Open) -> None:
    s3 = await open_s3(any_server, any_server.new_bucket())
    context = {"mode": 0o755, "mtime_ns": 1_234_567_890_123_456_789, "if_version": None}
    written = await s3.on_write(None, "/src/main.py", b"print()\n", context)  # type: ignore[arg-type]
    found = await s3.on_stat(None, "/src/main.py", {})
    assert (found.size, found.mode, found.mtime_ns) == (8, 0o755, 1_234_567_890_123_456_789)
    assert found.content_type == "text/x-python"
    assert found.version == written.version
    assert await s3.read("src/main.py") == b"print()\n"
    [listed] = await s3.on_list(None, {})
    assert (listed.path, listed.size, listed.version) == ("src/main.py", 8, written.version)


async def test_any_name_comes_back_as_it_was(any_server: Server, open_s3: Open) -> None:
    s3 = await open_s3(any_server, any_server.new_bucket())
    names = [name for name in ODD_NAMES if name not in NOT_EVERYWHERE[any_server.name]]
    for number, name in enumerate(names):
        await s3.write(name, str(number).encode())
    assert {ref.path for ref in await s3.on_list(None, {})} == set(names)
    assert s3.misfits == ()
    for number, name in enumerate(names):
        assert await s3.read(name) == str(number).encode(), name
    for name in names:
        await s3.delete(name)
    assert await s3.on_list(None, {}) == []


@pytest.mark.parametrize("plain", [True, False], ids=["sockets", "obstore"])
async def test_ranges_are_exact_and_end_with_the_file(any_server: Server, open_s3: Open, plain: bool) -> None:
    s3 = await open_s3(any_server, any_server.new_bucket())
    content = os.urandom(1_000_000)
    ref = await s3.write("f", content)
    assert s3.bucket.plain_ranges
    s3.bucket.plain_ranges = plain  # rclone's answers to obstore bring it back
    inside = [(0, 1), (0, 1_000_000), (5, 700_000), (0, 256 << 10), (1, (256 << 10) - 1), (9, (256 << 10) + 1)]
    for offset, size in [*inside, (999_999, 1), (999_000, 5_000), (1_000_000, 10), (2_000_000, 10)]:
        got = await s3.on_read_range(None, "/f", offset, size, {"if_version": ref.version})
        assert got == content[offset : offset + size], (offset, size)
    await s3.write("empty", b"")
    assert bytes(await s3.on_read_range(None, "/empty", 0, 10, {})) == b""
    assert await s3.read("empty") == b""


async def streamed(s3: S3Storage, offset: int, size: int, version: str | None) -> list[bytes]:
    context: Context = {} if version is None else {"if_version": version}
    return [bytes(piece) async for piece in s3.on_read_stream(None, "/f", offset, size, context)]


@pytest.mark.parametrize("plain", [True, False], ids=["sockets", "obstore"])
async def test_a_stream_is_exact_in_pieces_of_one_size(any_server: Server, open_s3: Open, plain: bool) -> None:
    s3 = await open_s3(any_server, any_server.new_bucket())
    content = os.urandom(3 * PIECE + 1000)
    ref = await s3.write("f", content)
    s3.bucket.plain_ranges = plain  # rclone's answers to obstore bring it back
    before = s3.bucket.counts["requests"]
    assert b"".join(whole := await streamed(s3, 0, len(content), ref.version)) == content
    assert [len(piece) for piece in whole] == [PIECE, PIECE, PIECE, 1000]
    assert s3.bucket.counts["requests"] == before + 1
    assert b"".join(await streamed(s3, 7, 2 * PIECE, ref.version)) == content[7 : 7 + 2 * PIECE]
    assert b"".join(await streamed(s3, PIECE + 3, 5 * PIECE, None)) == content[PIECE + 3 :]
    assert await streamed(s3, len(content), 10, ref.version) == []
    await s3.write("f", content[::-1])
    with pytest.raises(Conflict):
        await streamed(s3, 0, len(content), ref.version)
    await s3.delete("f")
    with pytest.raises(FileNotFoundError):
        await streamed(s3, 0, len(content), None)


async def test_a_read_of_a_version_that_is_gone_is_a_conflict(any_server: Server, open_s3: Open) -> None:
    s3 = await open_s3(any_server, any_server.new_bucket())
    old = await s3.write("f", b"one" * 1000)
    await s3.write("f", b"two" * 1000)
    with pytest.raises(Conflict):
        await s3.on_read_range(None, "/f", 0, 10, {"if_version": old.version})
    with pytest.raises(Conflict):
        await s3.on_read(None, "/f", {"if_version": old.version})


async def test_a_conditional_write_does_not_overwrite_what_others_wrote(any_server: Server, open_s3: Open) -> None:
    s3 = await open_s3(any_server, any_server.new_bucket())
    first = await s3.on_write(None, "/f", b"mine", {"if_version": None})
    any_server.client().put_object(Bucket=s3.bucket.name, Key="sessions/work/f", Body=b"theirs")
    for version in (first.version, None):
        with pytest.raises(Conflict) as caught:
            await s3.on_write(None, "/f", b"mine again", {"if_version": version})
        assert caught.value.found == (await s3.stat("f")).version
    with pytest.raises(Conflict):
        await s3.on_delete(None, "/f", {"if_version": first.version})
    with pytest.raises(Conflict):
        await s3.on_move(None, "/f", "/g", {"if_version": first.version})
    assert await s3.read("f") == b"theirs"


def files(directory: str, names: Iterable[str]) -> list[Change]:
    return [
        Change("write", f"/{directory}/{name}", {"if_version": None}, file=io.BytesIO(name.encode(errors="replace")))
        for name in names
    ]


async def test_of_many_writes_none_overwrites_what_others_wrote(any_server: Server, open_s3: Open) -> None:
    s3 = await open_s3(any_server, any_server.new_bucket())
    odd = [name for name in ODD_NAMES if "/" not in name and name not in NOT_EVERYWHERE[any_server.name]]
    for number, name in enumerate(["plain", "d=@1", *(odd[:1] if any_server.conditional else odd)]):
        directory = f"d{number}"
        await s3.write(f"{directory}/{name}", b"theirs")
        free = [f"free{n}" for n in range(4)]
        refs = await s3.on_write_many(None, files(directory, [*free, name, "last"]), {})
        assert [ref.path for ref in refs] == [f"{directory}/{one}" for one in free], name
        with pytest.raises(Conflict):
            await s3.on_write_many(None, files(directory, [name, *(f"{one}x" for one in free)]), {})
        assert await s3.read(f"{directory}/{name}") == b"theirs"


async def test_where_conditions_are_ignored_one_listing_stands_for_many_heads(
    rclone: Server, open_s3: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(rclone.url) as proxy:
        s3 = await open_s3(proxy.url, rclone.new_bucket())

        async def asked(directory: str, names: Iterable[str]) -> tuple[int, int]:
            """HEADs and listings for these writes, all of which are made."""
            changes, before = files(directory, names), len(proxy.seen)
            assert len(await s3.on_write_many(None, changes, {})) == len(changes)
            seen = proxy.seen[before:]
            heads = sum(one.method == "HEAD" for one in seen)
            return heads, sum("list-type=2" in one.target for one in seen)

        await s3.check()
        assert await asked("d", map(str, range(16))) == (0, 1)
        assert await asked("d", map(str, range(16, 32))) == (0, 0), "others who write there believe it too"
        assert await asked("few", "abc") == (3, 0)
        assert await asked("odd", ["ä", "b c", *"1234"]) == (2, 1)
        await s3.on_write_many(None, [Change("write", f"/wide/{n}", {}, file=io.BytesIO()) for n in range(129)], {})
        assert await asked("wide", "abcd") == (0, 1)
        assert await asked("wide", "efgh") == (4, 0), "a listing would show much else"
        monkeypatch.setattr(precondition, "TRUSTED", 0.0)
        assert await asked("late", "abcd") == (4, 1), "what is listed is believed for a moment"


async def test_an_endpoint_that_ignores_conditions_is_named(
    any_server: Server, open_s3: Open, caplog: pytest.LogCaptureFixture
) -> None:
    bucket = any_server.new_bucket()
    with caplog.at_level(logging.WARNING):
        for session in ("one", "two"):
            s3 = await open_s3(any_server, bucket, session)
            await s3.check()
            assert s3.bucket.conditional is any_server.conditional
            assert await s3.on_list(None, {}) == []
    named = [record for record in caplog.records if any_server.url in record.getMessage()]
    assert len(named) == (0 if any_server.conditional else 1)


async def test_a_large_file_goes_in_parts_and_comes_back(any_server: Server, open_s3: Open) -> None:
    s3 = await open_s3(any_server, any_server.new_bucket())
    content = os.urandom((20 << 20) + 17)
    context = {"if_version": None, "mode": 0o600, "mtime_ns": 5}
    ref = await s3.on_write_file(None, "/big.bin", io.BytesIO(content), context)  # type: ignore[arg-type]
    found = await s3.stat("big.bin")
    assert (found.size, found.version, found.mode, found.mtime_ns) == (len(content), ref.version, 0o600, 5)
    assert await s3.read("big.bin") == content
    again = await s3.on_write_file(None, "/big.bin", io.BytesIO(content[:-1]), {"if_version": ref.version})
    assert (await s3.stat("big.bin")).version == again.version
    with pytest.raises(Conflict):
        await s3.on_write_file(None, "/big.bin", io.BytesIO(content), {"if_version": ref.version})


async def test_a_move_keeps_bytes_and_metadata(any_server: Server, open_s3: Open) -> None:
    s3 = await open_s3(any_server, any_server.new_bucket())
    old = await s3.on_write(None, "/a.sh", b"#!/bin/sh\n", {"mode": 0o755, "mtime_ns": 7 * 10**9})
    moved = await s3.on_move(None, "/a.sh", "/bin/b.sh", {"if_version": old.version})
    found = await s3.stat("bin/b.sh")
    assert (found.version, found.mode, found.mtime_ns) == (moved.version, 0o755, 7 * 10**9)
    assert await s3.read("bin/b.sh") == b"#!/bin/sh\n"
    assert not await s3.exists("a.sh")


async def test_listings_go_on_after_a_thousand_keys(any_server: Server, open_s3: Open) -> None:
    s3 = await open_s3(any_server, any_server.new_bucket())
    async with trio.open_nursery() as nursery:
        for number in range(1100):
            nursery.start_soon(s3.write, f"d{number % 7}/f{number}", b"")
    listed = [ref.path async for ref in s3.list()]
    assert len(listed) == len(set(listed)) == 1100


async def test_cleanup_leaves_nothing_of_this_session_and_all_of_others(any_server: Server, open_s3: Open) -> None:
    bucket = any_server.new_bucket()
    s3, other = await open_s3(any_server, bucket, "work"), await open_s3(any_server, bucket, "work2")
    for number in range(5):
        await s3.write(f"d/{number}", b"x")
    await s3.on_save_image(None, b"image", {"if_version": None})
    await other.write("keep", b"y")
    await s3.cleanup()
    keys = [one["Key"] for one in any_server.client().list_objects_v2(Bucket=bucket).get("Contents", [])]
    assert keys == ["sessions/work2/keep"]
    await s3.cleanup()


async def test_what_is_not_there_is_deleted_already_and_not_found(any_server: Server, open_s3: Open) -> None:
    s3 = await open_s3(any_server, any_server.new_bucket())
    await s3.delete("nothing")
    assert not await s3.exists("nothing")
    for attempt in (s3.read("nothing"), s3.stat("nothing"), s3.on_move(None, "/nothing", "/n", {})):
        with pytest.raises(FileNotFoundError):
            await attempt


async def test_image_and_lease_work(any_server: Server, open_s3: Open) -> None:
    s3 = await open_s3(any_server, any_server.new_bucket())
    assert await s3.on_load_image(None, {}) is None
    lease = await s3.acquire("holder", "this test")
    version = await s3.on_save_image(None, b"image 1", {"if_version": None})
    version = await s3.on_save_image(None, b"image 2", {"if_version": version})
    await lease.renew()
    assert await s3.on_load_image(None, {}) == (b"image 2", version)
    await lease.release()
    assert await s3.on_list(None, {}) == []
