"""The space of snapshots: what they need, what only they need, and what would be free without them.

Everything the domain's other snapshots need is marked as a collector marks it (operations.shared.marking), so the work
follows the number of different nodes, and memory stays flat. No data is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from lamella.base.ids import CATALOGUE, DomainId
from lamella.base.names import PACKS
from lamella.format.node import Slot
from lamella.history.catalogue import Snapshot
from lamella.operations.shared.marking import LiveWalk, Roots, roots_by_domain
from lamella.operations.shared.selection import Selected
from lamella.packs import census
from lamella.packs.usage import PARTS, LiveIds
from lamella.repository.repository import Repository


@dataclass(slots=True)
class Sizes:
    """Bytes of one or several snapshots together. Stored sizes are of sealed blobs, each counted once."""

    apparent_bytes: int = 0
    """Sizes of the volumes."""
    allocated_bytes: int = 0
    """Without holes."""
    stored_bytes: int = 0
    """Everything they need: chunks, nodes, documents."""
    unique_bytes: int = 0
    """Needed by no other snapshot: the space that removing them frees in the end, once packs are rewritten."""
    shared_bytes: int = 0
    """Needed by other snapshots, too."""
    freed_bytes: int = 0
    """Whole packs that no other snapshot needs: what removing them gives back at once."""


@dataclass(slots=True)
class Totals:
    """Bytes of a repository."""

    snapshots_bytes: int = 0
    """Sizes of all volumes of all snapshots."""
    packs: int = 0
    packs_bytes: int = 0
    other_objects: int = 0
    other_bytes: int = 0
    """Commits, keys, segments and files for people."""
    needed_bytes: int = 0
    """Sealed blobs that some snapshot needs, each counted once."""
    unneeded_bytes: int = 0
    """The rest of the packs: what prune can give back, heads and padding of packs in use included."""


@dataclass(slots=True)
class _Marked:
    """The blob map's figures for marked ids of one domain."""

    stored: int = 0
    unique: int = 0
    freeable: set[int] = field(default_factory=set)
    """Packs that hold something of the selection and nothing that others need."""


def sizes_of(repo: Repository, chosen: Sequence[Selected]) -> Sizes:
    """The sizes of these snapshots together. Raises IntegrityError if a node is missing, StoreError."""
    repo.refresh_map()
    result = Sizes()
    by_domain: dict[DomainId, Roots] = {}
    snapshots = {one.snapshot.ref: one.snapshot for one in chosen}
    for snapshot in snapshots.values():
        by_domain.setdefault(snapshot.added.domain_id, Roots()).add(snapshot.added)
        result.apparent_bytes += snapshot.added.size
        result.allocated_bytes += allocated(repo, snapshot)
    rest = roots_by_domain(repo.catalogue, snapshots.keys())
    for domain_id, roots in by_domain.items():
        marked = _marked(repo, domain_id, roots, rest.get(domain_id, Roots()))
        result.stored_bytes += marked.stored
        result.unique_bytes += marked.unique
        result.freed_bytes += census.bytes_of(repo.blobs, marked.freeable)
    result.shared_bytes = result.stored_bytes - result.unique_bytes
    return result


def totals_of(repo: Repository) -> Totals:
    """The sizes of a repository. Raises IntegrityError if a node is missing, StoreError."""
    repo.refresh_map()
    result = Totals(sum(snapshot.added.size for snapshot in repo.catalogue.snapshots))
    for entry in repo.store.list(""):
        if entry.name.startswith(PACKS):
            result.packs += 1
            result.packs_bytes += entry.size
        else:
            result.other_objects += 1
            result.other_bytes += entry.size
    for domain_id, roots in roots_by_domain(repo.catalogue).items():
        result.needed_bytes += _marked(repo, domain_id, roots, Roots()).stored
    # Packs of the catalogue hold what checkpoints refer to.
    result.needed_bytes += sum(entry.size for entry in repo.blobs.packs(CATALOGUE))
    result.unneeded_bytes = result.packs_bytes - result.needed_bytes
    return result


def allocated(repo: Repository, snapshot: Snapshot) -> int:
    """Bytes of a snapshot that are not holes."""
    tree = repo.tree(snapshot)
    total = 0
    for run in repo.tree_reader(snapshot.added.domain_id).runs(tree):
        if run.slot != Slot.HOLE:
            end = min(run.end << tree.shape.chunk_log2, tree.shape.size)
            total += end - (run.first << tree.shape.chunk_log2)
    return total


def _marked(repo: Repository, domain_id: DomainId, mine: Roots, others: Roots) -> _Marked:
    """Mark both sides and look up where the blobs lie, one part of the ids after the other."""
    result = _Marked()
    kept: set[int] = set()
    with LiveIds() as own, LiveIds() as rest:
        _mark(repo, domain_id, mine, own)
        _mark(repo, domain_id, others, rest)
        for number in range(PARTS):
            own_ids, rest_ids = own.part(number), rest.part(number)
            last = b""
            for id_, pack, sealed in census.stored(repo.blobs, domain_id, number) if own_ids or rest_ids else ():
                needed, shared = id_ in own_ids, id_ in rest_ids
                if shared:
                    kept.add(pack)
                elif needed:
                    result.freeable.add(pack)
                if needed and id_ != last:  # further copies are garbage
                    result.stored += sealed
                    result.unique += 0 if shared else sealed
                last = id_
    result.freeable -= kept
    return result


def _mark(repo: Repository, domain_id: DomainId, roots: Roots, ids: LiveIds) -> None:
    for _, found in LiveWalk(repo.contents, domain_id).referenced(roots):
        ids.add(found)


def as_row(sizes: Sizes | Totals) -> dict[str, int]:
    """The figures by name."""
    return {row.name: getattr(sizes, row.name) for row in fields(sizes)}
