"""Many sessions on one host: what mounting costs, what each holds in memory, and whether they share it fairly.

python -m bench.host [SESSIONS]      as root; 200 by default. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mount.client import Client
from mount.messages import NewSession

STORM_SECONDS = 5.0


def memory(pid: int) -> float:
    """PSS in MiB: a worker shares most of its pages with the zygote."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no Pss of {pid}")


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[int(part * (len(values) - 1))]


def storm(directory: Path) -> int:
    """A child that makes and removes files as fast as it can."""
    pid = os.fork()
    if pid:
        return pid
    while True:
        for n in range(100):
            (directory / f"{n}").touch()
        for n in range(100):
            (directory / f"{n}").unlink()


def quiet(directory: Path) -> dict[str, float]:
    """Microseconds for a stat of what the kernel has not cached (a name that was never there), and for a 4 KiB read."""
    file = directory / "file"
    file.write_bytes(os.urandom(4096 * 256))
    stats, reads, end, n = list[float](), list[float](), time.monotonic() + STORM_SECONDS, 0
    fd = os.open(file, os.O_RDONLY)
    while time.monotonic() < end:
        n += 1
        began = time.perf_counter()
        os.path.exists(directory / f"absent-{n}")
        stats.append(time.perf_counter() - began)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        os.pread(fd, 4096, n % 256 * 4096)
        reads.append(time.perf_counter() - began)
    os.close(fd)
    return {
        "stat_p50": round(percentile(stats, 0.5) * 1e6),
        "stat_p99": round(percentile(stats, 0.99) * 1e6),
        "read_p50": round(percentile(reads, 0.5) * 1e6),
        "read_p99": round(percentile(reads, 0.99) * 1e6),
    }


def untar(directories: list[Path], archive: Path) -> list[float]:
    """Seconds that each of them takes, all at once."""
    began = time.monotonic()
    running = {subprocess.Popen(["tar", "-xf", archive, "-C", directory]): directory for directory in directories}
    taken = []
    while running:
        pid, status = os.wait()
        (process,) = [process for process in running if process.pid == pid]
        assert status == 0, f"tar ended with {status} in {running[process]}"
        process.returncode = 0
        del running[process]
        taken.append(time.monotonic() - began)
    return taken


def measure(directory: Path, sessions: int) -> dict[str, object]:
    root, state = directory / "root", directory / "state"
    command = [sys.executable, "-m", "mount.cli", "serve", "--root", str(root), "--state", str(state)]
    with (directory / "log").open("wb") as log:
        daemon = subprocess.Popen(command, stderr=log)
    while not (state / ".daemon/control.sock").exists():
        time.sleep(0.05)
    figures: dict[str, object] = {"sessions": sessions}
    with Client(state) as client:
        times = []
        for n in range(sessions):
            began = time.monotonic()
            client.new(NewSession(session=f"s{n}"))
            times.append(time.monotonic() - began)
        figures["mount_ms"] = {"median": round(statistics.median(times) * 1e3), "max": round(max(times) * 1e3)}
        found = client.list()
        workers = [memory(status.worker.pid) for status in found if status.worker and status.worker.pid]
        figures["worker_pss_mib"] = round(statistics.mean(workers), 1)
        figures["daemon_pss_mib"] = round(memory(daemon.pid), 1)
        figures["alone_us"] = quiet(root / "s0")
        pid = storm(root / "s1")
        figures["beside_a_storm_us"] = quiet(root / "s0")
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        archive = directory / "tree.tar"
        subprocess.run(["tar", "-cf", archive, "-C", "/usr/lib/python3", "."], check=True)
        taken = untar([root / f"s{n}" for n in range(2, 22)], archive)
        figures["untar_20_s"] = {"first": round(min(taken), 1), "last": round(max(taken), 1)}
    began = time.monotonic()
    daemon.terminate()
    assert daemon.wait() == 0
    figures["stop_s"] = round(time.monotonic() - began, 1)
    return figures


def main() -> None:
    directory = Path(tempfile.mkdtemp(prefix="bench-host."))
    try:
        print(json.dumps(measure(directory, int(sys.argv[1]) if len(sys.argv) > 1 else 200)))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
