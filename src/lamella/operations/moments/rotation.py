"""Checkpoints of sources: which are needed, and how the new one takes the place of the old (docs/decisions/0005).

Order after a durable, confirmed commit: keep the new moment, write the ledger, forget how far broken runs came, drop
what nothing names. Killed anywhere in between, there is one moment too many, never one too few.
"""

from __future__ import annotations

from lamella.base.ids import VolumeId
from lamella.memory.host import Host
from lamella.memory.ledger import Ledger, LedgerEntry, ResumeMemory, needed_checkpoints
from lamella.repository.repository import Repository
from lamella.sources.base import Source


def rotate(repo: Repository, source: Source, volume_id: VolumeId, entry: LedgerEntry) -> None:
    """Let the moment of a published snapshot be where the volume's next delta starts; what broken runs kept can go.

    `entry` has no checkpoint if the source could not name its moment. The source's lock is held. Raises SourceError,
    RepositoryError; then the next run compares everything.
    """
    if not source.tracks:
        return
    ledger = Ledger(repo.memory, repo.keys)
    if entry.checkpoint:
        source.keep(entry.checkpoint)
        ledger.record(volume_id, entry)
    else:
        ledger.forget(volume_id)
    ResumeMemory(repo.memory, repo.keys).record(volume_id, [])
    drop_unneeded(repo.host, source, in_use=entry.checkpoint)


def drop_unneeded(host: Host, source: Source, *, in_use: str = "") -> list[str]:
    """Remove this host's moments of a source, and intervals, that no repository's ledger and no broken run needs.

    Returns the moments. `in_use` is the moment that is being read. The source's lock is held. Raises SourceError.
    """
    if not source.tracks:
        return []
    # Only a source that tracks has intervals.
    from lamella.memory.intervals import Intervals

    # What an interval leads away from is not needed itself: the moment at the end of the intervals is.
    needed = Intervals(host, source.identity).keep_only(needed_checkpoints(host, source.identity)) | {in_use}
    dropped = [checkpoint for checkpoint in source.kept() if checkpoint not in needed]
    for checkpoint in dropped:
        source.drop(checkpoint)
    return dropped
