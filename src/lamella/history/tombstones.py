"""When the record of a removal may itself go (FORMAT 8): once nobody can meet the snapshot again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from lamella.base.errors import IntegrityError, StoreError
from lamella.base.ids import VolumeId, WriterId
from lamella.format.commit import Head
from lamella.format.deletion import Revive
from lamella.format.known import understood
from lamella.format.records import AddSnap, Ref
from lamella.history.catalogue import Catalogue
from lamella.history.chains import HistoryReader
from lamella.history.compaction import AUDITS_KEPT, COPIES_REMEMBERED_MS, Ended, begins_of
from lamella.history.history import History
from lamella.packs.reach import require_alive
from lamella.stores.base import Store

REVIVABLE = 3
"""Removed snapshots of a volume that checkpoints still carry,"""
REVIVABLE_MS = 30 * 86_400_000
"""and for how long after their removal."""


def ended(
    store: Store, reader: HistoryReader, history: History, catalogue: Catalogue, own: WriterId | None, now_ms: int
) -> Ended:
    """What checkpoints made now may leave out. Raises StoreError only if the store is gone."""
    return Ended(
        frozenset(catalogue.removed),
        begins_of(history) if history.whole else {},
        frozenset(snapshot.ref for snapshot in catalogue.snapshots),
        buried(store, reader, history, catalogue, own),
        revivable(catalogue, now_ms),
        now_ms - COPIES_REMEMBERED_MS,
    )


def revivable(catalogue: Catalogue, now_ms: int) -> frozenset[Ref]:
    """The newest of the snapshots of each volume that were removed lately, unless somebody gave up the volume.

    Two prunes that know different things may have removed the last whole one; a few are enough, since what a policy
    removed before that is older.
    """
    rows: dict[VolumeId, list[tuple[int, Ref]]] = defaultdict(list)
    for ref, removal in catalogue.removed.items():
        lately = removal.time_ms > now_ms - REVIVABLE_MS
        if lately and removal.added is not None and not (removal.last or removal.revived):
            rows[removal.added.volume_id].append((removal.added.time_ms, ref))
    return frozenset(ref for some in rows.values() for _, ref in sorted(some)[-REVIVABLE:])


def buried(
    store: Store, reader: HistoryReader, history: History, catalogue: Catalogue, own: WriterId | None
) -> frozenset[Ref]:
    """The removed snapshots whose tombstones, where this writer published them, may go.

    Their author's two newest audited checkpoints lack them, and everybody who still writes has seen the newer one.
    """
    mine = {ref for ref, removal in catalogue.removed.items() if any(by == own for by, _ in removal.commits)}
    found: set[Ref] = set()
    for author in {ref.writer for ref in mine}:
        audits = history.audits.get(author, [])[-AUDITS_KEPT:]
        if len(audits) < AUDITS_KEPT or not _seen_by_all(history, catalogue, audits[-1]):
            continue
        refs = {ref for ref in mine if ref.writer == author and ref.seq < audits[0].seq}
        carried = _carried(store, reader, audits)
        if carried is not None:
            found |= refs - carried
    return frozenset(found)


def _seen_by_all(history: History, catalogue: Catalogue, head: Head) -> bool:
    for chain in history.chains.values():
        if chain.writer in catalogue.retired or chain.writer == head.writer:
            continue
        if not chain.heads or any(chain.clocks[end.sha256].get(head.writer, 0) < head.seq for end in chain.heads):
            return False
    return True


def _carried(store: Store, reader: HistoryReader, heads: Iterable[Head]) -> set[Ref] | None:
    """The snapshots in these checkpoints; None if one cannot be read."""
    found: set[Ref] = set()
    for head in heads:
        commit = reader.load(History(), head)
        checkpoint = None if commit is None else commit.checkpoint
        if checkpoint is None:
            return None
        try:
            for entry in reader.checkpoint_entries(checkpoint, head.name):
                known = understood(entry.record) if entry.record.type in (AddSnap.TYPE, Revive.TYPE) else None
                added = known.added if isinstance(known, Revive) else known
                if isinstance(added, AddSnap):
                    found.add(Ref(head.writer, entry.seq, added.snap_id))
        except (IntegrityError, StoreError) as error:
            require_alive(store, error)
            return None
    return found
