"""Which packs are condemned, rescued and gone: what signed CONDEMN, RESCUE and REAPED add up to (FORMAT 8).

A pack may be relied on by new snapshots only if every batch that condemned it rescued it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from lamella.base.ids import WriterId
from lamella.crypto.derive import Keys
from lamella.format.commit import ChainEntry, Head
from lamella.format.deletion import Condemn, Reaped, Rescue
from lamella.format.sessions import Session
from lamella.history.history import Chain
from lamella.history.records import of_kinds, prune_signed


@dataclass(slots=True)
class Batch:
    """One CONDEMN: who said it, in which commit, and what became of its packs."""

    batch: bytes
    writer: WriterId
    seq: int
    packs: frozenset[bytes]
    heads: tuple[Head, ...]
    written: frozenset[bytes] = frozenset()
    """Packs into which the same batch copied what is needed of the condemned ones."""
    rescued: set[bytes] = field(default_factory=set)
    reaped: set[bytes] = field(default_factory=set)

    @property
    def waiting(self) -> frozenset[bytes]:
        """Packs that are neither rescued nor deleted."""
        return self.packs - self.rescued - self.reaped


@dataclass(slots=True)
class Condemned:
    """All batches of a history."""

    batches: dict[bytes, Batch] = field(default_factory=dict)
    reaped: set[bytes] = field(default_factory=set)
    """Packs that a collector said it deleted."""

    @property
    def packs(self) -> frozenset[bytes]:
        """Packs that must not be relied on by anything new."""
        return frozenset().union(*(batch.packs - batch.rescued for batch in self.batches.values()))


def condemned(keys: Keys, chains: Collection[Chain]) -> Condemned:
    """Add up the signed records of all chains and branches. Unsigned and malformed ones count for nothing."""
    result = Condemned()
    rescues: list[Rescue] = []
    reaps: list[Reaped] = []
    for writer, seq, known in _signed(keys, chains):
        if isinstance(known, Rescue):
            rescues.append(known)
        elif isinstance(known, Reaped):
            reaps.append(known)
        elif known.batch not in result.batches:
            batch = Batch(known.batch, writer, seq, frozenset(known.packs), known.heads)
            result.batches[known.batch] = batch
        else:
            # Nobody makes an id twice on purpose: the packs of both are condemned.
            result.batches[known.batch].packs |= frozenset(known.packs)
    for batch in result.batches.values():
        batch.written = _written(chains, batch)
    for rescue in rescues:
        if rescue.batch in result.batches:
            result.batches[rescue.batch].rescued |= set(rescue.packs)
    for reaped in reaps:
        result.reaped |= set(reaped.packs)
        if reaped.batch in result.batches:
            result.batches[reaped.batch].reaped |= set(reaped.packs)
    return result


def _written(chains: Iterable[Chain], batch: Batch) -> frozenset[bytes]:
    """A SESSION under the batch's id, in the commit of its CONDEMN, names the new packs."""
    entries = [entry for chain in chains if chain.writer == batch.writer for entry in chain.entries]
    sessions = [known for entry, known in of_kinds(entries, Session) if entry.seq == batch.seq]
    return frozenset(pack for session in sessions if session.session_id == batch.batch for pack in session.packs)


def _signed(keys: Keys, chains: Iterable[Chain]) -> Iterator[tuple[WriterId, int, Condemn | Rescue]]:
    for chain in chains:
        rows: Iterator[tuple[ChainEntry, Condemn | Rescue]] = of_kinds(chain.entries, Condemn, Rescue, Reaped)
        for entry, known in rows:
            if prune_signed(keys, chain.writer, entry):
                yield chain.writer, entry.seq, known
