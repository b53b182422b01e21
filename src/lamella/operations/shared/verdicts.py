"""What this host's verifications said about each volume, and when: kept in its state directory, shown by `list`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lamella.base.clock import iso
from lamella.base.ids import VolumeId
from lamella.memory.host import HostMemory
from lamella.operations.shared.findings import VerifyResult
from lamella.operations.shared.selection import Selected

OK, DAMAGED, INCOMPLETE = "ok", "damaged", "incomplete"
_FILE = "verified.json"
_END_OF_TIME_MS = 253_402_300_800_000
_DEPTH = {"source": 0, "structure": 0, "sample": 1, "restore": 2, "full": 2}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One verification of a volume: `time_ms` UTC, `level`, `result` (ok, damaged, incomplete), how many snapshots it
    looked at, the newest of them, and the bytes the whole verification read."""

    time_ms: int
    level: str
    result: str
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


class Verdicts:
    """The verdicts of one repository's volumes. A damaged memory is a lost one."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory

    def of(self, volume_id: VolumeId) -> Verdict | None:
        """The verdict that counts for a volume. None if this host never verified it.

        Bad news stays until a look that had to see the same damage says otherwise; a weaker look never hides a deeper
        one. Otherwise it is the deepest look, of these the newest; whether a volume was not saved the newest look says.
        """
        rows = self._rows().get(volume_id.hex())
        verdicts = _decoded(rows) if isinstance(rows, dict) else []
        good = [one for one in verdicts if one.result != DAMAGED]
        bad = [one for one in verdicts if one.result == DAMAGED and not any(_clears(other, one) for other in good)]
        if bad or not good:
            return max(bad, key=lambda one: one.time_ms, default=None)
        newest = max(good, key=lambda one: one.time_ms)
        deepest = max(good, key=lambda one: (_DEPTH[one.level], one.time_ms))
        return newest if newest.result == INCOMPLETE else replace(deepest, result=OK)

    def record(self, verdicts: Iterable[tuple[VolumeId, Verdict]]) -> None:
        """Keep these, one a volume and level; bad news goes only for what clears it. Raises RepositoryError."""
        with self._memory.lock():
            rows = self._rows()
            for volume_id, verdict in verdicts:
                known = rows.get(volume_id.hex())
                kept = {one.level: one for one in _decoded(known if isinstance(known, dict) else {})}
                before = kept.get(verdict.level)
                if verdict.result == DAMAGED or before is None or before.result != DAMAGED or _clears(verdict, before):
                    kept[verdict.level] = verdict
                rows[volume_id.hex()] = {level: asdict(one) for level, one in kept.items()}
            self._memory.write(_FILE, {"volumes": rows})

    def forget_damage(self, volumes: Iterable[VolumeId]) -> None:
        """These are mended: bad news about them is no longer true. Raises RepositoryError."""
        with self._memory.lock():
            rows = self._rows()
            for volume_id in volumes:
                known = rows.get(volume_id.hex())
                kept = {one.level: asdict(one) for one in _decoded(known or {}) if one.result != DAMAGED}
                rows[volume_id.hex()] = kept
            self._memory.write(_FILE, {"volumes": {key: row for key, row in rows.items() if row}})

    def _rows(self) -> dict[str, Any]:
        rows = self._memory.read(_FILE).get("volumes")
        return rows if isinstance(rows, dict) else {}


def verdicts_of(
    selected: Sequence[Selected], level: str, result: VerifyResult, lacking: Sequence[str], now_ms: int
) -> list[tuple[VolumeId, Verdict]]:
    """What a verification of these snapshots says about their volumes; `lacking` are names of volumes not saved."""
    by_volume: dict[VolumeId, list[Selected]] = {}
    for one in selected:
        by_volume.setdefault(one.volume.volume_id, []).append(one)
    made: list[tuple[VolumeId, Verdict]] = []
    for volume_id, ones in by_volume.items():
        damaged = any(one.text in result.unrestorable for one in ones)
        incomplete = ones[0].volume.name in lacking
        word = DAMAGED if damaged else INCOMPLETE if incomplete else OK
        newest = max(ones, key=lambda one: (one.snapshot.added.time_ms, one.snapshot.name)).snapshot.name
        made.append((volume_id, Verdict(now_ms, level, word, len(ones), newest, result.checked_bytes)))
    return made


def _decoded(rows: dict[str, Any]) -> list[Verdict]:
    found: list[Verdict] = []
    for level, row in rows.items():
        try:
            verdict = Verdict(
                int(row["time_ms"]),
                str(row["level"]),
                str(row["result"]),
                int(row["snapshots"]),
                str(row["newest"]),
                int(row["read_bytes"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        if verdict.level == level and level in _DEPTH and 0 <= verdict.time_ms < _END_OF_TIME_MS:
            found.append(verdict)
    return found


def _clears(later: Verdict, one: Verdict) -> bool:
    """Whether a look that found no damage must have seen what an earlier one found: two samples read other chunks."""
    if later.level == one.level == "sample":
        return False
    return later.time_ms > one.time_ms and _DEPTH[later.level] >= _DEPTH[one.level]
