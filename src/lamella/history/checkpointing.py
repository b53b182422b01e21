"""Making the checkpoint of a chain: everything in force, old entries in segments that are used again (FORMAT 8)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from lamella.base.ids import CATALOGUE, WriterId
from lamella.crypto.derive import Keys
from lamella.format.commit import SEGMENT_HEAD, Entry
from lamella.format.container import Kind
from lamella.format.known import understood
from lamella.format.records import Checkpoint, Seen, SegmentPlace, raw
from lamella.history.compaction import Ended, InForce
from lamella.history.history import Chain
from lamella.history.order import Clock
from lamella.packs.blobmap import pack_name
from lamella.packs.containers import build_single
from lamella.stores.base import Store

TAIL_BYTES = 64 * 1024
"""What a checkpoint holds itself, in every 24th commit or so; more goes into segments first."""
SEGMENT_BYTES = 4 * 1024 * 1024

_Part = tuple[SegmentPlace, list[Entry]]


def make_checkpoint(store: Store, keys: Keys, chain: Chain, ended: Ended) -> tuple[Checkpoint, int]:
    """The state of a chain up to now, and the bytes put for it. Raises StoreError."""
    begin = 0 if chain.begin is None else chain.begin.seq
    earlier = [] if chain.carried is None else [place for place in chain.carried.earlier if place[0] >= begin]
    if chain.checkpoint[0]:
        earlier.append(chain.checkpoint)
    kept = InForce(chain.writer, chain.entries, ended).kept()
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


def _plain(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.record.type != Seen.TYPE]


def _reused(chain: Chain, kept: Sequence[Entry]) -> tuple[list[_Part], list[Entry]]:
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


def _encoded(chain: Chain, parts: Sequence[_Part], rest: Sequence[Entry]) -> list[bytes]:
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
    """What each commit of a chain had seen."""
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
