"""QMP addresses: `qmp:SOCKET`, with `?agent=PATH` and `#DISK` if wanted. Pure."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final

from lamella.base.errors import UsageError

PREFIX: Final = "qmp:"
_AGENT: Final = "?agent="
_MAGIC: Final = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class QmpAddress:
    """Where a virtual machine's monitor is, and which of its disks are meant."""

    socket: str
    """Absolute path of a unix socket that QEMU listens on."""
    agent: str = ""
    """Absolute path of the unix socket of the guest's agent; empty: the guest is not asked to settle."""
    disk: str = ""
    """The name of one disk, or a pattern; empty: all disks."""

    @property
    def single(self) -> bool:
        """Whether one disk is named."""
        return bool(self.disk) and not _MAGIC.intersection(self.disk)

    @property
    def text(self) -> str:
        """As it is written."""
        agent, disk = self.agent and _AGENT + self.agent, self.disk and "#" + self.disk
        return f"{PREFIX}{self.socket}{agent}{disk}"

    def of(self, disk: str) -> QmpAddress:
        """The same machine's disk of that name."""
        return replace(self, disk=disk)

    def fits(self, disk: str) -> bool:
        """Whether a disk of that name is meant."""
        return not self.disk or self.disk == disk or (not self.single and fnmatchcase(disk, self.disk))


def parse(text: str) -> QmpAddress:
    """Relative paths become absolute. Raises UsageError, saying what is wrong."""
    place, _, disk = text.removeprefix(PREFIX).partition("#")
    socket, _, agent = place.partition(_AGENT)
    if not socket or "\0" in text:
        hint = "write qmp:SOCKET, with ?agent=SOCKET of the guest's agent or #DISK behind it if wanted"
        raise UsageError(f"not a QMP address: {text}: it names no socket", obj=text, hint=hint)
    return QmpAddress(os.path.abspath(socket), agent and os.path.abspath(agent), disk)  # noqa: PTH100 - keeps links
