"""What can still be read of a chain whose newest checkpoint lacks something."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from lamella.base.errors import IntegrityError, ObjectNotFound
from lamella.format.commit import ChainEntry
from lamella.history.chains import HistoryReader, Names
from lamella.history.history import History


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
