"""Limits of this process that its user may raise."""

from __future__ import annotations

import resource

_FILES = 1 << 16


def allow_files() -> None:
    """Let this process have as many files open as its hard limit allows, at most 65,536: each source needs some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
