"""Keeping the secrets of this process: no child inherits them, and neither a core dump nor a debugger shows them."""

from __future__ import annotations

_PR_SET_DUMPABLE = 4
"""From linux/prctl.h. execve(2) resets the attribute, so no program that is started from here inherits it."""


def is_secret(variable: str) -> bool:
    """Whether the value of this environment variable is a secret itself: LAMELLA_PASSPHRASE, LAMELLA_..._PASSPHRASE."""
    return variable.startswith("LAMELLA_") and variable.endswith("PASSPHRASE")


def keep_memory_private() -> None:
    """Write no core dump, and let no other process of this user read the memory (PR_SET_DUMPABLE, prctl(2))."""
    import ctypes
    import resource

    # A soft limit: the programs that a command starts may raise theirs again.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
