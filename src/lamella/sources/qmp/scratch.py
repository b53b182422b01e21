"""Scratch space: where QEMU puts what the guest is about to overwrite while a backup reads.

A file without a name: when QEMU and we have closed it, the space is free again, whatever killed us. It may grow until
the file system has little room left; then the moment is given up, never the guest.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from lamella.base.errors import SourceAtRisk, SourceError

PLACE: Final = Path("/var/tmp")
"""Large, and on a disk. The file has no name there."""
_LEAST_PERCENT: Final = 5
_LEAST_BYTES: Final = 2 << 30


def open_scratch(place: Path) -> int:
    """A new descriptor of a file without a name. Raises SourceError; SourceAtRisk where there is too little room."""
    try:
        handle, name = -1, ""
        try:
            handle = os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:  # not every file system has files without a name
            handle, name = tempfile.mkstemp(prefix="lamella-", dir=place)
            os.unlink(name)  # noqa: PTH108 - it has just been made
    except OSError as reason:
        raise SourceError(f"no scratch file can be made in {place}: {reason.strerror}", obj=str(place)) from reason
    if scarce(handle):
        os.close(handle)
        hint = "free some, or set checkpoint_dir in the configuration to a place with more"
        raise SourceAtRisk(f"too little room for a scratch file in {place}", obj=str(place), hint=hint)
    return handle


def scarce(fd: int) -> bool:
    """Whether the file system has less room than both 5 % and 2 GiB."""
    found = os.fstatvfs(fd)
    return found.f_bavail * found.f_frsize < min(found.f_blocks * found.f_frsize * _LEAST_PERCENT // 100, _LEAST_BYTES)
