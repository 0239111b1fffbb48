"""Containers on a mounted session: an agent's shape (uid 1001, read-only root, no network), one or several."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.container import Container
from tests.mounted import Mounted

AGENT = ("--uid", "1001", "--gid", "1001")
Mount = Callable[..., Mounted]
Start = Callable[..., Container]


@pytest.fixture
def shared(mounted: Mount) -> Mounted:
    """A session that keeps owners as they are, and in whose root any user may create entries."""
    session = mounted()
    session.path.chmod(0o777)
    return session


def test_an_unprivileged_container_writes_and_reads_and_the_host_sees_it(mounted: Mount, container: Start) -> None:
    session = mounted("work", *AGENT)
    (session.path / "task.txt").write_text("from the host\n")
    output = container(
        session.path,
        "id -u; cat task.txt; mkdir -p out/deep; echo answer > out/deep/result; ln -s out/deep/result latest;"
        " cat latest; touch /elsewhere 2> /dev/null || echo root is read-only; ls /sys/class/net",
    ).finish()
    assert output == "1001\nfrom the host\nanswer\nroot is read-only\nlo\n"
    result = session.path / "out" / "deep" / "result"
    assert result.read_text() == "answer\n"
    assert (result.stat().st_uid, result.stat().st_gid) == (1001, 1001)
    session.stop()
    mounted("work", *AGENT)
    assert result.read_text() == "answer\n"


def test_in_a_session_of_one_user_the_host_s_files_are_the_container_s_too(mounted: Mount, container: Start) -> None:
    session = mounted("work", *AGENT)
    (session.path / "from-root").write_text("x")
    (session.path / "from-root").chmod(0o600)
    assert container(session.path, "stat -c %u:%g from-root; cat from-root").finish() == "1001:1001\nx"


def test_a_container_cannot_touch_what_is_not_its_users(shared: Mounted, container: Start) -> None:
    private = shared.path / "private"
    private.write_text("root's own")
    private.chmod(0o600)
    output = container(
        shared.path, "cat private 2>&1 || true; chown 1001 private 2>&1 || true; chmod 666 private 2>&1 || true"
    ).finish()
    assert output.count("denied") + output.count("not permitted") == 3
    assert (private.stat().st_uid, private.stat().st_mode & 0o777) == (0, 0o600)


def test_containers_one_after_another_find_what_the_earlier_ones_left(shared: Mounted, container: Start) -> None:
    for number in range(5):
        output = container(shared.path, f"echo turn {number} >> history; cat history").finish()
        assert output.splitlines() == [f"turn {earlier}" for earlier in range(number + 1)]


def test_a_second_container_works_with_the_first_while_it_runs(shared: Mounted, container: Start) -> None:
    first = container(
        shared.path, "mkfifo pipe; echo ready > first; read line < pipe; echo first got: $line; cat from-second"
    )
    second = container(
        shared.path,
        "until [ -s first ]; do sleep 0.05; done; echo hello > from-second; echo a line through a fifo > pipe",
    )
    second.finish()
    assert first.finish() == "first got: a line through a fifo\nhello\n"


def test_a_lock_taken_in_one_container_keeps_another_out(shared: Mounted, container: Start, host_image: str) -> None:
    holder = container(shared.path, "flock lock sh -c 'echo held > state; exec sleep 1000'", image=host_image)
    other = container(
        shared.path,
        "until [ -s state ]; do sleep 0.05; done; flock -n lock echo free || echo busy;"
        " echo tried > tried; flock lock echo mine",
        image=host_image,
    )
    container(shared.path, "until [ -s tried ]; do sleep 0.05; done").finish()
    holder.remove()
    assert other.finish() == "busy\nmine\n"


@pytest.mark.parametrize("uid", [1001, 0])
def test_real_tools_in_a_container_build_and_commit(
    shared: Mounted, container: Start, host_image: str, uid: int
) -> None:
    script = """
        export HOME=/workspace
        mkdir project && cd project && git init -q .
        printf 'int main(void) { return 7; }' > main.c
        cc -o program main.c && { ./program || echo status $?; }
        python3 -c 'import json, sqlite3
        with sqlite3.connect("data.sqlite") as c:
            c.execute("create table t (a)"); c.execute("insert into t values (42)")
        json.dump(c.execute("select * from t").fetchall(), open("rows.json", "w"))'
        git add . && git -c user.name=a -c user.email=a@b commit -qm work && git fsck && git status --porcelain
    """.replace("\n        ", "\n")
    output = container(shared.path, script, image=host_image, user=f"{uid}:{uid}").finish()
    assert output == "status 7\n"
    rows = shared.path / "project" / "rows.json"
    assert json.loads(rows.read_text()) == [[42]]
    assert rows.stat().st_uid == uid
