"""What a session is: files, journal, content, persistence. No FUSE and no processes here; those are in `mount`.

Only what is named here, and in `vfs.storage`, is public. docs/python.md shows how it is used.
"""

from vfs.callbacks import Change, Context, FileSystemCallbacks
from vfs.errors import Conflict, DamagedState, StateInUse, UnsupportedState
from vfs.event import Event
from vfs.fileref import FileRef, build_file_ref, compute_checksum, generate_session_id, guess_content_type
from vfs.files import Files
from vfs.options import Options
from vfs.persistence import Persistence
from vfs.policy import Policy
from vfs.routes import Route, Routes
from vfs.session import Receipt, Session
from vfs.stats import Stats

__all__ = [
    "Change",
    "Conflict",
    "Context",
    "DamagedState",
    "Event",
    "FileRef",
    "FileSystemCallbacks",
    "Files",
    "Options",
    "Persistence",
    "Policy",
    "Receipt",
    "Route",
    "Routes",
    "Session",
    "StateInUse",
    "Stats",
    "UnsupportedState",
    "build_file_ref",
    "compute_checksum",
    "generate_session_id",
    "guess_content_type",
]
