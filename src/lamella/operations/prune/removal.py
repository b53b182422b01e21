"""Ending snapshots, and bringing one back: REMOVE and REVIVE (FORMAT 8, 15).

REVIVE is for a volume that lost its last whole snapshot to removals: two prunes that know different things may each
keep another snapshot. What they removed is still there until packs are deleted, so every prune looks for such volumes
before any deletion, and before it acknowledges a CONDEMN.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from lamella.base.errors import UsageError
from lamella.base.ids import SnapId
from lamella.format.deletion import Remove, Revive
from lamella.format.records import NO_REF, AddSnap, Ref, raw
from lamella.history.catalogue import Catalogue, Series
from lamella.operations.prune.health import Health
from lamella.operations.shared.marking import LiveWalk, roots_of
from lamella.operations.shared.selection import Selected
from lamella.operations.writing.session import WritingSession
from lamella.repository.repository import Repository

_REFS = 4096
"""Snapshots in one REMOVE: a tombstone leaves the log as a whole."""


def removals(refs: Sequence[Ref], kind: type[Remove] = Remove) -> list[Remove]:
    """The records that end these snapshots."""
    return [kind(tuple(refs[start : start + _REFS])) for start in range(0, len(refs), _REFS)]


def mark_removed(repo: Repository, refs: Sequence[Ref]) -> None:
    """Say without a signature that these should go: they stay, and are listed so. Raises RolledBack, StoreError."""
    repo.publish([raw(record) for record in removals(refs)])
    repo.reload()


def require_not_last(chosen: Sequence[Selected], health: Health) -> None:
    """Raises UsageError if no whole snapshot of a volume would be left. Raises StoreError."""
    refs = {one.snapshot.ref for one in chosen}
    left = [snapshot for one in chosen for snapshot in one.volume.snapshots if snapshot.ref not in refs]
    whole = health.whole_series(left)
    for one in chosen:
        if one.snapshot.series not in whole:
            text = f"no whole snapshot of {one.volume_name} would be left without {one.text}"
            raise UsageError(text, obj=one.text, hint="add --yes-last to remove it anyway")


def require_unpinned(chosen: Sequence[Selected]) -> None:
    """Raises UsageError naming the first one that is pinned."""
    for one in chosen:
        if one.snapshot.pinned is not None:
            why = f": {one.snapshot.pinned}" if one.snapshot.pinned else ""
            raise UsageError(f"{one.text} is pinned{why}", obj=one.text, hint=f"first: lamella tag {one.text} --unpin")


def revivable(catalogue: Catalogue, whole: Collection[Series]) -> Iterator[list[tuple[Ref, AddSnap]]]:
    """Removed snapshots that may be brought back, of each series that is not among `whole`, newest first.

    Nothing that a REMOVE_LAST names: whoever published that wanted none of it to stay. Nor what a writer published
    after it was expelled.
    """
    heads = catalogue.expelled
    found: dict[Series, list[tuple[Ref, AddSnap]]] = defaultdict(list)
    for ref, removal in catalogue.removed.items():
        added = removal.added
        if ref.writer in heads and ref.seq > heads[ref.writer].seq:
            continue
        if added is not None and added.usable and not (removal.last or removal.revived):
            found[removal.series].append((ref, added))
    for series, rows in found.items():
        if series not in whole:
            yield sorted(rows, key=lambda row: (row[1].time_ms, row[0]), reverse=True)


def revive(repo: Repository, removed: Ref, added: AddSnap) -> None:
    """Publish a removed snapshot anew, relying on no condemned pack. Needs the prune key.

    Raises IntegrityError or ObjectNotFound if what it needs cannot be had, RolledBack, StoreError.
    """
    own = repo.own_writer
    if not repo.exclusive and (own is None or own not in repo.history.chains):
        # Whoever deletes elsewhere waits for the chains it knows of: this one must be there first.
        repo.publish([])
    snap_id = SnapId(os.urandom(16))
    again = replace(added, snap_id=snap_id, parent=NO_REF, packs=())
    repo.blobs.relied |= _packs(repo, added)
    with WritingSession(repo, name=added.name) as session:
        session.publish([Revive(removed, again)], [snap_id])


def _packs(repo: Repository, added: AddSnap) -> set[bytes]:
    """The packs a snapshot relies on: of several copies one that is not condemned, if there is any."""
    packs: set[bytes] = set()
    for kind, ids in LiveWalk(repo.contents, added.domain_id).referenced(roots_of(added)):
        for start in range(0, len(ids), 256):
            for places in repo.blobs.find_many(kind, ids[start : start + 256]).values():
                here = [place.pack for place in places if place.domain_id == added.domain_id]
                sound = [pack for pack in here if pack not in repo.blobs.condemned]
                packs.update((sound or here)[:1])
    return packs
