"""Which kept moment of a source a broken run was reading: this host's memory, bound to repository and session.

The repository says how far the run came (SESSION, FORMAT 8), this memory which moment it read: only together, and only
if they agree in everything, do they let a run go on. Losing the file, or anything wrong in it, means that everything is
read again; what is stored is found by its ids all the same.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.base.clock import Clock, now_ms
from lamella.base.ids import ChunkId, VolumeId
from lamella.crypto.derive import Keys, prf
from lamella.memory.host import Host, HostMemory

FILE = "unfinished.json"
KEPT_MS = 7 * 24 * 3600 * 1000
"""For so long a broken run's moment is kept, as prune keeps what it stored (FORMAT 8, SESSION)."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A partial root of a session, and the kept moment whose bytes its chunks `[0, done)` are."""

    session_id: bytes
    root: ChunkId
    size: int
    chunk_log2: int
    done: int
    base_root: ChunkId
    """Root of the snapshot the other chunks are shared from; 24 zero bytes without one."""
    compared: bool
    """The run compared everything: no change map may be used for what it had not come to."""
    identity: bytes
    driver: str
    checkpoint: str
    time_ms: int

    def fields(self) -> dict[str, Any]:
        """As it is written down."""
        return {
            "session_id": self.session_id.hex(),
            "root": self.root.hex(),
            "size": self.size,
            "chunk_log2": self.chunk_log2,
            "done": self.done,
            "base_root": self.base_root.hex(),
            "compared": self.compared,
            "identity": self.identity.hex(),
            "driver": self.driver,
            "checkpoint": self.checkpoint,
            "time_ms": self.time_ms,
        }


class ResumeMemory:
    """The resume points of one repository, by volume."""

    def __init__(self, memory: HostMemory, keys: Keys) -> None:
        self._memory = memory
        self._key = keys.local_key("resume")

    def points(self, volume_id: VolumeId) -> list[ResumePoint]:
        """Those of a volume that can be believed."""
        found: list[ResumePoint] = []
        rows = self._rows().get(volume_id.hex())
        for row in rows if isinstance(rows, list) else []:
            try:
                fields = row["entry"]
                if hmac.compare_digest(bytes.fromhex(row["mac"]), self._mac(volume_id, fields)):
                    found.append(_decode(fields))
            except (KeyError, TypeError, ValueError):
                continue
        return found

    def record(self, volume_id: VolumeId, points: Sequence[ResumePoint]) -> None:
        """Replace a volume's points, durably; none of them forgets the volume. Raises RepositoryError."""
        with self._memory.lock():
            rows = self._rows()
            if not points and volume_id.hex() not in rows:
                return
            rows[volume_id.hex()] = [
                {"entry": point.fields(), "mac": self._mac(volume_id, point.fields()).hex()} for point in points
            ]
            self._memory.write(FILE, {"volumes": {name: row for name, row in rows.items() if row}})

    def _rows(self) -> dict[str, Any]:
        rows = self._memory.read(FILE).get("volumes")
        return rows if isinstance(rows, dict) else {}

    def _mac(self, volume_id: VolumeId, fields: dict[str, Any]) -> bytes:
        return prf(self._key, volume_id + json.dumps(fields, sort_keys=True).encode("utf-8"))


def _decode(fields: dict[str, Any]) -> ResumePoint:
    return ResumePoint(
        bytes.fromhex(fields["session_id"]),
        ChunkId(bytes.fromhex(fields["root"])),
        int(fields["size"]),
        int(fields["chunk_log2"]),
        int(fields["done"]),
        ChunkId(bytes.fromhex(fields["base_root"])),
        bool(fields["compared"]),
        bytes.fromhex(fields["identity"]),
        str(fields["driver"]),
        str(fields["checkpoint"]),
        int(fields["time_ms"]),
    )


def remembered_volumes(path: Path) -> list[Any]:
    """What a file of a host's memory holds for each volume, not authenticated; nothing if it cannot be read."""
    try:
        content = json.loads(path.read_text("utf-8"))
        return list(content["volumes"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def unfinished_moments(host: Host, clock: Clock = now_ms) -> Iterator[tuple[str, str]]:
    """The identity (hexadecimal) and checkpoint of every point of this host that is not too old, believed or not."""
    for path in sorted((host.state_dir / "repo").glob("*/" + FILE)):
        for rows in remembered_volumes(path):
            for row in rows if isinstance(rows, list) else []:
                fields = row.get("entry") if isinstance(row, dict) else None
                if isinstance(fields, dict) and _is_recent(fields.get("time_ms"), clock()):
                    yield str(fields.get("identity")), str(fields.get("checkpoint"))


def _is_recent(time_ms: object, now: int) -> bool:
    return not isinstance(time_ms, int) or abs(now - time_ms) <= KEPT_MS
