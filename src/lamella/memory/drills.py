"""What drills on this host said about volumes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from lamella.base.clock import iso
from lamella.base.ids import VolumeId
from lamella.memory.host import HostMemory, Table

_END_OF_TIME_MS = 253_402_300_800_000


@dataclass(frozen=True, slots=True)
class DrillVerdict:
    """The last drill of a volume: `time_ms` UTC, booted, mounted or failed, the snapshot's name, and why."""

    time_ms: Annotated[int, range(_END_OF_TIME_MS)]
    verdict: Annotated[str, ("booted", "mounted", "failed")]
    snapshot: str
    sign: str

    def row(self) -> dict[str, Any]:
        """For tables and JSON."""
        result = "failed" if self.verdict == "failed" else "passed"
        facts = {"verdict": self.verdict, "snapshot": self.snapshot, "sign": self.sign}
        return {"time": iso(self.time_ms), "result": result, **facts}


class Drills:
    """The last drill of each of one repository's volumes."""

    def __init__(self, memory: HostMemory) -> None:
        self._table = Table(memory, "drilled.json", dict[VolumeId, DrillVerdict], "volumes")

    def all(self) -> dict[VolumeId, DrillVerdict]:
        """Of each volume that this host drilled, the last verdict."""
        return dict(self._table.read())

    def record(self, volumes: Iterable[VolumeId], verdict: DrillVerdict) -> None:
        """Keep the verdict on a machine of these volumes instead of their last. Raises RepositoryError."""

        def update(stored: Mapping[VolumeId, DrillVerdict]) -> dict[VolumeId, DrillVerdict]:
            return {**stored, **dict.fromkeys(volumes, verdict)}

        self._table.change(update)


def add_drills(memory: HostMemory, rows: Iterable[dict[str, Any]]) -> None:
    """Say in rows with the `id` of a volume what its last drill said."""
    known = {id_.hex(): verdict.row() for id_, verdict in Drills(memory).all().items()}
    for row in rows:
        row["drilled"] = known.get(row["id"])
