"""A process beside a backup that freezes the guest and thaws it, whatever becomes of the backup.

libvirt binds neither a freeze nor a backup job to the life of a client. So the guardian, and not the backup, asks for
the freeze: the guest is thawed when the backup says so, when the backup is killed, and after FROZEN_SECONDS. The backup
waits for no answer longer than ANSWER_SECONDS, and the guardian waits for each: it ends when the guest is thawed.
It learns of a killed backup from its closed standard input, and then ends the backup job as well.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from lamella.base.errors import SourceError
from lamella.run.spawn import Child
from lamella.sources.together import alone
from lamella.sources.virt.agent import DomainGuest
from lamella.sources.virt.library import connect
from lamella.sources.virt.moments import leftovers_ended

ANSWER_SECONDS: Final = 20.0
"""Until the guest has written what it held back."""
FROZEN_SECONDS: Final = 30.0
"""libvirt needs less than a second to begin a backup job."""
_FREEZE, _THAW, _ALL_IS_WELL = b"f", b"t", b"\n"
_END_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.2
_LATER_SECONDS: Final = 3.0
"""A job that the backup asked for before it was killed begins later than the first look."""


class _GuardianProcess(Child):
    def leave(self) -> None:
        """Let it end by itself, perhaps after this process."""
        for pipe in self._pipes():
            with suppress(OSError):
                pipe.close()


class Guardian:
    """The backup's end of the guardian. Raises SourceError if it cannot be started."""

    def __init__(self, guest: DomainGuest, place: Path, run: str, lock: Path) -> None:
        self._guest = guest
        words = repr((guest.uuid, str(guest.note), str(place), run, str(lock), FROZEN_SECONDS))
        command = [sys.executable, "-P", "-c", f"from {__name__} import guard; guard(*{words})"]
        self._child = _GuardianProcess(command, error=SourceError)
        self._silent = False

    def freeze(self) -> int:
        """The number of frozen file systems; 0 if none, and without an answer in time."""
        return 0 if self._silent else self._answer(_FREEZE) or 0

    def thaw(self) -> int:
        """The number of thawed file systems; 0 if none, and without an answer in time: then the guardian continues."""
        answer = self._answer(_THAW)
        return self._guest.thaw(ANSWER_SECONDS) if answer is None else answer

    def end(self) -> None:
        """The backup has cleaned up itself, unless the guest may still be frozen."""
        if self._guest.note.exists():
            self._child.leave()
            return
        with suppress(OSError):
            os.write(self._child.stdin, _ALL_IS_WELL)
        self._child.end(_END_SECONDS)

    def _answer(self, word: bytes) -> int | None:
        """The answer of the guardian, 0 without one; None if the guardian has been killed."""
        try:
            os.write(self._child.stdin, word)
        except OSError:
            return None
        if self._silent:  # an answer would be one to the question before
            return 0
        answers = select.poll()
        answers.register(self._child.stdout, select.POLLIN)
        if not answers.poll(ANSWER_SECONDS * 1000):
            self._silent = True
            return 0
        said = os.read(self._child.stdout, 64)
        return int(said) if said else None


def guard(uuid: str, note: str, place: str, run: str, lock: str, frozen_seconds: float) -> None:
    """Do what the backup asks for; when it is killed, free the guest from what it began."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # whoever ends the backup so does not end this
        signal.signal(number, signal.SIG_IGN)
    guest, waiting = DomainGuest(uuid, Path(note)), select.poll()
    waiting.register(0, select.POLLIN)
    while word := os.read(0, 1):
        if word == _ALL_IS_WELL:
            return
        answer = guest.freeze() if word == _FREEZE else guest.thaw()
        with suppress(OSError):
            os.write(1, b"%d\n" % answer)
        if word == _FREEZE and not waiting.poll(frozen_seconds * 1000):
            guest.thaw()
    guest.thaw()
    for pause in (_LATER_SECONDS, 0):
        with suppress(SourceError), alone(Path(lock), uuid, 0):  # else the next backup is at work, and has cleaned up
            _free(uuid, Path(place), run)
        time.sleep(pause)


def _free(uuid: str, place: Path, run: str) -> None:
    until = time.monotonic() + _PATIENCE_SECONDS
    while not _freed(uuid, place, run) and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)


def _freed(uuid: str, place: Path, run: str) -> bool:
    try:
        found = connect(uuid)
        try:
            leftovers_ended(found.domain, place, run)
        finally:
            found.close()
    except SourceError:
        return False
    return True
