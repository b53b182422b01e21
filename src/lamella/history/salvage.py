"""What can still be read of a chain that lacks commits, or a part of its newest checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from lamella.base.errors import IntegrityError, ObjectNotFound
from lamella.format.commit import ChainEntry, Head
from lamella.format.records import Seen
from lamella.history.chains import HistoryReader, Names, said_clocks
from lamella.history.history import Chain, Gap, History
from lamella.history.records import of_kinds


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
                    yield from list(reader.checkpoint_entries(commit.checkpoint, head.name))


def fill_gaps(reader: HistoryReader, chain: Chain, gaps: Sequence[Gap]) -> None:
    """Of commits that are missing before the newest checkpoint, what that repeats: their writer's own word.

    Who reads from that checkpoint knows these records too, and everybody must know the same.
    Raises IntegrityError, StoreError.
    """
    if chain.carried is None:
        return
    entries = list(reader.checkpoint_entries(chain.carried, Head(chain.writer, *chain.checkpoint).name))
    filled = [entry for entry in entries if any(gap.first <= entry.seq <= gap.last for gap in gaps)]
    filled = [entry for entry in filled if entry.record.type != Seen.TYPE]
    chain.entries = sorted([*chain.entries, *filled], key=lambda entry: entry.seq)
    facts = [(entry.seq, fact) for entry, fact in of_kinds(entries, Seen)]
    chain.carried_clocks |= said_clocks(chain.writer, sorted({entry.seq for entry in filled}), facts)
