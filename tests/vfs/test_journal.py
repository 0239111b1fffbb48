"""The journal: what was appended is there, a torn tail is cut, damage is an error, a full disk harms nothing."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.disk import fill, small_ext4, small_tmpfs
from vfs.errors import DamagedState
from vfs.journal import Journal, frame, frames, segment_path, segments
from vfs.records import Begin, Link, Make, Reclaim, Record, Rename, Setattr, Setxattr, Unlink, decode

RECORDS: list[Record] = [
    Make(1, b"d\xff", 2, 0o40755, 1000, 1000, 1_700_000_000_123_456_789, 17),
    Link(3, 2, b"n" * 255, 5),
    Rename(1, b"a", 2, b"b", 7, True, 9),
    Setattr(2, 8, mode=0o644, size=1 << 40, mtime_ns=-5),
    Setxattr(2, b"user.x", b"\0" * 3000, 9),
    Unlink(1, b"b", 10),
    Reclaim([2, 3]),
]


def read(path: Path, *, torn_ok: bool = True) -> list[Record]:
    return [decode(payload) for _, payload in frames(path, torn_ok=torn_ok)]


def written(directory: Path, records: list[Record] = RECORDS) -> Path:
    journal = Journal(directory, 0)
    for record in records:
        journal.append(record)
    journal.close()
    return segment_path(directory, 0)


@pytest.fixture(params=[small_tmpfs, small_ext4])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with request.param(tmp_path / "disk", 8 << 20) as path:
        yield path


def test_records_come_back_as_they_were_appended(tmp_path: Path) -> None:
    assert read(written(tmp_path), torn_ok=False) == RECORDS


def test_a_segment_ends_where_its_last_record_does_though_space_is_reserved(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    journal.append(RECORDS[0])
    status = segment_path(tmp_path, 0).stat()
    assert status.st_size == journal.size
    assert status.st_blocks * 512 >= journal.size + 65536
    journal.close()
    assert read(segment_path(tmp_path, 0), torn_ok=False) == RECORDS[:1]


def test_a_tail_torn_at_any_byte_is_cut_at_the_last_whole_record(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    ends = [0, *(end for end, _ in frames(path, torn_ok=False))]
    for length in range(len(content)):
        path.write_bytes(content[:length])
        whole = sum(end <= length for end in ends) - 1
        assert read(path) == RECORDS[:whole]
        if length not in ends:
            with pytest.raises(DamagedState):
                read(path, torn_ok=False)


def test_a_tail_of_zeros_is_torn(tmp_path: Path) -> None:
    path = written(tmp_path)
    with path.open("ab") as file:
        file.write(b"\0" * 10_000)
    assert read(path) == RECORDS


@given(record=st.integers(0, len(RECORDS) - 2), byte=st.integers(0, 5000), flip=st.integers(1, 255))
def test_a_changed_byte_before_the_last_record_is_an_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, record: int, byte: int, flip: int
) -> None:
    path = written(tmp_path_factory.mktemp("journal"))
    content = bytearray(path.read_bytes())
    ends = [0, *(end for end, _ in frames(path, torn_ok=False))]
    at = ends[record] + byte % (ends[record + 1] - ends[record])
    content[at] ^= flip
    path.write_bytes(content)
    with pytest.raises(DamagedState) as caught:
        read(path)
    assert caught.value.filename == str(path)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("powered_off", [False, True])
def test_a_page_that_never_reached_the_disk_ends_history_after_power_loss_and_is_damage_otherwise(
    tmp_path: Path, powered_off: bool
) -> None:
    records: list[Record] = [Unlink(1, b"n" * (1 + i % 255), i) for i in range(200)]
    path = written(tmp_path, records)
    whole = sum(end <= 4096 for end, _ in frames(path, torn_ok=False))
    content = bytearray(path.read_bytes())
    content[4096:8192] = bytes(4096)
    path.write_bytes(content)
    if powered_off:
        found = [decode(payload) for _, payload in frames(path, torn_ok=True, powered_off=True)]
        assert found == records[:whole]
    else:
        with pytest.raises(DamagedState):
            read(path)


def test_a_changed_byte_is_damage_after_power_loss_too(tmp_path: Path) -> None:
    records: list[Record] = [Unlink(1, b"n" * (1 + i % 255), i) for i in range(200)]
    path = written(tmp_path, records)
    content = bytearray(path.read_bytes())
    content[4096] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedState):
        list(frames(path, torn_ok=True, powered_off=True))


def test_a_writer_goes_on_behind_the_last_whole_record(tmp_path: Path) -> None:
    path = written(tmp_path)
    ends = [end for end, _ in frames(path, torn_ok=False)]
    os.truncate(path, ends[-1] - 3)
    journal = Journal(tmp_path, 0, ends[-2])
    journal.append(RECORDS[0])
    journal.close()
    assert read(path, torn_ok=False) == [*RECORDS[:-1], RECORDS[0]]


def test_segments_are_listed_by_number(tmp_path: Path) -> None:
    for name in ("journal.10", "journal.9", "journal.0", "journal.new", "image"):
        (tmp_path / name).touch()
    assert segments(tmp_path) == [0, 9, 10]


def test_a_record_goes_to_the_newest_segment(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    journal.append(RECORDS[0])
    assert journal.rotate() == 1
    journal.append(RECORDS[1])
    journal.close()
    assert read(segment_path(tmp_path, 0), torn_ok=False) == RECORDS[:1]
    begin = Begin(segment_path(tmp_path, 0).stat().st_size)
    assert read(segment_path(tmp_path, 1), torn_ok=False) == [begin, RECORDS[1]]


def test_a_sync_covers_closed_segments_and_what_was_appended_before_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    journal.append(RECORDS[0])
    journal.rotate()
    journal.append(RECORDS[1])
    assert journal.needs_sync
    journal.sync()
    assert not journal.needs_sync
    journal.append(RECORDS[2])
    assert journal.needs_sync
    journal.close()


def test_appends_and_rotations_during_syncs_are_never_taken_for_synced(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    stop = threading.Event()
    failures: list[BaseException] = []

    def sync_again_and_again() -> None:
        try:
            while not stop.is_set():
                journal.sync()
        except BaseException as e:
            failures.append(e)

    thread = threading.Thread(target=sync_again_and_again)
    thread.start()
    for _ in range(100):
        journal.append(RECORDS[0])
        journal.rotate()
        journal.append(RECORDS[1])
    stop.set()
    thread.join()
    assert failures == []
    journal.sync()
    assert not journal.needs_sync
    journal.close()
    records = [record for n in segments(tmp_path) for record in read(segment_path(tmp_path, n), torn_ok=False)]
    assert [record for record in records if not isinstance(record, Begin)] == RECORDS[:2] * 100


def test_a_full_disk_refuses_what_needs_room_and_takes_what_makes_room(small_disk: Path) -> None:
    journal = Journal(small_disk, 0)
    journal.append(RECORDS[0])
    fill(small_disk)
    taken = 1
    with pytest.raises(OSError) as caught:
        while True:
            journal.append(RECORDS[0])
            taken += 1
    assert caught.value.errno == errno.ENOSPC
    for _ in range(1000):
        journal.append(Unlink(1, b"name of a file", 10))
    journal.close()
    records = read(segment_path(small_disk, 0), torn_ok=False)
    assert len(records) == taken + 1000
    assert records[-1] == Unlink(1, b"name of a file", 10)


@pytest.mark.parametrize("crashed", [False, True])
def test_the_next_writer_can_delete_on_a_full_disk_too(small_disk: Path, crashed: bool) -> None:
    journal = Journal(small_disk, 0)
    journal.append(RECORDS[0])
    size = journal.size
    if not crashed:
        journal.close()
    fill(small_disk)
    successor = Journal(small_disk, 0, size)
    with pytest.raises(OSError) as caught:
        for _ in range(100_000):
            successor.append(RECORDS[0])
    assert caught.value.errno == errno.ENOSPC
    for _ in range(1000):
        successor.append(Unlink(1, b"name of a file", 10))
    successor.close()
    if crashed:
        journal.close()


def test_a_segment_is_not_begun_without_room_to_delete_in_it(small_disk: Path) -> None:
    journal = Journal(small_disk, 0)
    journal.append(RECORDS[0])
    filler = fill(small_disk)
    with pytest.raises(OSError) as caught:
        journal.rotate()
    assert caught.value.errno == errno.ENOSPC
    journal.append(Unlink(1, b"a", 1))
    assert segments(small_disk) == [0]
    filler.unlink()
    journal.rotate()
    fill(small_disk)
    journal.append(Unlink(1, b"b", 1))
    journal.close()
    assert read(segment_path(small_disk, 1), torn_ok=False)[1:] == [Unlink(1, b"b", 1)]


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Limits the size of files that this process may write: a write(2) that goes beyond it is short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_record_of_which_only_a_part_was_taken_leaves_nothing(
    tmp_path: Path, file_limit: Callable[[int], None]
) -> None:
    journal = Journal(tmp_path, 0)
    journal.append(RECORDS[4])
    file_limit(journal.size + 100)
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            journal.append(RECORDS[4])
        assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    file_limit(1 << 30)
    journal.append(RECORDS[0])
    journal.close()
    assert read(segment_path(tmp_path, 0), torn_ok=False) == [RECORDS[4], RECORDS[0]]


def test_a_failed_sync_is_never_followed_by_one_that_succeeds(tmp_path: Path) -> None:
    """A pipe cannot be synced: the descriptor stands for a disk that fails once."""
    journal = Journal(tmp_path, 0)
    journal.append(RECORDS[0])
    file, (reader, writer) = os.dup(journal._fd), os.pipe()
    os.dup2(writer, journal._fd)
    with pytest.raises(OSError):
        journal.sync()
    os.dup2(file, journal._fd)
    with pytest.raises(OSError):
        journal.sync()
    assert journal.needs_sync
    journal.close()
    for fd in (file, reader, writer):
        os.close(fd)


@given(st.binary(min_size=1, max_size=300), st.binary(max_size=40))
def test_a_frame_is_its_payload_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, payload: bytes, more: bytes
) -> None:
    path = tmp_path_factory.mktemp("frame") / "file"
    path.write_bytes(frame(payload) + frame(more or b"x"))
    assert [content for _, content in frames(path, torn_ok=False)] == [payload, more or b"x"]
