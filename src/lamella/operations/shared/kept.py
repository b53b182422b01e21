"""The snapshot whose bytes a checkpoint of this host holds, as this host wrote down."""

from __future__ import annotations

from typing import NamedTuple

from lamella.base.errors import CheckpointLost
from lamella.history.catalogue import Snapshot
from lamella.memory.ledger import Ledger, LedgerEntry
from lamella.operations.shared.selection import Selected
from lamella.repository.repository import Repository


class KeptMoment(NamedTuple):
    """A record of this host, and the snapshot that it names."""

    entry: LedgerEntry
    snapshot: Snapshot


def kept_moment(repo: Repository, one: Selected) -> KeptMoment:
    """The checkpoint of a volume whose snapshot can be compared with this one by their trees.

    Raises CheckpointLost, with the reason in words: there is none, or the record is not to be believed.
    """
    entry, why = Ledger(repo.memory, repo.keys).entry(one.volume.volume_id)
    if entry is None:
        raise CheckpointLost(why)
    added = one.snapshot.added
    same = (entry.root, entry.size, entry.chunk_log2)
    for snapshot in one.volume.snapshots:
        its = snapshot.added
        if snapshot.ref == entry.ref and (its.root, its.size, its.chunk_log2) == same:
            break
    else:
        raise CheckpointLost("the snapshot that the checkpoint belongs to is not in the repository")
    if (its.chunk_log2, its.domain_id) != (added.chunk_log2, added.domain_id):
        raise CheckpointLost("the checkpoint is of another chunk size or domain")
    return KeptMoment(entry, snapshot)
