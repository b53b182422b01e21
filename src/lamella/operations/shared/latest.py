"""The latest snapshot of a volume, as every command and table takes it (FORMAT 8, Latest)."""

from __future__ import annotations

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
