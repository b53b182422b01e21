"""A process that outlives a killed backup by a moment: it frees the guest from what the backup started in QEMU.

Without it the scratch file of a killed run would grow until the next run, and a guest that was frozen would stay so.
The guardian does nothing while the backup lives. It learns of the end from its standard input.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from lamella.base.errors import SourceError
from lamella.run.spawn import Child
from lamella.sources.qmp.agent import thaw
from lamella.sources.qmp.leftovers import clean
from lamella.sources.qmp.wire import Qmp
from lamella.sources.together import alone

_ALL_IS_WELL: Final = b"\n"
_END_SECONDS: Final = 5.0
_LOCK_SECONDS: Final = 10.0
"""A dying process closes the pipe to this one before it gives its lock back, perhaps long before on a busy machine.
Who holds the lock after that is the next backup, which has cleaned up."""
_PATIENCE_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.2


@contextmanager
def guarded(socket: str, prefix: str, agent: str, lock: Path, note: Path) -> Iterator[None]:
    """A guardian looks after a machine while inside. Raises SourceError if it cannot be started."""
    words = repr((socket, prefix, agent, str(lock), str(note)))
    child = Child([sys.executable, "-P", "-c", f"from {__name__} import guard; guard(*{words})"], error=SourceError)
    try:
        yield
    finally:  # whatever went wrong, this process has cleaned up itself
        with suppress(OSError):
            os.write(child.stdin, _ALL_IS_WELL)
        child.end(_END_SECONDS)


def guard(socket: str, prefix: str, agent: str, lock: str, note: str) -> None:
    """Wait until the backup has ended, and clean up for it if it could not."""
    if os.read(0, 1) == _ALL_IS_WELL:
        return
    if Path(note).exists():
        thaw(agent, Path(note))
    with suppress(SourceError), alone(Path(lock), socket, _LOCK_SECONDS):
        until = time.monotonic() + _PATIENCE_SECONDS
        while not _cleaned(socket, prefix) and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)


def _cleaned(socket: str, prefix: str) -> bool:
    try:
        qmp = Qmp(socket)
    except SourceError:
        return not Path(socket).exists()
    try:
        clean(qmp, prefix)
    except SourceError:
        return False
    finally:
        qmp.close()
    return True
