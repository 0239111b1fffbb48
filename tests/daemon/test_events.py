"""What happens in a session is told by the daemon: as lines, as server-sent events, to webhooks; nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from mount.address import short_path
from mount.webhooks import SIGNATURE, signature
from tests.daemon.serving import COMMAND, PROJECT, Serving, until

Serve = Callable[..., Serving]


def events(daemon: Serving, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in daemon.run("events", *arguments).stdout.splitlines()]


def paths(daemon: Serving, kind: str, *arguments: str) -> list[str]:
    return [event["path"] for event in events(daemon, *arguments) if event["kind"] == kind]


@contextmanager
def http(daemon: Serving) -> Iterator[httpx.Client]:
    with (
        short_path(daemon.socket) as uds,
        httpx.Client(transport=httpx.HTTPTransport(uds=uds), base_url="http://daemon", timeout=20) as client,
    ):
        yield client


def test_the_command_prints_what_happened_and_resumes_by_number(serving: Serve) -> None:
    daemon = serving()
    daemon.run("new", "desk")
    desk = daemon.root / "desk"
    (desk / "file").write_text("content")
    (desk / "dir").mkdir()
    (desk / "file").rename(desk / "dir/moved")
    (desk / "dir/moved").unlink()
    told = until(lambda: (found := events(daemon, "desk")) and found[-1]["kind"] == "deleted" and found)
    assert [(event["seq"], event["kind"], event["path"]) for event in told] == [
        (1, "created", "/file"),
        (2, "modified", "/file"),
        (3, "created", "/dir"),
        (4, "moved", "/dir/moved"),
        (5, "deleted", "/dir/moved"),
    ]
    assert told[1]["file"]["size"] == 7 and told[3]["old_path"] == "/file"
    assert {(event["uid"], event["program"]) for event in told} == {(0, Path("/proc/self/comm").read_text().strip())}
    assert events(daemon, "desk", "--since", "3") == told[3:]
    assert events(daemon, "desk", "--since", "now") == []
    daemon.run("events", "nope", status=4)
    daemon.run("events", "desk", "--since", "x", status=2)

    daemon.run("unmount", "desk")
    assert events(daemon, "desk", "--since", "3") == told[3:], "of a session that is not mounted too"
    daemon.stop()
    assert events(daemon, "desk", "--since", "3") == told[3:], "and without the daemon"


def test_who_follows_sees_each_event_once_though_workers_die_and_the_session_comes_and_goes(serving: Serve) -> None:
    daemon = serving()
    daemon.run("new", "desk")
    command = [*COMMAND, "events", "--state", str(daemon.state), "--follow", "desk"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        try:
            for number in range(6):
                (daemon.root / f"desk/{number}").write_text("x")
                assert _next(following.stdout, "modified") == f"/{number}"
                if number == 4:
                    daemon.run("unmount", "desk")
                    daemon.run("mount", "desk")
                else:
                    os.kill(daemon.worker("desk"), signal.SIGKILL)
        finally:
            following.terminate()
    told = events(daemon, "desk")
    assert [event["seq"] for event in told] == list(range(1, len(told) + 1))
    assert [event["path"] for event in told if event["kind"] == "created"] == [f"/{number}" for number in range(6)]


def _next(lines: Any, kind: str) -> str:
    while True:
        event = json.loads(lines.readline())
        if event["kind"] == kind:
            return str(event["path"])


def test_server_sent_events_resume_by_the_last_id(serving: Serve) -> None:
    daemon = serving()
    daemon.run("new", "desk")
    for name in ("a", "b", "c"):
        (daemon.root / "desk" / name).mkdir()
    until(lambda: len(events(daemon, "desk")) == 3)
    with http(daemon) as client:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": "1"}
        with client.stream("GET", "/v1/sessions/desk/events", headers=headers) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = response.iter_lines()
            assert [next(lines) for _ in range(2)] == ["id: 2", "event: created"]
            assert json.loads(next(lines).removeprefix("data: "))["path"] == "/b"
            assert [next(lines) for _ in range(2)] == ["", "id: 3"]
            (daemon.root / "desk/d").mkdir()
            assert "id: 4" in (next(lines) for _ in range(4))
        for wrong in ("-1", "1e3", "x", "9" * 30):
            assert client.get("/v1/sessions/desk/events", params={"since": wrong}).status_code == 400
        assert client.get("/v1/sessions/nope/events").status_code == 404


class Receiving:
    """A receiver of webhooks, and what it has taken, by a real server; `status` is what it answers."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.signed: list[tuple[str | None, bytes]] = []
        self.status = 204
        receiving = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                event = json.loads(body)
                if receiving.status == 204:
                    receiving.signed.append((self.headers.get(SIGNATURE), body))
                    receiving.taken.append(event)
                self.send_response(receiving.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self) -> Receiving:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    def numbers(self, session: str) -> list[int]:
        return [event["seq"] for event in self.taken if event["session"] == session]


