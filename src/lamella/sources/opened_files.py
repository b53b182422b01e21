"""The files that another process of this user has open, as the kernel knows them."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path


def opened_files(process: int) -> set[Path]:
    """The files and block devices, by their paths without links (proc_pid_fd(5)). Raises OSError."""
    found: set[Path] = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            mode = descriptor.stat().st_mode
            if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
                found.add(descriptor.readlink())
    return found
