"""Where a request came from: the program and the container of a process, as /proc tells.

What is read is kept for each pid, for `_FRESH` seconds without another look: a pid comes back after thousands of other
processes, not within that. A process that is gone by the time it is looked at keeps what was known of it before.
Asked by `events`, beside the requests: two small files cost about 30 microseconds.
"""

from __future__ import annotations

import re
import time
from typing import NamedTuple

__all__ = ["Origin", "Origins", "container_in"]

_FRESH = 2.0
_KEPT = 30.0  # seconds for which what was known of a process that is gone stands
_MOST = 4096
_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


class Origin(NamedTuple):
    """None: the kernel does not tell (any more), or the process is in no container."""

    program: str | None
    container: str | None


UNKNOWN = Origin(None, None)


def container_in(cgroups: str) -> str | None:
    """The container's id in the text of /proc/PID/cgroup: the last name of 64 hexadecimal digits in any path.

    Docker, containerd, Podman and Kubernetes all name a container's cgroup so: `/docker/ID`,
    `/system.slice/docker-ID.scope`, `/kubepods.slice/.../cri-containerd-ID.scope`, `/machine.slice/libpod-ID.scope`.
    """
    for line in cgroups.splitlines():
        found = _ID.findall(line)
        if found:
            return str(found[-1])
    return None


class Origins:
    def __init__(self) -> None:
        self._known: dict[int, tuple[Origin, float]] = {}

    def is_fresh(self, pid: int, now: float) -> bool:
        known = self._known.get(pid)
        return known is not None and now - known[1] < _FRESH

    def get(self, pid: int) -> Origin:
        known = self._known.get(pid)
        return UNKNOWN if known is None else known[0]

    def look(self, pid: int) -> None:
        """Read what /proc says about the process now."""
        now = time.monotonic()
        try:
            with open(f"/proc/{pid}/cgroup") as file:
                container = container_in(file.read())
            with open(f"/proc/{pid}/comm", errors="backslashreplace") as file:
                found = Origin(file.read().rstrip("\n"), container)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            known = self._known.get(pid)
            found = known[0] if known is not None and now - known[1] < _KEPT else UNKNOWN
        if len(self._known) >= _MOST:
            self._known = {pid: kept for pid, kept in self._known.items() if now - kept[1] < _FRESH}
        self._known[pid] = found, now
