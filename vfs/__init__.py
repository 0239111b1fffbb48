"""What a session is: files, journal, content, persistence. No FUSE and no processes here; those are in `mount`.

Only what is named here is public.
"""

from vfs.errors import Conflict, DamagedState, StateInUse, UnsupportedState
from vfs.fileref import FileRef
from vfs.session import Receipt, Session

__all__ = ["Conflict", "DamagedState", "FileRef", "Receipt", "Session", "StateInUse", "UnsupportedState"]
