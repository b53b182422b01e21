"""Finding volumes again when commits are lost: tree notes in the packs say which roots there were (FORMAT 6).

What is published says that it was rebuilt. Names, sizes and times come from the notes; what only commits knew, such as
identities, tags and documents, is gone.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from lamella.base.clock import utc_text
from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.ids import CATALOGUE, DomainId, SnapId
from lamella.format.container import Kind
from lamella.format.document import MAX_NOTE, TreeNote
from lamella.format.inner import rebuilt_mark
from lamella.format.node import Shape
from lamella.format.owners import Give
from lamella.format.records import DELTAS, NO_REF, AddSnap, RawRecord, Signed, Volume, raw
from lamella.operations.shared.differing_chunks import has_deltas
from lamella.packs import census
from lamella.packs.tree import Tree
from lamella.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class FoundTree:
    """A tree that a note tells of and no snapshot knows; its root is there."""

    domain_id: DomainId
    note: TreeNote

    @property
    def shape(self) -> Shape:
        """The volume's size and grid."""
        return Shape(self.note.volume_id, self.note.size, self.note.chunk_log2)


def find_trees(repo: Repository) -> list[FoundTree]:
    """Trees that were finished, that no snapshot and no removal names, and whose root can be read; oldest first."""
    known = {(one.added.domain_id, one.added.root, one.added.size) for one in repo.catalogue.snapshots}
    for removal in repo.catalogue.removed.values():
        if removal.added is not None:
            known.add((removal.added.domain_id, removal.added.root, removal.added.size))
    found: dict[tuple[DomainId, bytes, int], FoundTree] = {}
    for tree in sorted(_notes(repo), key=lambda tree: (tree.note.time_ms, tree.note.name, tree.note.root)):
        key = (tree.domain_id, tree.note.root, tree.note.size)
        if key not in known and _has_root(repo, tree):
            found.setdefault(key, tree)
    return list(found.values())


def _notes(repo: Repository) -> Iterator[FoundTree]:
    for domain_id, id_ in census.small_documents(repo.blobs, MAX_NOTE):
        if domain_id == CATALOGUE:
            continue
        try:
            yield FoundTree(domain_id, TreeNote.decode(repo.contents.get(domain_id, Kind.DOCUMENT, id_)))
        except IntegrityError:
            continue  # a document, or damaged


def _has_root(repo: Repository, tree: FoundTree) -> bool:
    try:
        shape = tree.shape
        repo.tree_reader(tree.domain_id).node(shape, tree.note.root, shape.depth - 1, 0)
    except (IntegrityError, UnknownFormat):
        return False
    return True


def by_run(trees: list[FoundTree]) -> list[list[FoundTree]]:
    """The trees of each run, oldest first: a run's notes have one time."""
    runs: dict[int, list[FoundTree]] = defaultdict(list)
    for tree in trees:
        runs[tree.note.time_ms].append(tree)
    return [runs[time] for time in sorted(runs)]


def records(repo: Repository, run: list[FoundTree]) -> list[RawRecord | Signed]:
    """The records that publish the trees of one run again, to be published in the order of the runs.

    Snapshot names and ids follow from the repository and the notes: a repair that is repeated says the same.
    """
    made: list[RawRecord | Signed] = []
    for tree in run:
        note = tree.note
        known = repo.catalogue.volumes.get(note.volume_id)
        if known is not None and not known.own and repo.keys.prune_seed is not None:
            # What an admin's repair finds is the owners', not a claim of whoever repairs.
            made.append(Give(note.volume_id, repo.memory.creator().id))
        if known is None:
            # The id does not say who created the volume: the prune key's signature does.
            creator = repo.memory.creator().id
            made.append(Volume(note.volume_id, tree.domain_id, note.chunk_log2, note.name, "", b"", creator, bytes(16)))
        added = AddSnap(
            snap_id=SnapId(_digest(repo, b"id" + tree.domain_id + note.encode())[:16]),
            volume_id=note.volume_id,
            domain_id=tree.domain_id,
            chunk_log2=note.chunk_log2,
            consistency=0,
            size=note.size,
            root=note.root,
            time_ms=note.time_ms,
            parent=NO_REF,
            name=snapshot_name(repo, note.time_ms),
            inner=(*_required(repo, tree), rebuilt_mark()),
        )
        made.append(raw(added))
    return made


def _required(repo: Repository, tree: FoundTree) -> tuple[RawRecord, ...]:
    """What the note does not say: differences in the tree, as far as that can be read, must be announced."""
    try:
        has = has_deltas(repo, tree.domain_id, Tree(tree.shape, tree.note.root))
    except (IntegrityError, UnknownFormat):
        has = True
    return (RawRecord(DELTAS, b""),) if has else ()


def snapshot_name(repo: Repository, time_ms: int) -> str:
    """A name of the usual form for the run of that moment."""
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    suffix = "".join(letters[byte & 31] for byte in _digest(repo, b"name" + time_ms.to_bytes(8, "little"))[:4])
    return f"{utc_text(time_ms)}-{suffix}"


def _digest(repo: Repository, content: bytes) -> bytes:
    return hashlib.sha256(b"lamella rebuilt\0" + repo.keys.root + content).digest()
