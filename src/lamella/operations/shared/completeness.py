"""Whether everything below a snapshot's root has a known place: asked before an incremental run relies on it."""

from __future__ import annotations

from itertools import islice

from lamella.base.errors import IntegrityError
from lamella.base.ids import DomainId
from lamella.format.container import Kind
from lamella.history.catalogue import Snapshot
from lamella.packs.tree import Tree
from lamella.repository.repository import Repository

_BATCH = 256


def is_complete(repo: Repository, snapshot: Snapshot) -> bool:
    """True if no chunk or node of the snapshot is missing from the map. Raises StoreError."""
    return tree_is_complete(repo, snapshot.added.domain_id, repo.tree(snapshot))


def tree_is_complete(repo: Repository, domain_id: DomainId, tree: Tree) -> bool:
    """True if no chunk or node of a tree is missing from the map.

    Usually known from the last run; after a lost cache or lost packs the tree is walked once, without reading data.
    Raises StoreError.
    """
    if repo.blobs.complete(tree.root):
        return True
    runs = repo.tree_reader(domain_id).runs(tree)
    chunks = (run.slot for run in runs if isinstance(run.slot, bytes))
    try:
        while ids := list(islice(chunks, _BATCH)):
            batch = set(repo.contents.blobs_of(domain_id, ids))
            if len(repo.blobs.find_many(Kind.CHUNK, list(batch))) < len(batch):
                return False
    except IntegrityError:
        return False
    repo.blobs.set_complete([tree.root])
    return True
