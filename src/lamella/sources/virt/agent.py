"""The file systems of a domain's guest, frozen and thawed by its agent.

A guest that stays frozen hangs. libvirt waits for an agent without an end, and what was asked for may happen later: so
a note is written before, and whoever finds the note thaws.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from lamella.base.errors import SourceError
from lamella.sources.virt.library import NO_DOMAIN, NOT_RUNNING, REFUSED, LibvirtError, connect, told

THAW_SECONDS: Final = 600.0
"""Seconds for which an agent that does not answer is asked again."""
_PAUSE_SECONDS: Final = 0.2
_MOST_REFUSALS: Final = 4


class DomainGuest:
    """Usable in any process: each call opens a connection to libvirt. `note` exists while the guest may be frozen."""

    def __init__(self, uuid: str, note: Path) -> None:
        self.uuid = uuid
        self.note = note

    def freeze(self) -> int:
        """The number of frozen file systems; 0 if the agent does not answer, or refuses."""
        if self.note.exists():  # a guest that was not thawed is not frozen again
            return 0
        self.note.touch(0o600)
        try:
            return self._done("fsFreeze")
        except LibvirtError as error:
            if error.code == REFUSED:
                with suppress(LibvirtError):
                    self._done("fsThaw")
            if error.code in (REFUSED, NOT_RUNNING):
                self.note.unlink(missing_ok=True)
        except SourceError:
            pass
        return 0

    def thaw(self, seconds: float = THAW_SECONDS) -> int:
        """The number of thawed file systems; 0 if there is no note, or the note stays: the agent has not answered."""
        refusals, until = 0, time.monotonic() + seconds
        while self.note.exists():
            try:
                thawed = self._done("fsThaw")
                self.note.unlink(missing_ok=True)
                return thawed
            except SourceError as error:
                refusals += isinstance(error, LibvirtError) and error.code == REFUSED
            if refusals >= _MOST_REFUSALS or time.monotonic() > until:
                break
            time.sleep(_PAUSE_SECONDS)
        return 0

    def _done(self, call: str) -> int:
        """The number that libvirt returns; 0 for a domain that does not run. Raises SourceError."""
        try:
            found = connect(self.uuid)
        except LibvirtError as error:
            if error.code == NO_DOMAIN:
                return 0
            raise
        try:
            with told():
                return int(getattr(found.domain, call)(None, 0)) if found.domain.isActive() else 0
        finally:
            found.close()
