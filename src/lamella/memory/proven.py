"""Which snapshots passed a full verification on this host: prune keeps the newest of each volume."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from lamella.base.ids import VolumeId
from lamella.format.records import Ref
from lamella.memory.host import HostMemory, Table


class Proven(NamedTuple):
    """A snapshot that passed a full verification, and its time as it was believed then."""

    ref: Ref
    time_ms: int


class ProvenSnapshots:
    """Of each volume the newest snapshot that passed a full verification on this host: prune keeps it."""

    def __init__(self, memory: HostMemory) -> None:
        self._table = Table(memory, "proven.json", dict[VolumeId, Proven])

    def of(self, volume_id: VolumeId) -> Ref | None:
        """None: this host never verified any of the volume in full, or that one was damaged later."""
        found = self._table.read().get(volume_id)
        return None if found is None else found.ref

    def passed(self, found: Mapping[VolumeId, Proven], damaged: Collection[Ref]) -> None:
        """Keep the newest, and forget what is damaged by now. Raises RepositoryError."""

        def update(stored: Mapping[VolumeId, Proven]) -> dict[VolumeId, Proven]:
            rows = {one: proven for one, proven in stored.items() if proven.ref not in damaged}
            for volume_id, proven in found.items():
                if volume_id not in rows or rows[volume_id].time_ms <= proven.time_ms:
                    rows[volume_id] = proven
            return rows

        self._table.change(update)
