"""Making the checkpoint of a chain: everything in force, old entries in segments that are used again (FORMAT 8).

The record of a removal may itself go once nobody can meet the snapshot again.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from lamella.base.errors import IntegrityError, StoreError
from lamella.base.ids import CATALOGUE, WriterId
from lamella.base.names import pack_name
from lamella.crypto.derive import Keys
from lamella.format.carried import SEGMENT_HEAD, Room
from lamella.format.commit import ChainEntry, Head
from lamella.format.container import Kind
from lamella.format.deletion import Revive
from lamella.format.known import understood
from lamella.format.records import AddSnap, Checkpoint, Ref, Seen, SegmentPlace, raw
from lamella.history.catalogue import Catalogue, Series
from lamella.history.chains import HistoryReader
from lamella.history.compaction import COPIES_REMEMBERED_MS, Ended, InForce, begins_of
from lamella.history.history import AUDITS_KEPT, Chain, History
from lamella.history.order import Clock
from lamella.packs.building import build_single
from lamella.packs.reach import require_alive
from lamella.stores.base import Store

TAIL_BYTES = 64 * 1024
"""Bytes of entries in a checkpoint itself, at most; about every 24th commit has one. More goes into segments first."""
SEGMENT_BYTES = 4 * 1024 * 1024

REVIVABLE = 3
"""Removed snapshots of a volume that checkpoints still carry,"""
REVIVABLE_MS = 30 * 86_400_000
"""and for how long after their removal."""

_Part = tuple[SegmentPlace, list[ChainEntry]]


def make_checkpoint(store: Store, keys: Keys, chain: Chain, ended: Ended) -> tuple[Checkpoint | None, int]:
    """The state of a chain up to now, and the bytes put for it; none if readers would refuse it. Raises StoreError."""
    begin = 0 if chain.begin is None else chain.begin.seq
    earlier = [] if chain.carried is None else [place for place in chain.carried.earlier if place[0] >= begin]
    if chain.checkpoint[0]:
        earlier.append(chain.checkpoint)
    kept = InForce(chain.writer, chain.entries, ended).kept()
    if not Room.fits(kept):
        return None, 0  # the chain is read from the checkpoint before, until something is removed
    parts, rest = _reused(chain, kept)
    tail = _encoded(chain, parts, rest)
    if sum(map(len, tail)) > TAIL_BYTES:
        while parts and sum(len(entry.encode()) for entry in parts[-1][1]) <= sum(map(len, tail)):
            # Merged with what is not smaller than itself, so that there are few, and each is written a few times.
            rest = [*_plain(parts.pop()[1]), *rest]
            tail = _encoded(chain, parts, rest)
    segments = [place for place, _ in parts]
    stored = 0
    while sum(map(len, tail)) > TAIL_BYTES:
        content, tail = _cut(tail)
        sealed, ids = build_single(keys, CATALOGUE, [(Kind.SEGMENT, content)])
        sha256 = hashlib.sha256(sealed).digest()
        store.put(pack_name(sha256), sealed)
        segments.append(SegmentPlace(ids[0], sha256))
        stored += len(sealed)
    if stored:
        store.sync()
    return Checkpoint(tuple(earlier), tuple(segments), b"".join(tail)), stored


def _plain(entries: Sequence[ChainEntry]) -> list[ChainEntry]:
    return [entry for entry in entries if entry.record.type != Seen.TYPE]


def _reused(chain: Chain, kept: Sequence[ChainEntry]) -> tuple[list[_Part], list[ChainEntry]]:
    """The segments that can stay as they are, from the first on, and the entries that are in none of them."""
    parts: list[_Part] = []
    done = 0
    for part in chain.carried_parts:
        plain = _plain(part[1])
        if list(kept[done : done + len(plain)]) != plain:
            break
        parts.append(part)
        done += len(plain)
    return parts, list(kept[done:])


def _encoded(chain: Chain, parts: Sequence[_Part], rest: Sequence[ChainEntry]) -> list[bytes]:
    """The entries as bytes, with what their commits had seen beyond what the segments say."""
    facts = [understood(entry.record) for _, entries in parts for entry in entries if entry.record.type == Seen.TYPE]
    said: dict[WriterId, int] = {}
    for fact in facts:
        if isinstance(fact, Seen):
            said |= {writer: max(seq, said.get(writer, 0)) for writer, seq in fact.heads}
    clock_of = _clocks(chain)
    begun, before = bool(facts), 0
    found: list[bytes] = []
    for entry in rest:
        clock = clock_of(entry.seq) if entry.seq != before else None
        before = entry.seq
        if clock is not None:
            news = {
                writer: seq for writer, seq in clock.items() if writer != chain.writer and seq > said.get(writer, 0)
            }
            if news or not begun:
                found.append(entry._replace(record=raw(Seen.of(news))).encode())
                said |= news
                begun = True
        found.append(entry.encode())
    return found


def _clocks(chain: Chain) -> Callable[[int], Clock | None]:
    """The clock of each commit of a chain, by seq."""
    known: dict[int, Clock] = dict(chain.carried_clocks)
    for commit in chain.commits:
        if commit.head.seq not in known:
            known[commit.head.seq] = chain.clocks[commit.head.sha256]
    return known.get


def _cut(tail: list[bytes]) -> tuple[bytes, list[bytes]]:
    """One segment's content, and what is left."""
    taken = size = 0
    while taken < len(tail) and (not taken or size + len(tail[taken]) <= SEGMENT_BYTES):
        size += len(tail[taken])
        taken += 1
    return SEGMENT_HEAD + b"".join(tail[:taken]), tail[taken:]


# -- removals that need no record any more ----------------------------------------------------------------------------


def ended(
    store: Store, reader: HistoryReader, history: History, catalogue: Catalogue, own: WriterId | None, now_ms: int
) -> Ended:
    """The records that checkpoints made now may leave out. Raises StoreError only if the store is gone."""
    return Ended(
        frozenset(catalogue.removed),
        begins_of(history) if history.whole else {},
        frozenset(snapshot.ref for snapshot in catalogue.snapshots),
        buried(store, reader, history, catalogue, own),
        revivable(catalogue, now_ms),
        now_ms - COPIES_REMEMBERED_MS,
    )


def revivable(catalogue: Catalogue, now_ms: int) -> frozenset[Ref]:
    """The newest of the snapshots of each series that were removed lately, unless somebody gave it up.

    Two prunes that know different things may have removed the last whole one; a few are enough, since what a policy
    removed before that is older.
    """
    rows: dict[Series, list[tuple[int, Ref]]] = defaultdict(list)
    for ref, removal in catalogue.removed.items():
        lately = removal.time_ms > now_ms - REVIVABLE_MS
        if lately and removal.added is not None and not (removal.last or removal.revived):
            rows[removal.series].append((removal.added.time_ms, ref))
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
            for entry in reader.carried.entries(checkpoint, head.name):
                # A malformed record makes the whole checkpoint unusable here, so `of_kinds` will not do.
                known = understood(entry.record) if entry.record.type in (AddSnap.TYPE, Revive.TYPE) else None
                added = known.added if isinstance(known, Revive) else known
                if isinstance(added, AddSnap):
                    found.add(Ref(head.writer, entry.seq, added.snap_id))
        except (IntegrityError, StoreError) as error:
            require_alive(store, error)
            return None
    return found
