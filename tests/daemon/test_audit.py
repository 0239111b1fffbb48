"""The audit log is whole, or `verify` says where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from mount.audit import Audit, Head, Tampered, verify

ACTOR = {"uid": 0, "pid": 1}


async def filled(directory: Path, lines: int = 5) -> list[bytes]:
    audit = Audit(directory)
    for n in range(lines):
        await audit.append("session.new", f"s{n}", ACTOR, {"storage": "local"})
    audit.close()
    return audit.path.read_bytes().splitlines(keepends=True)


async def test_a_log_verifies_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    assert verify(tmp_path) == Head()
    await filled(tmp_path)
    await filled(tmp_path, 2)
    head = verify(tmp_path)
    assert head.seq == 7


@pytest.mark.parametrize(
    "attack",
    [
        lambda lines: lines[:2] + lines[3:],
        lambda lines: lines[1:],
        lambda lines: lines[:-1],
        lambda lines: [],
        lambda lines: [*lines[:1], lines[2], lines[1], *lines[3:]],
        lambda lines: [*lines[:2], lines[2].replace(b"s2", b"s9"), *lines[3:]],
        lambda lines: [*lines[:2], lines[2].replace(b'"seq":3', b'"seq": 3'), *lines[3:]],
        lambda lines: [*lines[:2], b"{}\n", *lines[2:]],
        lambda lines: [*lines, lines[-1]],
    ],
    ids=[
        "line removed",
        "first removed",
        "last removed",
        "emptied",
        "swapped",
        "changed",
        "respelled",
        "added",
        "twice",
    ],
)
async def test_whatever_is_done_to_it_is_found(attack: object, tmp_path: Path) -> None:
    lines = await filled(tmp_path)
    assert callable(attack)
    (tmp_path / "audit.log").write_bytes(b"".join(attack(lines)))
    with pytest.raises(Tampered):
        verify(tmp_path)


async def test_a_line_added_with_a_hash_that_is_right_is_found_by_who_writes_the_log(tmp_path: Path) -> None:
    await filled(tmp_path)
    audit = Audit(tmp_path)
    other = Audit(tmp_path)
    await other.append("session.remove", "forged", ACTOR)
    other.close()
    assert verify(tmp_path).seq == 6, "to who knows nothing but the files it is whole"
    with pytest.raises(Tampered, match="line 5"):
        await audit.verify()
    audit.close()


@pytest.mark.parametrize("left", [0, 2, 4])
async def test_what_was_cut_off_while_nobody_wrote_is_on_record_for_good(left: int, tmp_path: Path) -> None:
    lines = await filled(tmp_path)
    (tmp_path / "audit.log").write_bytes(b"".join(lines[:left]))
    await filled(tmp_path, 3)
    with pytest.raises(Tampered, match=f"line {left + 1}: before it the log was not as it had been left"):
        verify(tmp_path)


async def test_a_log_whose_end_is_overwritten_goes_on_and_does_not_verify(tmp_path: Path) -> None:
    lines = await filled(tmp_path)
    (tmp_path / "audit.log").write_bytes(b"".join(lines[:3]) + b"garbage\n")
    await filled(tmp_path, 1)
    with pytest.raises(Tampered, match="line 4"):
        verify(tmp_path)


async def test_a_head_that_a_crash_left_one_behind_is_no_tampering(tmp_path: Path) -> None:
    await filled(tmp_path, 4)
    before = (tmp_path / "audit.head").read_bytes()
    await filled(tmp_path, 1)
    (tmp_path / "audit.head").write_bytes(before)
    assert verify(tmp_path).seq == 5
    await filled(tmp_path, 1)
    assert verify(tmp_path).seq == 6


async def test_a_line_torn_by_power_loss_is_cut_and_the_log_goes_on(tmp_path: Path) -> None:
    lines = await filled(tmp_path)
    with (tmp_path / "audit.log").open("ab") as file:
        file.write(lines[-1][: len(lines[-1]) // 2])
    await filled(tmp_path, 1)
    assert verify(tmp_path).seq == 6


async def test_it_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    await filled(tmp_path, 1)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("audit.log", "audit.head")] == [0o600, 0o600]
