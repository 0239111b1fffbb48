"""Who holds a mount: the processes with something open in it, or with it in their own mount namespace (containers).

Read from /proc alone and never by touching the mount, which may not answer: which file system a process's file is on is
told by the paths of its links and by its mountinfo. What cannot be read (another user's process) is left out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from mount.mountpoint import parse_mountinfo


class Holder(NamedTuple):
    pid: int
    name: str
    why: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name}): {self.why}"


def find(device: str, mountpoint: Path) -> list[Holder]:
    """The holders of the file system with this device number, once mounted on `mountpoint`."""
    found = []
    own = os.readlink("/proc/self/ns/mnt")
    for entry in filter(str.isdigit, os.listdir("/proc")):
        if int(entry) == os.getpid():
            continue
        try:
            why = _why(Path("/proc", entry), device, os.fsencode(mountpoint), own)
            if why is not None:
                found.append(Holder(int(entry), Path("/proc", entry, "comm").read_text().strip(), why))
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # ended, or not ours to look at
            continue
    return found


def _why(process: Path, device: str, mountpoint: bytes, own_namespace: str) -> str | None:
    if os.readlink(process / "ns/mnt") != own_namespace:
        for entry in parse_mountinfo((process / "mountinfo").read_bytes()):
            if entry.device == device:
                return f"mounted on {os.fsdecode(entry.mountpoint)} in its mount namespace"
        return None
    for link in ("cwd", "root"):
        if _inside(os.fsencode(os.readlink(process / link)), mountpoint):
            return f"its {link} is in it"
    for name in os.listdir(process / "fd"):
        target = os.fsencode(os.readlink(process / "fd" / name))
        if _inside(target, mountpoint):
            return f"{os.fsdecode(target)} is open"
    for line in (process / "maps").read_bytes().split(b"\n"):
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and _inside(fields[5], mountpoint):
            return f"{os.fsdecode(fields[5])} is mapped"
    return None


def _inside(path: bytes, mountpoint: bytes) -> bool:
    return path == mountpoint or path.startswith(mountpoint.rstrip(b"/") + b"/")
