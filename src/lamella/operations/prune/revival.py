"""REVIVE: a volume that lost its last whole snapshot to removals gets the newest whole one back (FORMAT 8, 15).

Two prunes that know different things may each keep another snapshot. What they removed is still there until packs are
deleted, so this is asked before any deletion, and before a CONDEMN is acknowledged.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import replace

from lamella.base.ids import SnapId, VolumeId
from lamella.format.deletion import Revive
from lamella.format.records import NO_REF, AddSnap, Ref
from lamella.history.catalogue import Catalogue
from lamella.operations.shared.marking import Roots, Walk
from lamella.operations.writing.session import WritingSession
from lamella.repository.repository import Repository


def candidates(catalogue: Catalogue, whole: Collection[VolumeId]) -> Iterator[list[tuple[Ref, AddSnap]]]:
    """What may be brought back of each volume that is not among `whole`, newest first.

    Nothing that a REMOVE_LAST names: whoever published that wanted none of it to stay.
    """
    found: dict[VolumeId, list[tuple[Ref, AddSnap]]] = defaultdict(list)
    for ref, removal in catalogue.removed.items():
        added = removal.added
        if added is not None and added.usable and not (removal.last or removal.revived):
            found[added.volume_id].append((ref, added))
    for volume_id, rows in found.items():
        if volume_id not in whole:
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
    roots = Roots()
    roots.add_record(added)
    packs: set[bytes] = set()
    for kind, ids in Walk(repo.contents, added.domain_id).referenced(roots):
        for start in range(0, len(ids), 256):
            for places in repo.blobs.find_many(kind, ids[start : start + 256]).values():
                here = [place.pack for place in places if place.domain_id == added.domain_id]
                sound = [pack for pack in here if pack not in repo.blobs.condemned]
                packs.update((sound or here)[:1])
    return packs
