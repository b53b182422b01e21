"""The latest snapshot of a volume, as every command and table takes it (FORMAT 8, Latest)."""

from __future__ import annotations

from lamella.base.errors import NothingMatched
from lamella.history.catalogue import Snapshot, VolumeState
from lamella.history.latest import latest
from lamella.repository.repository import Repository


def heads(repo: Repository, volume: VolumeState) -> list[Snapshot]:
    """The latest snapshot of a volume, by its owners' and this host's own; after it, those not known to be earlier.

    The whole history is read where a checkpoint does not tell which is the latest.
    """
    found: list[Snapshot] = []
    for _ in range(2):
        rows = repo.catalogue.volumes[volume.volume_id].snapshots
        found = latest([snapshot for snapshot in rows if snapshot.counts], repo.log.believed_ms)
        if len(found) < 2 or repo.history.whole:
            break
        repo.reload(whole=True)
    return found


def newest(repo: Repository, volume: VolumeState) -> Snapshot:
    """The latest snapshot of a volume; that others may be as late is told. Raises NothingMatched if there is none."""
    found = heads(repo, volume)
    if not found:
        claims = ", ".join(sorted(snapshot.name for snapshot in volume.snapshots)[-10:])
        hint = f"others added: {claims}; one is restored if it is named in full" if claims else ""
        raise NothingMatched(f"volume {volume.name} has no snapshot", obj=volume.name, hint=hint)
    if len(found) > 1:
        names = ", ".join(snapshot.name for snapshot in found[1:])
        text = f"{found[0].name} is taken for the latest of {volume.name}, by its time; as late may be: {names}"
        repo.host.notices.tell(f"latest:{volume.volume_id.hex()}", text)
    return found[0]
