"""Memory for what is received is used again when nobody has a view of it, never before, and not kept for nobody."""

from __future__ import annotations

import threading

from vfs.storage.buffers import Buffers

SIZE = 64 << 10


def test_memory_is_used_again_when_the_last_view_of_it_is_gone() -> None:
    buffers = Buffers(SIZE, 2)
    held = buffers.take(SIZE)
    held[:] = b"h" * SIZE
    first = buffers.take(SIZE)
    first[:] = b"1" * SIZE
    part = first.toreadonly()[10:20]
    del first
    other = buffers.take(SIZE)
    other[:] = b"2" * SIZE
    assert bytes(part) == b"1" * 10 and bytes(held[:2]) == b"hh", "somebody has a view of it"
    del part
    again = buffers.take(SIZE)
    assert bytes(again[:3]) == b"111", "the memory that was given back"
    assert buffers.used == 3


def test_idle_memory_is_bounded_and_not_kept_when_none_is_used() -> None:
    buffers = Buffers(SIZE, 2)
    taken = [buffers.take(SIZE) for _ in range(5)]
    while len(taken) > 1:
        del taken[-1]
    assert (buffers.used, len(buffers.idle)) == (1, 2)
    taken.clear()
    assert (buffers.used, len(buffers.idle)) == (0, 0)


def test_what_a_buffer_does_not_fit_has_memory_of_its_own() -> None:
    buffers = Buffers(SIZE, 2)
    for size in (0, 1, SIZE // 2, SIZE // 2 + 1, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE):
        view = buffers.take(size)
        view[:] = b"x" * size
        assert len(view) == size and view.format == "B"
        assert buffers.used == (SIZE // 2 < size <= SIZE), size
        del view
    assert buffers.used == 0


def test_threads_never_share_memory() -> None:
    buffers = Buffers(SIZE, 4)
    mixed: list[int] = []

    def work(number: int) -> None:
        for _ in range(300):
            view = buffers.take(SIZE)
            view[:] = bytes([number]) * SIZE
            if bytes(view) != bytes([number]) * SIZE:
                mixed.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mixed == []
    assert (buffers.used, len(buffers.idle)) == (0, 0)
