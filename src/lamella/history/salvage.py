"""What can still be read of a chain that lacks commits, or a part of its newest checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from lamella.base.errors import IntegrityError, ObjectNotFound
from lamella.format.commit import ChainEntry, Head
from lamella.history.carried import parted, said_clocks
from lamella.history.chains import HistoryReader, Names
from lamella.history.history import Chain, Gap, History


def salvaged(reader: HistoryReader, names: Names) -> Iterator[ChainEntry]:
    """The records of every commit and checkpoint of a chain that can be read, however they hang together."""
    for seq in sorted(names):
        for head in names[seq]:
            commit = reader.load(History(), head)
            if commit is None:
                continue
            for record in commit.body.records:
                yield ChainEntry(seq, commit.body.prev, commit.body.time_ms, record)
            if commit.checkpoint is not None:
                with suppress(IntegrityError, ObjectNotFound):
                    yield from list(reader.carried.entries(commit.checkpoint, head.name))


def fill_gaps(reader: HistoryReader, chain: Chain, gaps: Sequence[Gap]) -> None:
    """Of commits that are missing before the newest checkpoint, what that repeats: their writer's own word.

    Who reads from that checkpoint knows these records too, and everybody must know the same.
    Raises IntegrityError, StoreError.
    """
    if chain.carried is None:
        return
    entries, facts = parted(reader.carried.entries(chain.carried, Head(chain.writer, *chain.checkpoint).name))
    filled = [entry for entry in entries if any(gap.first <= entry.seq <= gap.last for gap in gaps)]
    chain.entries = sorted([*chain.entries, *filled], key=lambda entry: entry.seq)
    chain.carried_clocks |= said_clocks(chain.writer, filled, facts)
