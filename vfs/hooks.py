"""Hooks: the integrator's own functions, called when something has happened to a file.

    on_file_created(file, session_id)       on_file_deleted(file, session_id)
    on_file_modified(file, session_id)      on_file_synced(file, session_id)
    on_file_moved(file, session_id, old_path)

Each optional, sync (in a thread), or async under trio or asyncio (see `call`), on any object: an instance, a module, or
a dict of functions. They are called one after another, in the order of the events, beside the requests: a slow one
delays the next hook and nothing else, for what it has not been told of is in the event log. What a hook raises is
logged. Of directories and the like they are not told.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from vfs.call import AsyncLibrary, Caller
from vfs.event import Event

__all__ = ["HOOKS", "Hooks"]

log = logging.getLogger(__name__)

SECONDS = 30.0  # that a hook may take
HOOKS = {
    "created": "on_file_created",
    "modified": "on_file_modified",
    "deleted": "on_file_deleted",
    "moved": "on_file_moved",
    "synced": "on_file_synced",
}


class Hooks:
    def __init__(self, target: Any, async_library: AsyncLibrary | None = None) -> None:
        """The hooks that `target` has. TypeError for one that cannot be called. `async_library`: see `vfs.call`."""
        functions: dict[str, Callable[..., Any]] = {}
        for name in HOOKS.values():
            function = target.get(name) if isinstance(target, Mapping) else getattr(target, name, None)
            if function is None:
                continue
            if not callable(function):
                raise TypeError(f"{name} of {target!r} cannot be called")
            functions[name] = function
        self._caller = Caller("hooks", functions, target, async_library=async_library)

    def __bool__(self) -> bool:
        return bool(self._caller.callbacks)

    async def run(self, events: AsyncIterator[Event], told: Callable[[int], None]) -> None:
        """Call the hooks for `events`; `told` is given the number of each event that is done with."""
        async for event in events:
            hook = HOOKS.get(event.kind)
            if hook in self._caller.callbacks and event.file is not None and event.type == "file":
                await self._call(hook, event)
            elif event.kind == "lost":
                log.warning("%s: %s events came and went before the hooks were told", event.session, event.missed)
            told(event.seq)

    async def _call(self, hook: str, event: Event) -> None:
        arguments: tuple[Any, ...] = (event.file, event.session)
        if event.kind == "moved":
            arguments += (event.old_path,)
        try:
            await self._caller.call(hook, event.path, SECONDS, *arguments)
        except OSError as e:
            log.warning("%s: %s failed for %s (event %d): %s", event.session, hook, event.path, event.seq, e)

    async def aclose(self) -> None:
        await self._caller.aclose()
