"""Expelled writers (FORMAT 8, Owners): EXPEL and READMIT say up to which commit the word of each counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lamella.base.ids import WriterId
from lamella.crypto.derive import Keys
from lamella.format.commit import ChainEntry, Head, writer_id
from lamella.format.owners import Expel, Readmit, Succeeds
from lamella.history.history import Chain
from lamella.history.records import of_kinds, prune_signed


def expulsions(keys: Keys, chains: Iterable[Chain]) -> list[Expel]:
    """The signed EXPEL records that no READMIT undoes."""
    said: dict[bytes, Expel] = {}
    undone: set[bytes] = set()
    for chain in chains:
        for entry, known in of_kinds(chain.entries, Expel, Readmit):
            if isinstance(known, Expel) and prune_signed(keys, chain.writer, entry):
                said[known.expel_id] = known
            elif isinstance(known, Readmit) and prune_signed(keys, chain.writer, entry):
                undone.add(known.expel_id)
    return [expel for id_, expel in sorted(said.items()) if id_ not in undone]


def expelled(found: Iterable[Expel], chains: Iterable[Chain]) -> dict[WriterId, Head]:
    """Writer -> its last commit that counts. No commit counts of writers that succeeded it and do not stay."""
    heads: dict[WriterId, Head] = {}
    after: dict[WriterId, set[WriterId]] = {}
    for chain in chains:
        for entry, said in of_kinds(chain.entries, Succeeds):
            if entry.seq == 1:
                after.setdefault(writer_id(said.public), set()).add(chain.writer)
    for expel in found:
        writer = expel.head.writer
        heads[writer] = min(expel.head, heads.get(writer, expel.head))
        waiting = list(after.get(writer, ()))
        while waiting:
            one = waiting.pop()
            if one not in expel.stay and one not in heads:
                heads[one] = Head(one, 0, bytes(32))
                waiting += after.get(one, ())
    return heads


def counts_in(chain: Chain, head: Head) -> Callable[[ChainEntry], bool]:
    """Whether an entry of an expelled writer's chain was said up to that commit, on its branch."""
    bodies = {commit.head.sha256: commit.body for commit in chain.commits}
    if not chain.forked_at or head.sha256 not in bodies:
        return lambda entry: entry.seq <= head.seq
    said: set[tuple[int, bytes, object]] = set()
    at = head.sha256
    while at in bodies:
        said.update((bodies[at].seq, bodies[at].prev, record) for record in bodies[at].records)
        at = bodies[at].prev
    return lambda entry: entry.seq < chain.forked_at or (entry.seq, entry.prev, entry.record) in said
