"""What a storage holds of a session, removed: a process of its own, as the session's worker would be.

python -m mount.purge < MountConfig

The daemon imports no storage client and has no session's credentials; this has both, for one session, and then ends.
Through callbacks, what they list is deleted. What could not be removed ends it with status 1 and one line of JSON on
standard error.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Final

import msgspec
import trio

from mount import identity
from mount.config import MountConfig
from mount.quietlog import masked
from mount.spawner import PROJECT
from vfs.errors import leaves

__all__ = ["purge"]

LIMIT: Final = 3600.0  # seconds; a million objects are deleted in bulk in some minutes


async def purge(config: MountConfig) -> None:
    """The daemon's side: OSError says what is left."""
    with trio.fail_after(LIMIT):
        done = await trio.run_process(
            [sys.executable, "-P", "-m", "mount.purge"],
            stdin=msgspec.msgpack.encode(config),
            capture_stderr=True,
            check=False,
            env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": _path()},
        )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").splitlines() or ["no message"]
        try:
            told = json.loads(lines[-1])
        except ValueError:
            raise OSError(5, f"the storage was not purged: {lines[-1]}", config.session) from None
        raise OSError(told["errno"] or 5, f"the storage was not purged: {told['message']}", config.session)


def _path() -> str:
    return os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))


async def _clean(config: MountConfig) -> None:
    from mount.opening import open_persistences
    from vfs.storage import LocalStorage, open_storage

    storage = open_storage(config.storage)
    if storage is not None:
        options = {"cleanup_on_exit": True} if isinstance(storage, LocalStorage) else {}
        await storage.init(config.session, **options)
        await storage.cleanup()
        return
    for persistence in await open_persistences(config):
        try:
            for ref in await persistence.list():
                await persistence.delete(ref.path)
        finally:
            await persistence.aclose()


def main() -> int:
    config = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=MountConfig)
    identity.assume(config.run_as, config.environment)
    try:
        trio.run(_clean, config)
    except Exception as e:
        failures = leaves(e)
        message = "; ".join(dict.fromkeys(str(failure) for failure in failures))
        json.dump({"errno": getattr(failures[0], "errno", None), "message": masked(message)}, sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
