"""Whether everything below a snapshot's root has a known place: asked before an incremental run relies on it."""

from __future__ import annotations

from lamella.base.errors import IntegrityError
from lamella.base.ids import ChunkId, DomainId
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
    try:
        whole = _walk(repo, domain_id, tree)
    except IntegrityError:
        return False
    if whole:
        repo.blobs.set_complete([tree.root])
    return whole


def _walk(repo: Repository, domain_id: DomainId, tree: Tree) -> bool:
    batch: list[ChunkId] = []
    for run in repo.tree_reader(domain_id).runs(tree):
        if isinstance(run.slot, bytes):
            batch.append(run.slot)
        if len(batch) >= _BATCH:
            if not _all_placed(repo, batch):
                return False
            batch = []
    return _all_placed(repo, batch)


def _all_placed(repo: Repository, ids: list[ChunkId]) -> bool:
    return not ids or len(repo.blobs.find_many(Kind.CHUNK, ids)) == len(set(ids))
