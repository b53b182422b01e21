"""A volume that could not be held still: read it once more where that settles it, and say what was seen.

Once more only if the volume was still for as long as reading takes: an idle guest writes every few seconds, and a
second reading of its disk would end as the first did (docs/decisions/0049).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import add
from typing import Final

from lamella.base.clock import now_ms
from lamella.base.errors import SourceError
from lamella.operations.backup.stages import NO_MOMENT, Frozen, Read
from lamella.operations.writing.chunks import ReadFigures
from lamella.sources.base import Consistency
from lamella.sources.in_place import ReadInPlace

_SETTLED_SECONDS: Final = 2.1
"""A change so long ago shows in the stamps of every file system: the coarsest count two seconds."""
_LOOK_SECONDS: Final = 0.05


class NotConsistent(SourceError):
    """A consistent state was required, and the volume changed while it was read."""


@dataclass(frozen=True, slots=True)
class Settling:
    """Handles volumes that mix several moments. `again` reads one whole, compared with the bytes read before."""

    required: bool
    again: Callable[[Frozen, Read], Read]
    clock: Callable[[], int]
    warn: Callable[[str], None]

    def settled(self, read: Read, seconds: float) -> Read:
        """The volume as it was read in so many seconds, or as it is read now. Raises NotConsistent, SourceError."""
        volume = read.frozen.volume
        in_place = volume if isinstance(volume, ReadInPlace) else None
        if in_place is not None and _still(in_place, seconds):
            read = self._once_more(read)
        if read.consistency not in NO_MOMENT:
            return read
        user = in_place.in_use() if in_place is not None else ""
        self._say(read, f"; {user} has it open for writing" if user else "")
        return read

    def _once_more(self, first: Read) -> Read:
        with first.frozen.source.freeze() as volume:
            frozen = replace(first.frozen, volume=volume, time_ms=self.clock())
            if volume.size != frozen.shape.size:
                return first
            read = self.again(frozen, first)
        figures = ReadFigures(*map(add, first.tree.figures, read.tree.figures))
        return replace(read, tree=read.tree._replace(figures=figures))

    def _say(self, read: Read, user: str) -> None:
        """Warn of a volume that changed. Raises NotConsistent if that is not enough."""
        changed = read.consistency == Consistency.CHANGED
        what = "it changed while it was read" if changed else "it may have changed while it was read"
        if self.required:
            raise NotConsistent(f"{what}{user}, and a consistent state is required", obj=read.frozen.plan.volume)
        if changed:
            by = "back it up as qmp:SOCKET or libvirt:DOMAIN" if user else "stop or pause what writes to it"
            self.warn(
                f"{read.frozen.plan.volume}: {what}{user}: the saved state may mix several moments and may not "
                f"start; {by}, or keep it on Btrfs, XFS or an LVM thin pool"
            )


def _still(volume: ReadInPlace, seconds: float) -> bool:
    """Whether a volume has not changed for as long as reading took; waits until its stamps can be believed."""
    changed_ms = volume.last_change_ms()
    if changed_ms is None:
        return False
    while True:
        age = (now_ms() - changed_ms) / 1000
        if age < 0 or volume.last_change_ms() != changed_ms:
            return False
        if age >= max(_SETTLED_SECONDS, seconds):
            return True
        if age + _SETTLED_SECONDS < seconds:
            return False
        time.sleep(_LOOK_SECONDS)
