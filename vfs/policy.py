"""The policy of a session: what an operator allows it, as one value.

It comes from flags, from TOML or over the API, always through `parse`, which is where anything odd is refused; from
there on a Policy is right by construction. `Session.apply` puts one in force, also while the session is mounted and in
use; what counts against a limit is in `quota`, what globs mean in `globs`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from vfs.globs import Globs

__all__ = ["UNLIMITED", "Policy", "parse", "parse_size"]

_Id = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 2)]  # (uid_t)-1 means "unchanged" to chown(2)
_Mask = Annotated[int, msgspec.Meta(ge=0, le=0o777)]
_Limit = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """None: no limit, or as the programs made it.

    uid, gid          one owner for all that is in the session, whoever made it
    umask             permission bits that no new file or directory gets, beside the program's own umask
    read_only         nothing changes through the mount: EROFS
    hidden            globs of names that do not exist for the session: ENOENT
    local_only        globs of what is never persisted (node_modules, .venv, caches)
    quota_bytes       of all files' sizes, holes included, a file with several names once: EDQUOT at the write beyond it
    quota_inodes      files, directories and the rest, the root not counted: EDQUOT at the create beyond it
    soft_bytes        above it there is an event, once until it has been below again; so for soft_inodes
    max_file_bytes    EFBIG at the write beyond it
    idle_seconds      without requests and with nothing pending the worker goes; None or 0: it stays
    durability        what fsync(2) promises: `local`, on this disk; `remote`, in the persistence
    cache_bytes       clean content kept here of what is in the persistence
    cache_wait        how many seconds a writer waits when only dirty data is left in a full cache: ENOSPC; None: 30
    refresh_seconds   between two listings of the persistence; None: 30; 0: only when asked
    """

    uid: _Id | None = None
    gid: _Id | None = None
    umask: _Mask = 0
    read_only: bool = False
    hidden: tuple[str, ...] = ()
    local_only: tuple[str, ...] = ()
    quota_bytes: _Limit | None = None
    quota_inodes: _Limit | None = None
    soft_bytes: _Limit | None = None
    soft_inodes: _Limit | None = None
    max_file_bytes: _Limit | None = None
    idle_seconds: _Seconds | None = 300.0
    durability: Literal["local", "remote"] = "local"
    cache_bytes: _Limit | None = None
    cache_wait: _Seconds | None = None
    refresh_seconds: _Seconds | None = None

    def __post_init__(self) -> None:
        for patterns in (self.hidden, self.local_only):
            Globs(patterns)
        for seconds in (self.idle_seconds, self.cache_wait, self.refresh_seconds):
            if seconds is not None and not math.isfinite(seconds):
                raise ValueError(f"{seconds} seconds: a number is needed")
        for soft, hard in ((self.soft_bytes, self.quota_bytes), (self.soft_inodes, self.quota_inodes)):
            if soft is not None and hard is not None and soft > hard:
                raise ValueError(f"soft limit {soft} above the quota {hard}: no event would come before the error")

    def changed(self, fields: Mapping[str, Any]) -> Policy:
        """This policy with some fields as `fields` has them; ValueError says which is wrong."""
        return parse({**msgspec.structs.asdict(self), **fields})


UNLIMITED = Policy()


def parse(fields: Mapping[str, Any]) -> Policy:
    """A policy from what a person wrote: sizes as numbers or like "10GiB", umask as a number or like "022", uid and
    gid as numbers. ValueError says which field is wrong and why."""
    return msgspec.convert({name: _value(name, value) for name, value in fields.items()}, Policy)


def _value(name: str, value: object) -> object:
    if not isinstance(value, str):
        return value
    if name.endswith("_bytes"):
        return parse_size(value)
    if name == "umask":
        if not re.fullmatch(UMASK, value):
            raise ValueError(f"umask {value!r}: up to three octal digits are needed, like 022")
        return int(value.replace("o", ""), 8)
    return value


UMASK = "0?o?[0-7]{1,4}"
SIZE = "([0-9]+(?:[.][0-9]+)?) *([kmgtKMGT]?)([iI]?[bB])?"
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes: "4096", "10MB" (10,000,000), "10MiB" or "10M" (10,485,760, as dd and du have it)."""
    found = re.fullmatch(SIZE, text.strip())
    if found is None:
        raise ValueError(f"size {text!r}: a number of bytes, or one like 500MB, 10GiB or 10G, is needed")
    number, prefix, suffix = found.groups(default="")
    return int(float(number) * (_UNITS if suffix.lower() == "b" else _BINARY)[prefix.lower()])
