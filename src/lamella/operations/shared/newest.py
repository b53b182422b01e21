"""The latest snapshot of a volume, for commands that need one."""

from __future__ import annotations

from lamella.base.errors import NothingMatched
from lamella.history.catalogue import Snapshot, VolumeState
from lamella.operations.shared.latest import heads
from lamella.repository.repository import Repository


def newest(repo: Repository, volume: VolumeState) -> Snapshot:
    """The latest snapshot of a volume; that others may be as late is told. Raises NothingMatched if there is none."""
    found = heads(repo, volume)
    if not found:
        claims = ", ".join(sorted(snapshot.name for snapshot in volume.snapshots)[-10:])
        hint = f"other writers added: {claims}; name a snapshot in full to restore it" if claims else ""
        raise NothingMatched(f"volume {volume.name} has no snapshot", obj=volume.name, hint=hint)
    if len(found) > 1:
        names = ", ".join(snapshot.name for snapshot in found[1:])
        text = f"taking {found[0].name} for the latest of {volume.name}, by its time; possibly as recent: {names}"
        repo.host.notices.tell(f"latest:{volume.volume_id.hex()}", text)
    return found[0]
