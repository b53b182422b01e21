"""Histories made of records alone, without a store: chains as they would be read, with real prune signatures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from lamella.base.ids import RepoId, WriterId
from lamella.crypto.derive import Bundle, Keys
from lamella.crypto.sign import public_of, sign
from lamella.format.commit import Body, ChainEntry, Head
from lamella.format.marker import Marker
from lamella.format.records import Checkpoint, RawRecord, Signed, prune_signed_message, raw
from lamella.history.history import Chain, Commit, History
from lamella.history.order import Clock

SEED = b"p" * 32
KEYS = Keys(Marker(RepoId(bytes(16)), public_of(SEED), public_of(bytes(32)), 1), Bundle(bytes(32), bytes(32), SEED))


def writer(number: int) -> WriterId:
    return WriterId(hashlib.sha256(b"writer %d" % number).digest()[:16])


@dataclass
class Script:
    """Chains that grow by `commit`; what each writer has seen is kept as its clock."""

    chains: dict[WriterId, Chain] = field(default_factory=dict)

    def commit(
        self,
        by: int,
        records: Sequence[RawRecord | tuple[Signed, bool]],
        sees: Sequence[int] = (),
        time_ms: int = 1_800_000_000_000,
    ) -> Head:
        """The next commit of writer `by`, which has seen what the writers in `sees` published by now."""
        id_ = writer(by)
        chain = self.chains.setdefault(id_, Chain(id_))
        seq, prev = (chain.head.seq + 1, chain.head.sha256) if chain.head is not None else (1, bytes(32))
        rows = [record if isinstance(record, RawRecord) else signed(*record, id_, seq, prev) for record in records]
        others = [self.chains[writer(one)] for one in sees if writer(one) in self.chains and one != by]
        seen = tuple(sorted(other.head for other in others if other.head is not None))
        body = Body(id_, seq, prev, time_ms + seq, (0, bytes(32)), seen, tuple(rows))
        head = Head(id_, seq, hashlib.sha256(body.encode()).digest())
        clock = dict(chain.clocks.get(prev, {}))
        for one in seen:
            clock[one.writer] = max(one.seq, clock.get(one.writer, 0))
        clock[id_] = seq
        chain.clocks[head.sha256] = clock
        chain.commits.append(Commit(head, body))
        chain.heads = [head]
        chain.entries += [ChainEntry(seq, prev, body.time_ms, row) for row in rows if row.type != Checkpoint.TYPE]
        return head

    def history(self, order: Sequence[int] | None = None) -> History:
        """The chains in this order of their writers' ids."""
        found = History()
        names = sorted(self.chains)
        for position in order if order is not None else range(len(names)):
            found.chains[names[position]] = self.chains[names[position]]
        return found

    def clock(self, by: int) -> Clock:
        chain = self.chains[writer(by)]
        return {} if chain.head is None else chain.clocks[chain.head.sha256]


def signed(record: Signed, by_prune_key: bool, id_: WriterId, seq: int, prev: bytes) -> RawRecord:
    """The record as it stands in that commit, signed or not."""
    plain = raw(record)
    if not by_prune_key:
        return plain
    return RawRecord(plain.type, plain.value[:-64] + sign(SEED, prune_signed_message(KEYS.root, id_, seq, prev, plain)))
