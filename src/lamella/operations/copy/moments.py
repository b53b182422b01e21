"""A kept moment of a source serves the copy as it serves the original: the next backup there reads what changed."""

from __future__ import annotations

from dataclasses import replace

from lamella.history.catalogue import Snapshot
from lamella.memory.ledger import Ledger
from lamella.repository.repository import Repository


def carry_moment(source: Repository, here: Snapshot, target: Repository, there: Snapshot) -> None:
    """If this host keeps a moment that holds the bytes of `here`, remember that it holds those of its copy, too.

    Nothing happens if the target has a newer snapshot with a moment of its own. Raises RepositoryError.
    """
    entry, _ = Ledger(source.memory, source.keys).entry(here.added.volume_id)
    held = None if entry is None else (entry.ref, entry.root, entry.size, entry.chunk_log2)
    if entry is None or held != (here.ref, here.added.root, here.added.size, here.added.chunk_log2):
        return
    ledger = Ledger(target.memory, target.keys)
    own, _ = ledger.entry(there.added.volume_id)
    if own is not None:
        times = [one.added.time_ms for one in target.catalogue.snapshots if one.ref == own.ref]
        if times and times[0] >= there.added.time_ms:
            return
    ledger.record(there.added.volume_id, replace(entry, ref=there.ref, root=there.added.root))
