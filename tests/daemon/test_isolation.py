"""What a container, a tenant's worker or another user of this host tries against another's session, and fails."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.container import Container, Engine
from tests.daemon.serving import PROJECT, Program, Serving, until

STRANGER = 65534
FIRST = 210_000
SECRET = "hush-hush-credential"


@pytest.fixture(scope="module")
def host(open_directory: Path) -> Iterator[Serving]:
    """A daemon that gives each worker a user of its own, with two tenants, `mine` and `theirs`."""
    if os.geteuid() != 0:
        pytest.fail("workers with users of their own need root; CI has it")
    settings = {"workers": {"uids": [FIRST, 100]}, "policy": {"uid": 1001, "gid": 1001}}
    credentials = {"AWS_SECRET_ACCESS_KEY": "the-daemons-own"}
    with readable_program(open_directory) as program:
        one = Serving.start(open_directory / "daemon", settings, credentials, program)
        yield from tenants(one)


@contextlib.contextmanager
def readable_program(directory: Path) -> Iterator[Program]:
    """This program where every user may read it, as it must be installed; the checkout may be below /root."""
    bound = [(PROJECT, directory / "project"), (Path(sys.prefix), directory / "python")]
    for path, place in bound:
        place.mkdir()
        subprocess.run(["mount", "--bind", path, place], check=True)
    try:
        yield Program(bound[1][1] / Path(sys.executable).relative_to(sys.prefix), bound[0][1])
    finally:
        for _, place in bound:
            subprocess.run(["umount", "--lazy", place], check=True)
            place.rmdir()


def tenants(one: Serving) -> Iterator[Serving]:
    try:
        one.run("new", "mine", "--env", "AWS_SECRET_ACCESS_KEY=mine-alone", "--umask", "077")
        one.run("new", "theirs", "--env", f"AWS_SECRET_ACCESS_KEY={SECRET}", "--umask", "077")
        (one.root / "theirs/file").write_text(SECRET)
        (one.root / "mine/file").write_text("mine")
        yield one
        one.stop()
    finally:
        one.clean_up()


def attempt(uid: int, code: str, *, gid: int | None = None, groups: Sequence[int] = ()) -> str:
    """What a process of that user sees; the code prints. A fork: our interpreter may be where that user cannot read."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(write_end, 1)
            gid = uid if gid is None else gid
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            sys.stdout = os.fdopen(1, "w")
            exec(code, {})
            sys.stdout.flush()
        except BaseException as e:
            os.write(1, repr(e).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as output:
        told = output.read()
    os.waitpid(pid, 0)
    return told


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_each_worker_is_a_user_without_rights(host: Serving) -> None:
    users = set()
    for session in ("mine", "theirs"):
        status = status_of(host.worker(session))
        users.add(status["Uid"])
        assert len(set(status["Uid"].split())) == 1 and int(status["Uid"].split()[0]) >= FIRST
        assert (status["CapPrm"], status["CapEff"], status["Groups"]) == ("0" * 16, "0" * 16, "")
        assert status["NoNewPrivs"] == "1"
    assert len(users) == 2


def test_a_worker_that_was_taken_over_reaches_only_its_own_session(host: Serving) -> None:
    """As the user that `mine`'s worker is, which is all that whoever breaks it would be."""
    uid = int(status_of(host.worker("mine"))["Uid"].split()[0])
    other = host.worker("theirs")
    targets = [
        *(host.state / "theirs").iterdir(),
        host.state / ".daemon/registry/audit.log",
        host.state / ".daemon/registry/registry/secrets/theirs.json",
        host.state / ".daemon/registry/secrets/theirs.json",
        Path(f"/proc/{other}/environ"),
        Path(f"/proc/{other}/mem"),
        Path(f"/proc/{host.process.pid}/environ"),
        host.root / "theirs/file",
    ]
    code = f"""
import os, socket
for path in {[str(path) for path in targets]!r}:
    try:
        os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(100)
        print("REACHED", path)
    except OSError:
        pass
for name in {[str(host.socket), str(host.state / "theirs/worker.sock")]!r}:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        try:
            socket.socket(socket.AF_UNIX, kind).connect(name)
            print("REACHED", name)
        except OSError:
            pass
for call, argument in ((os.listdir, {str(host.state)!r}), (os.kill, {other}), (os.kill, {host.process.pid})):
    try:
        call(argument) if call is os.listdir else call(argument, 9)
        print("REACHED", call)
    except OSError:
        pass
print("own", os.listdir({str(host.state / "mine")!r}) != [])
"""
    assert attempt(uid, code) == "own True\n"


def test_credentials_are_in_no_process_but_their_own_worker(host: Serving) -> None:
    """Also not in what a fork inherits: the memory that /proc/PID/environ shows."""
    for pid in host.processes():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        assert SECRET.encode() not in environment
        if pid != host.process.pid:  # what it was itself started with cannot be taken out of the daemon
            assert b"the-daemons-own" not in environment
    everywhere = host.log() + json.dumps(host.json("status", "theirs")) + host.run("ls", "--json").stdout.decode()
    assert SECRET not in everywhere
    with_secret = [path for path in host.state.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    owned = {(path.stat().st_uid, path.stat().st_mode & 0o077) for path in with_secret if "content" not in path.parts}
    assert owned <= {(0, 0)}


def test_another_user_of_this_host_reaches_nothing(host: Serving) -> None:
    own = [host.state / "mine", host.state, host.state / ".daemon/registry"]
    targets = [*own, host.root / "mine", host.root / "mine/file"]
    code = f"""
import os, socket
for path in {[str(path) for path in targets]!r}:
    try:
        os.listdir(path) if os.path.isdir(path) else open(path).read()
        print("REACHED", path)
    except OSError:
        pass
try:
    socket.socket(socket.AF_UNIX).connect({str(host.socket)!r})
    print("REACHED the socket")
except PermissionError:
    print("refused")
"""
    assert attempt(STRANGER, code) == "refused\n"


def test_members_of_the_group_are_let_in_and_nobody_else(open_directory: Path) -> None:
    group = grp.getgrgid(STRANGER)
    one = Serving.start(open_directory / "grouped", {"group": group.gr_name})
    code = f"""
from click.testing import CliRunner
from mount.cli import main
for command in (["new", "a"], ["ls", "-q"], ["rm", "a", "--purge"]):
    result = CliRunner().invoke(main, [*command, "--state", {str(one.state)!r}])
    print(result.exit_code, result.output.strip())
"""
    try:
        assert one.socket.stat().st_mode & 0o777 == 0o660 and one.socket.stat().st_gid == group.gr_gid
        assert attempt(STRANGER, code) == "0 a\n0 a\n0 \n"
        assert attempt(STRANGER, code, gid=FIRST, groups=[STRANGER]).startswith("0 a"), "an additional group, too"
        told = attempt(FIRST, code)
        assert told.count("1 Error: ") == 3 and told.count("permission") == 3
        one.stop()
    finally:
        one.clean_up()


def test_a_socket_that_someone_loosened_still_refuses_by_the_peers_user(host: Serving) -> None:
    host.socket.chmod(0o666)
    code = f"""
import socket
s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect({str(host.socket)!r})
try:
    s.sendall(b"GET /v1/sessions HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    print("got", s.recv(100))
except OSError as e:
    print("got", b"")
"""
    try:
        assert attempt(STRANGER, code) == "got b''\n"
        until(lambda: f"of user {STRANGER}" in host.log())
        with host.client() as client:
            assert "mount_session_refused_connections_total 1.0" in client.metrics()
    finally:
        host.socket.chmod(0o600)


@pytest.mark.parametrize("user", ["1001:1001", "0:0"])
def test_a_container_sees_its_own_session_alone(
    user: str, host: Serving, docker_engine: Engine, container: Callable[..., Container]
) -> None:
    """Its root has no rights over ours."""
    worker = host.worker("theirs")
    script = f"""
    cat file
    for path in {host.state} {host.state}/theirs {host.root}/theirs /workspace/../theirs/file {host.socket} \\
            /proc/{worker}/environ /proc/{host.process.pid}/root/; do
        if ls "$path" > /dev/null 2>&1; then echo "REACHED $path"; fi
    done
    ln -s ../../theirs/file up; ln -s {host.root}/theirs/file absolute
    for link in up absolute; do if cat $link 2> /dev/null; then echo "REACHED by $link"; fi; done
    mknod device c 1 1 2> /dev/null && cat device 2> /dev/null && echo "REACHED a device"
    mknod fuse c 10 229 2> /dev/null && (: < fuse) 2> /dev/null && echo "REACHED /dev/fuse"
    cp /bin/busybox su && chmod 4755 su && ./su id -u | grep -v "^$(id -u)$" && echo "REACHED another user"
    grep -rl {SECRET} /proc/*/environ /workspace 2> /dev/null | grep . && echo "REACHED credentials"
    umount /workspace 2> /dev/null && echo "REACHED the mount"
    rm -f up absolute device fuse su
    """
    assert container(host.root / "mine", script, user=user).finish() == "mine"


def test_mounts_are_nosuid_and_nodev(host: Serving) -> None:
    lines = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(host.root) in line]
    assert len(lines) == 2
    assert all({"nosuid", "nodev"} <= set(line.split()[5].split(",")) for line in lines)


def test_a_worker_without_rights_keeps_its_journal_small(host: Serving) -> None:
    """Which is done by a process of its own: Python anew, as the worker's user."""
    directory = host.state / "mine"
    before = sorted(path.name for path in directory.glob("journal.*"))
    for n in range(1100):
        os.symlink("x" * 4000, host.root / f"mine/{n}")
    image = until(lambda: next(directory.glob("image"), None))
    assert image.stat().st_uid == directory.stat().st_uid >= FIRST
    until(lambda: sorted(path.name for path in directory.glob("journal.*")) > before)
    os.kill(host.worker("mine"), signal.SIGKILL)
    assert len(os.readlink(host.root / "mine/0")) == 4000 and (host.root / "mine/file").read_text() == "mine"
    for n in range(1100):
        os.unlink(host.root / f"mine/{n}")
    assert "cannot run" not in host.log() and "no new image" not in host.log()


HOSTILE = [
    (b"GET /v1/sessions/..%2f..%2fetc HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    (b"GET /v1/sessions/%00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /v1/sessions/" + b"a" * 500 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /v1/sessions/x%0aforged HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
    (b"\x16\x03\x01garbage\r\n\r\n", 400),
    (b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n[", 400),
    (b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n" + b'{"session":"../../"}', 400),
    (b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n" + b'{"unknown": 1}', 400),
    (b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", 400),
    (b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: nonsense\r\n\r\n", 400),
    (
        b"PATCH /v1/sessions/mine/policy HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n" + b'{"hidden":["//"]}'[:16],
        400,
    ),
    (b"GET /v1/sessions/mine/wait?timeout=nan HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /v1/sessions/mine/wait?timeout=1e9 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"DELETE /v1/sessions/mine?purge=maybe HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"BREW /v1/sessions HTTP/1.1\r\nHost: x\r\n\r\n", 405),
]


@pytest.mark.parametrize(("request_", "status"), HOSTILE, ids=[f"{n}" for n in range(len(HOSTILE))])
def test_a_hostile_request_is_a_4xx_and_a_log_line_and_harms_nothing(
    request_: bytes, status: int, host: Serving
) -> None:
    logged = host.log_path.stat().st_size
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(host.socket))
        with contextlib.suppress(BrokenPipeError):  # answered before all of it was read
            sock.sendall(request_)
        answer = sock.recv(65536)
    assert answer.split()[1] == str(status).encode(), answer
    assert (host.root / "mine/file").read_text() == "mine"
    assert "defect" not in host.log() and "\nforged" not in host.log()
    repeated = f"no HTTP request: {status}"  # of which the log has one a minute
    line = until(lambda: host.log_path.read_bytes()[logged:].decode() or (repeated in host.log() and repeated))
    assert f": {status}" in line or "no such route" in line, line


def test_a_body_without_end_is_cut_off(host: Serving) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(host.socket))
        sock.sendall(b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        answer = b""
        try:
            for _ in range(100):
                sock.sendall(b" " * 100_000)
            answer = sock.recv(65536)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            answer = answer or sock.recv(65536)
    assert answer.split()[1] == b"413"


def test_what_was_refused_is_in_the_log(host: Serving) -> None:
    assert "session id" in host.log() and "no such route" in host.log()
