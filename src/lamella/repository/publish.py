"""Appending commits to this host's own chain (FORMAT 8), under the host's lock.

The own head is always read from the repository, never from memory: an old state directory, a commit whose reply was
lost and another process of this host are then all the same case.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from lamella.clock import Clock
from lamella.crypto.derive import Keys
from lamella.crypto.sign import sign
from lamella.errors import RolledBack
from lamella.format.commit import (
    CHECKPOINT_EVERY,
    MAX_SEEN,
    PREFIX,
    SEGMENT_HEAD,
    Body,
    Entry,
    Head,
    decode_entries,
    parse_name,
)
from lamella.format.container import Kind
from lamella.format.known import Signed, understood
from lamella.format.records import (
    AddSnap,
    Checkpoint,
    Confirm,
    ForkSeen,
    RawRecord,
    Ref,
    SegmentPlace,
    Writer,
    prune_signed_message,
    raw,
)
from lamella.ids import CATALOGUE
from lamella.repository.blobmap import pack_name
from lamella.repository.containers import build_commit, build_single
from lamella.repository.history import Chain, History, HistoryReader
from lamella.repository.host import HostMemory, WriterKey
from lamella.repository.pins import Pins
from lamella.stores.base import Store

_SEGMENT_ENTRIES = 1000
_SEGMENT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Published:
    """A commit that is durable."""

    head: Head
    stored_bytes: int


class Publisher:
    """Publishes for one host. Use `publish` with the store's shared lock held."""

    def __init__(self, store: Store, keys: Keys, memory: HostMemory, pins: Pins, reader: HistoryReader) -> None:
        self._store = store
        self._keys = keys
        self._memory = memory
        self._pins = pins
        self._reader = reader

    def publish(self, history: History, records: Sequence[RawRecord | Signed], clock: Clock) -> Published:
        """Append one commit carrying `records` to the own chain; durable when this returns.

        `Signed` values are signed with the prune key if the secret had it. Raises RolledBack if the own
        chain turns out to be forked or to have gone backwards, StoreError.
        """
        with self._memory.lock():
            key, chain, news = self._own_chain(history)
            head = chain.head
            seq, prev = (head.seq + 1, head.sha256) if head is not None else (1, bytes(32))
            now = clock()
            rows = [*news, *(self._signed(record, key, seq, prev) for record in records)]
            stored = 0
            if seq - chain.checkpoint[0] >= CHECKPOINT_EVERY:
                checkpoint, stored = self._checkpoint(chain)
                rows.append(raw(checkpoint))
            seen = self._seen(history, chain, complete=head is None or any(row.type == Checkpoint.TYPE for row in rows))
            body = Body(key.id, seq, prev, now, chain.checkpoint, seen, tuple(rows))
            content = build_commit(self._keys, key.seed, key.public, body)
            made = Head(key.id, seq, hashlib.sha256(content).digest())
            self._store.put(made.name, content)
            self._store.sync()
            self._check_alone(made)
            self._pins.remember([made])
        return Published(made, stored + len(content))

    def _own_chain(self, history: History) -> tuple[WriterKey, Chain, list[RawRecord]]:
        """This host's key, its chain as it is now, and the records a chain must begin with."""
        key = self._memory.writer_key()
        known = None if key is None else history.chains.get(key.id)
        if key is not None and not (known is not None and known.forked_at):
            chain, fresh = self._reader.read_own(key.id, self._pins)
            if chain.forked_at or any(problem.key not in self._pins.accepted for problem in fresh.problems):
                raise RolledBack("this host's own history changed while it was used", hint="run: lamella check")
            history.chains[key.id] = chain
            return key, chain, [] if chain.heads else self._first_records(None)
        key = self._memory.new_writer_key()
        chain = Chain(key.id)
        history.chains[key.id] = chain
        return key, chain, self._first_records(known)

    def _first_records(self, forked: Chain | None) -> list[RawRecord]:
        host = self._memory.host
        rows = [raw(Writer(host.label.encode("utf-8")[:200].decode("utf-8", "ignore"), host.machine))]
        if forked is not None:
            heads = tuple(head.sha256 for head in forked.heads[:255])
            rows.append(raw(ForkSeen(forked.writer, forked.forked_at, heads)))
        return rows

    def _signed(self, record: RawRecord | Signed, key: WriterKey, seq: int, prev: bytes) -> RawRecord:
        if isinstance(record, RawRecord):
            return record
        plain = raw(record)
        if self._keys.prune_seed is None:
            return plain
        message = prune_signed_message(self._keys.root, key.id, seq, prev, plain)
        return RawRecord(plain.type, plain.value[:-64] + sign(self._keys.prune_seed, message))

    def _seen(self, history: History, own: Chain, *, complete: bool) -> tuple[Head, ...]:
        """Heads of other chains: all of them, or those that changed since the own previous commit."""
        clock = own.clocks.get(own.head.sha256, {}) if own.head is not None else {}
        heads = [head for head in history.heads if head.writer != own.writer]
        if not complete:
            heads = [head for head in heads if head.seq > clock.get(head.writer, 0)]
        return tuple(sorted(heads)[:MAX_SEEN])

    def _check_alone(self, made: Head) -> None:
        """Nobody else may have published the same number: that would be a copy of this host's state."""
        listed = [parse_name(entry.name) for entry in self._store.list(f"{PREFIX}{made.writer.hex()}/")]
        same = [head for head in listed if head is not None and head.seq == made.seq]
        if made not in same:
            raise RolledBack("the commit just published is not listed", obj=made.name)
        same.remove(made)
        history = History()
        if any(self._reader.load(history, head) for head in same):
            self._pins.remember([made])
            raise RolledBack(
                "the state directory of this host is in use in another place: the history has forked",
                obj=made.name,
                hint="both snapshots are kept; accept with: lamella check --accept-rollback",
            )

    def _checkpoint(self, chain: Chain) -> tuple[Checkpoint, int]:
        """The chain's state up to now; entries beyond what a tail should hold go into catalogue segments first."""
        carried = chain.carried
        earlier = () if carried is None else carried.earlier
        if chain.checkpoint[0]:
            earlier = (*earlier, chain.checkpoint)
        if chain.lacking and chain.whole:
            carried = None  # it cannot be read, but all that it says is known: write everything anew
        segments = list(carried.segments) if carried is not None else []
        tail = self._tail(chain, carried)
        stored = 0
        while len(tail) > _SEGMENT_ENTRIES or sum(len(row) for row in tail) > _SEGMENT_BYTES:
            content, tail = _cut(tail)
            place, size = self._put_segment(content)
            segments.append(place)
            stored += size
        if stored:
            self._store.sync()
        return Checkpoint(earlier, tuple(segments), b"".join(tail)), stored

    def _tail(self, chain: Chain, carried: Checkpoint | None) -> list[bytes]:
        """Entries that are in no segment yet; the packs of confirmed snapshots are dropped."""
        after = 0
        entries: list[Entry] = []
        if carried is not None:
            entries = list(decode_entries(carried.entries, "a checkpoint"))
            after = chain.checkpoint[0]
        entries += [entry for entry in chain.entries if entry.seq >= max(after, 1)]
        confirmed = _confirmed(chain)
        return [_slimmed(chain, entry, confirmed).encode() for entry in entries]

    def _put_segment(self, content: bytes) -> tuple[SegmentPlace, int]:
        sealed, ids = build_single(self._keys, CATALOGUE, [(Kind.SEGMENT, content)])
        sha256 = hashlib.sha256(sealed).digest()
        self._store.put(pack_name(sha256), sealed)
        return SegmentPlace(ids[0], sha256), len(sealed)


def _cut(tail: list[bytes]) -> tuple[bytes, list[bytes]]:
    """One segment's content, and what is left."""
    taken = size = 0
    while taken < min(len(tail), _SEGMENT_ENTRIES) and (not taken or size + len(tail[taken]) <= _SEGMENT_BYTES):
        size += len(tail[taken])
        taken += 1
    return SEGMENT_HEAD + b"".join(tail[:taken]), tail[taken:]


def _confirmed(chain: Chain) -> set[Ref]:
    found: set[Ref] = set()
    for entry in chain.entries:
        if entry.record.type == Confirm.TYPE:
            known = understood(entry.record)
            if isinstance(known, Confirm):
                found |= set(known.refs)
    return found


def _slimmed(chain: Chain, entry: Entry, confirmed: set[Ref]) -> Entry:
    if entry.record.type != AddSnap.TYPE:
        return entry
    known = understood(entry.record)
    if not isinstance(known, AddSnap) or Ref(chain.writer, entry.seq, known.snap_id) not in confirmed:
        return entry
    return entry._replace(record=raw(known.without_packs()))
