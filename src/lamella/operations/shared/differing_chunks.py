"""Whether a tree has chunks that are stored as differences."""

from __future__ import annotations

from lamella.base.ids import DomainId
from lamella.format.node import DeltaChunk
from lamella.packs.tree import Tree
from lamella.repository.repository import Repository


def has_deltas(repo: Repository, domain_id: DomainId, tree: Tree) -> bool:
    """Walks the tree up to the first one; reads no data. Raises IntegrityError, StoreError."""
    return any(isinstance(run.slot, DeltaChunk) for run in repo.tree_reader(domain_id).runs(tree))
