"""What the bytes of a snapshot are: those of a disk, or of a tree of files."""

from __future__ import annotations

from lamella.history.catalogue import Snapshot
from lamella.sources.tree import DOCUMENT


def is_tree(snapshot: Snapshot) -> bool:
    """Whether `lamella files backup` made a snapshot, as its documents say."""
    return any(document.name == DOCUMENT for document in snapshot.added.documents)
