"""Descriptors: how many a process of ours may have open. The soft limit that a shell gives (1,024) protects programs
that use select(2), of which none is ours, and is too low for a host with hundreds of sessions."""

from __future__ import annotations

import resource

__all__ = ["raise_limit"]


def raise_limit() -> None:
    """As many as this host allows, for this process and those that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
