"""How much of each volume's packs was read whole by the verifications of this host, added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from lamella.base.clock import iso
from lamella.base.ids import VolumeId
from lamella.memory.host import HostMemory, Table

_END_OF_TIME_MS = 253_402_300_800_000
_MOST = 1 << 63


@dataclass(frozen=True, slots=True)
class VolumeReading:
    """What was read of a volume's packs as of `time_ms`, in `runs` verifications, the oldest part at `oldest_ms`.

    Times are UTC; 0 means that nothing was read.
    """

    time_ms: Annotated[int, range(_END_OF_TIME_MS)]
    read_bytes: Annotated[int, range(_MOST)]
    total_bytes: Annotated[int, range(_MOST)]
    runs: Annotated[int, range(_MOST)]
    oldest_ms: Annotated[int, range(_END_OF_TIME_MS)]

    def row(self) -> dict[str, Any]:
        """For tables and JSON."""
        return {
            "time": iso(self.time_ms),
            "read_bytes": self.read_bytes,
            "total_bytes": self.total_bytes,
            "runs": self.runs,
            "oldest": iso(self.oldest_ms) if self.oldest_ms else "",
        }


class Readings:
    """The last reading of each of one repository's volumes."""

    def __init__(self, memory: HostMemory) -> None:
        self._table = Table(memory, "readings.json", dict[VolumeId, VolumeReading], "volumes")

    def all(self) -> dict[VolumeId, VolumeReading]:
        """Of each volume that this host read packs of."""
        return dict(self._table.read())

    def keep(self, found: Mapping[VolumeId, VolumeReading]) -> None:
        """Replace what was known of these volumes. Raises RepositoryError."""
        self._table.change(lambda stored: {**stored, **found})