def test_webhooks_are_told_of_everything_in_order_over_restarts_and_a_receiver_that_was_down(
    serving: Serve, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("hush\n")
    with Receiving() as hook:
        secret = str(tmp_path / "key")
        settings: dict[str, Any] = {"webhooks": [{"url": hook.url, "sessions": ["desk*"], "secret_file": secret}]}
        first = serving(**settings)
        first.run("new", "desk")
        first.run("new", "other")
        (first.root / "desk/a").write_text("x")
        (first.root / "other/a").write_text("x")
        until(lambda: hook.numbers("desk") == [1, 2])
        hook.status = 503
        (first.root / "desk/b").write_text("x")
        until(lambda: "status 503" in first.log())
        first.stop()
        hook.status = 204
        second = serving(**settings)
        until(lambda: hook.numbers("desk") == [1, 2, 3, 4])
        second.run("new", "desk-2")
        (second.root / "desk-2/dir").mkdir()
        until(lambda: hook.numbers("desk-2") == [1])
        assert hook.numbers("other") == []
        told = [event for event in hook.taken if event["session"] == "desk"]
        assert told == events(second, "desk")
        for header, body in hook.signed:
            assert header is not None
            stamp, _ = (part.split("=", 1)[1] for part in header.split(","))
            assert header == signature(b"hush", int(stamp), body) and abs(time.time() - int(stamp)) < 60
        assert "hush" not in second.log() and "/hook" not in second.log()
        second.stop()
        third = serving(webhooks=[{"url": hook.url + "/new"}])
        places = third.state / ".daemon/registry/webhooks.json"
        until(lambda: json.loads(places.read_text()).get(hook.url + "/new", {}).get("desk"))
        (third.root / "desk/c").mkdir()
        until(lambda: len(hook.numbers("desk")) == 5)
        assert hook.taken[-1]["path"] == "/c", "a new receiver is told of what comes"


def test_the_soft_limit_of_a_quota_is_an_event_that_names_who_passed_it(serving: Serve) -> None:
    daemon = serving()
    daemon.run("new", "desk", "--soft-bytes", "10", "--soft-inodes", "1")
    (daemon.root / "desk/f").write_bytes(b"x" * 11)
    (daemon.root / "desk/dir").mkdir()

    def found() -> list[dict[str, Any]]:
        return [event for event in events(daemon, "desk") if event["kind"] == "soft_limit"]

    told = until(lambda: len(found()) == 2 and found())
    assert [event["limit"] for event in told] == [
        {"of": "bytes", "used": 11, "limit": 10},
        {"of": "inodes", "used": 2, "limit": 1},
    ]
    me = Path("/proc/self/comm").read_text().strip()
    assert [(event["pid"], event["uid"], event["program"]) for event in told] == [(os.getpid(), os.getuid(), me)] * 2
    daemon.run("policy", "desk", "--soft-bytes", "5")
    (last,) = until(lambda: found()[2:])
    assert last["limit"]["limit"] == 5 and "pid" not in last, "no program did it"
