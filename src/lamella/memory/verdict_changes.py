"""Remembering what a verification said, and that damage is mended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lamella.base.ids import VolumeId
from lamella.memory.host import HostMemory
from lamella.memory.verdicts import DAMAGED, ByLevel, Verdicts, VolumeVerdict, clears


def record(memory: HostMemory, verdicts: Iterable[tuple[VolumeId, VolumeVerdict]]) -> None:
    """Keep these, one a volume and level; bad news goes only for what clears it. Raises RepositoryError."""

    def update(stored: Mapping[VolumeId, ByLevel]) -> dict[VolumeId, ByLevel]:
        volumes = dict(stored)
        for volume_id, verdict in verdicts:
            kept = volumes.get(volume_id, {})
            before = kept.get(verdict.level)
            if verdict.result == DAMAGED or before is None or before.result != DAMAGED or clears(verdict, before):
                volumes[volume_id] = {**kept, verdict.level: verdict}
        return volumes

    Verdicts(memory).table.change(update)


def forget_damage(memory: HostMemory, volumes: Iterable[VolumeId]) -> None:
    """These are mended: bad news about them is no longer true. Raises RepositoryError."""
    mended = set(volumes)

    def good(level: ByLevel) -> ByLevel:
        return {name: verdict for name, verdict in level.items() if verdict.result != DAMAGED}

    Verdicts(memory).table.change(
        lambda stored: {one: good(levels) if one in mended else levels for one, levels in stored.items()}
    )
