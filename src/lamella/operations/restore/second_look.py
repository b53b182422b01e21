"""Whether a snapshot that lacks something on record can be read after all: a read may fail for a moment only."""

from __future__ import annotations

from lamella.base.errors import IntegrityError
from lamella.format.container import Kind
from lamella.history.catalogue import Snapshot
from lamella.packs.deltas import present
from lamella.repository.repository import Repository


def opens_after_all(repo: Repository, snapshot: Snapshot) -> bool:
    """True if every chunk that the map misses opens where it did not open before; such places return to the map.

    The first that still fails decides. Raises StoreError if the store is out of reach.
    """
    domain_id, tree = snapshot.added.domain_id, repo.tree(snapshot)
    try:
        for run in repo.tree_reader(domain_id).runs(tree):
            if isinstance(run.slot, bytes) and not all(present(repo.blobs, domain_id, [(run.slot, None)])):
                repo.contents.get(domain_id, Kind.CHUNK, run.slot)
    except IntegrityError:
        return False
    return True
