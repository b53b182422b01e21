"""The holder of a lock: for a person who has to decide whether to wait. Nothing else depends on the answer.

The far side of a pipe uses this module as well: it runs on Python 3.8.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def holder_of(descriptor: int) -> str:
    """`: NAME, process PID of HOST, which has run for N s`, for a flock on this open file; empty if nobody is found.

    From /proc/locks and /proc/PID/stat (proc(5)), which know the processes of this machine and PID namespace only.
    """
    try:
        pid = _process(os.fstat(descriptor))
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        name, _, rest = text.partition("(")[2].rpartition(")")
        # Field 22 counts from the start of the machine, in ticks; two fields are gone by now.
        begun = int(rest.split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return ""
    seconds = max(0, round(time.clock_gettime(time.CLOCK_BOOTTIME) - begun))
    return f": {name}, process {pid} of {os.uname().nodename}, which has run for {seconds} s"


def holder_in(opened: Callable[[], int]) -> str:
    """The same for a file that is opened for this question."""
    try:
        descriptor = opened()
    except OSError:
        return ""
    try:
        return holder_of(descriptor)
    finally:
        os.close(descriptor)


def _process(status: os.stat_result) -> int:
    """The first process that holds a lock on this file. Raises OSError, ValueError, IndexError if there is none."""
    device, inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}", str(status.st_ino)
    table = Path("/proc/locks").read_text("ascii")
    rows = [line.split() for line in table.splitlines() if " FLOCK " in line]
    found = [row for row in rows if row[5].rpartition(":")[2] == inode]
    # Btrfs shows another device number here than stat(2) does.
    exact = [row for row in found if row[5] == f"{device}:{inode}"]
    pid = int((exact or found)[0][4])
    if pid <= 0:
        raise ValueError("a process of another PID namespace")
    return pid
