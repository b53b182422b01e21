"""The verdicts of verifications on this host, by volume."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

from lamella.base.clock import iso
from lamella.base.ids import VolumeId
from lamella.memory.host import HostMemory, Table

OK, DAMAGED, INCOMPLETE = "ok", "damaged", "incomplete"
_END_OF_TIME_MS = 253_402_300_800_000
_DEPTH = {"source": 0, "structure": 0, "sample": 1, "restore": 2, "full": 2}


@dataclass(frozen=True, slots=True)
class VolumeVerdict:
    """One verification of a volume: `time_ms` UTC, `level`, `result` (ok, damaged, incomplete), how many snapshots it
    looked at, the newest of them, and the bytes the whole verification read."""

    time_ms: Annotated[int, range(_END_OF_TIME_MS)]
    level: Annotated[str, frozenset(_DEPTH)]
    result: Annotated[str, (OK, DAMAGED, INCOMPLETE)]
    snapshots: int
    newest: str
    read_bytes: int

    def row(self) -> dict[str, Any]:
        """For tables and JSON."""
        return {
            "time": iso(self.time_ms),
            "level": self.level,
            "result": self.result,
            "snapshot": self.newest,
            "snapshots": self.snapshots,
            "read_bytes": self.read_bytes,
        }


ByLevel = dict[str, VolumeVerdict]


class Verdicts:
    """The verdicts of one repository's volumes, as they are when the first is asked for."""

    def __init__(self, memory: HostMemory) -> None:
        self.table = Table(memory, "verified.json", dict[VolumeId, ByLevel], "volumes")

    @cached_property
    def _read(self) -> dict[VolumeId, ByLevel]:
        return self.table.read()

    def of(self, volume_id: VolumeId) -> VolumeVerdict | None:
        """The verdict that counts for a volume. None if this host never verified it.

        Bad news stays until a look that had to see the same damage says otherwise; a weaker look never hides a deeper
        one. Otherwise it is the deepest look, of these the newest; whether a volume was not saved the newest look says.
        """
        verdicts = self._read.get(volume_id, {}).values()
        good = [one for one in verdicts if one.result != DAMAGED]
        bad = [one for one in verdicts if one.result == DAMAGED and not any(clears(other, one) for other in good)]
        if bad or not good:
            return max(bad, key=lambda one: one.time_ms, default=None)
        newest = max(good, key=lambda one: one.time_ms)
        deepest = max(good, key=lambda one: (_DEPTH[one.level], one.time_ms))
        return newest if newest.result == INCOMPLETE else replace(deepest, result=OK)


def add_verdicts(memory: HostMemory, rows: Iterable[dict[str, Any]]) -> None:
    """Fill `verified` in rows with the `id` of a volume: the verdict that counts, if this host ever verified it."""
    verdicts = Verdicts(memory)
    for row in rows:
        verdict = verdicts.of(VolumeId(bytes.fromhex(row["id"])))
        row["verified"] = None if verdict is None else verdict.row()


def clears(later: VolumeVerdict, one: VolumeVerdict) -> bool:
    """Whether a look that found no damage must have seen what an earlier one found: two samples read other chunks."""
    if later.level == one.level == "sample":
        return False
    return later.time_ms > one.time_ms and _DEPTH[later.level] >= _DEPTH[one.level]
