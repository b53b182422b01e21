"""Kept moments of sources: which are needed, and how the new one takes the place of the old (docs/decisions/0005).

Order after a durable, confirmed commit: keep the new moment, write the ledger, forget how far broken runs came, drop
what nothing names. Killed anywhere in between, there is one moment too many, never one too few.
"""

from __future__ import annotations

from lamella.memory.host import Host
from lamella.memory.intervals import Intervals
from lamella.memory.ledger import Ledger, LedgerEntry, ResumeMemory, needed_checkpoints
from lamella.operations.backup.publish import Saved
from lamella.repository.repository import Repository
from lamella.sources.base import Source


def rotate(repo: Repository, saved: Saved) -> None:
    """Make the frozen moment of a published volume the one its next delta starts from; what broken runs kept can go.

    The source's lock is held. Raises SourceError, RepositoryError; then the next run compares everything.
    """
    source, checkpoint = saved.row.request.source, saved.frozen.checkpoint
    ledger = Ledger(repo.memory, repo.keys)
    if not source.tracks:
        return
    if not checkpoint or saved.ref is None:
        ledger.forget(saved.shape.volume_id)
    else:
        source.keep(checkpoint)
        shape, root = saved.shape, saved.read.root
        entry = LedgerEntry(saved.ref, root, shape.size, shape.chunk_log2, source.identity, source.driver, checkpoint)
        ledger.record(shape.volume_id, entry)
    ResumeMemory(repo.memory, repo.keys).record(saved.shape.volume_id, [])
    drop_unneeded(repo.host, source, in_use=checkpoint)


def drop_unneeded(host: Host, source: Source, *, in_use: str = "") -> list[str]:
    """Remove this host's moments of a source, and intervals, that no repository's ledger and no broken run needs.

    Returns the moments. `in_use` is the one that is being read. The source's lock is held. Raises SourceError.
    """
    if not source.tracks:
        return []
    # What an interval leads away from is not needed itself: the moment at the end of the intervals is.
    needed = Intervals(host, source.identity).keep_only(needed_checkpoints(host, source.identity)) | {in_use}
    dropped = [checkpoint for checkpoint in source.kept() if checkpoint not in needed]
    for checkpoint in dropped:
        source.drop(checkpoint)
    return dropped
