"""When this host first saw the commits of others: a memory that no other writer's clock can change (FORMAT 8).

One row says that the commits `first` to `last` of a writer were there at a look and not at the look before. What was
there when the memory began has no row. Losing the memory, or its oldest rows, means believing what commits say.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from lamella.base.errors import RepositoryError
from lamella.base.ids import WriterId
from lamella.format.commit import Head
from lamella.memory.host import HostMemory

_FILE = "looks.json"
_ROWS = 4096


class Sight(NamedTuple):
    """The look that first showed a commit, and the one before; UTC milliseconds."""

    first_ms: int
    before_ms: int


class _Row(NamedTuple):
    writer: WriterId
    first: int
    last: int
    sight: Sight


class Sightings:
    """The looks at one repository."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._read()

    def _read(self) -> None:
        stored = self._memory.read(_FILE)
        looked = stored.get("looked_ms")
        self._looked_ms = looked if isinstance(looked, int) else None
        self._known = _known(stored.get("known"))
        self._rows = _rows(stored.get("rows"))
        self._index: dict[WriterId, list[_Row]] | None = None

    def look(self, heads: Iterable[Head], now_ms: int) -> None:
        """Note what is new at this moment. A state directory that cannot be written notes nothing."""
        newest: dict[WriterId, int] = {}
        for head in heads:
            newest[head.writer] = max(head.seq, newest.get(head.writer, 0))
        if all(self._known.get(writer, 0) >= seq for writer, seq in newest.items()) and self._looked_ms is not None:
            return
        self._read()  # another process of this host may have looked meanwhile
        for writer, seq in sorted(newest.items()):
            known = self._known.get(writer, 0)
            if known < seq and self._looked_ms is not None:
                self._rows.append(_Row(writer, known + 1, seq, Sight(now_ms, self._looked_ms)))
            self._known[writer] = max(seq, known)
        self._looked_ms = now_ms
        self._rows = self._rows[-_ROWS:]
        self._index = None
        with suppress(RepositoryError):
            self._write()

    def of(self, writer: WriterId, seq: int) -> Sight | None:
        """The first sight of a commit; None if it was there before the memory begins, or is not known."""
        if self._index is None:
            self._index = {}
            for row in self._rows:
                self._index.setdefault(row.writer, []).append(row)
            for rows in self._index.values():
                rows.sort(key=lambda row: row.first)
        rows = self._index.get(writer, [])
        position = bisect_right(rows, seq, key=lambda row: row.first) - 1
        return rows[position].sight if position >= 0 and seq <= rows[position].last else None

    def _write(self) -> None:
        content: dict[str, Any] = {
            "looked_ms": self._looked_ms,
            "known": {writer.hex(): seq for writer, seq in self._known.items()},
            "rows": [[row.writer.hex(), row.first, row.last, *row.sight] for row in self._rows],
        }
        self._memory.write(_FILE, content)


def _known(stored: object) -> dict[WriterId, int]:
    found: dict[WriterId, int] = {}
    for writer, seq in stored.items() if isinstance(stored, dict) else ():
        with suppress(ValueError, TypeError):
            found[WriterId(bytes.fromhex(writer))] = int(seq)
    return found


def _rows(stored: object) -> list[_Row]:
    """The rows that have the right form; a damaged memory is a lost one."""
    found: list[_Row] = []
    for row in stored if isinstance(stored, list) else ():
        with suppress(ValueError, TypeError, LookupError, OverflowError):
            first, last, first_ms, before_ms = (int(number) for number in row[1:5])
            found.append(_Row(WriterId(bytes.fromhex(row[0])), first, last, Sight(first_ms, before_ms)))
    return found
