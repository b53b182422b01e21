"""What the prune key says of commits (FORMAT 8): of a checkpoint that nothing is left out, of a lost one that it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from lamella.base.ids import WriterId
from lamella.crypto.derive import Keys
from lamella.format.commit import ChainEntry, Head
from lamella.format.deletion import Audited, Forgo
from lamella.history.history import Forgone
from lamella.history.records import decoded, prune_signed


def vouched(keys: Keys, said: Iterable[tuple[WriterId, ChainEntry]]) -> tuple[dict[WriterId, list[Head]], Forgone]:
    """Of AUDITED records by their authors the commits that are named, and the FORGO records; those with a signature.

    Both by the writer whose commits they are about, ascending by seq.
    """
    audits: dict[WriterId, set[Head]] = defaultdict(set)
    forgone: dict[WriterId, set[Forgo]] = defaultdict(set)
    for author, entry in said:
        known = decoded(entry) if prune_signed(keys, author, entry) else None
        if isinstance(known, Audited):
            audits[known.head.writer].add(known.head)
        elif isinstance(known, Forgo):
            forgone[known.head.writer].add(known)
    found = {writer: sorted(rows, key=lambda row: row.head) for writer, rows in forgone.items()}
    return {writer: sorted(heads) for writer, heads in audits.items()}, found
