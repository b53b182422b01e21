"""How much of each pack is needed: the mark laid over the blob map (FORMAT 8).

The map says what to look at; what is deleted is decided by the packs' own directories, read again for that purpose.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from lamella.base.ids import ChunkId, DomainId
from lamella.packs.cache import Cache

PARTS = 256
_ID = 24
_SPILL_BYTES = 64 * 1024

# Tree notes, which no tree refers to, do not count as waste: a pack is not rewritten for their sake.
_ROWS = (
    "SELECT id, pack, sealed, iif(kind = 5 AND content <= 512, 0, sealed) FROM blobs WHERE id >= ? AND id < ?"
    " ORDER BY id"
)
_PACKS = (
    "SELECT number, name, domain, length FROM packs WHERE number > ? AND trouble IS NULL ORDER BY number LIMIT 5000"
)


class LiveIds:
    """The ids that are needed. They lie in one temporary file; a part (all ids with one first byte) fits in memory.

    The kind is not kept: it is part of what an id is the hash of. A context manager: leaving it gives the file back.
    `directory` is where the file may grow to 24 bytes an id; None is the system's place for temporary files.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._buffers = [bytearray() for _ in range(PARTS)]
        self._pieces: list[list[tuple[int, int]]] = [[] for _ in range(PARTS)]
        self._file: IO[bytes] | None = None
        self._size = 0
        self.added = 0
        """Ids added, repetitions included."""

    def __enter__(self) -> LiveIds:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, ids: Iterable[ChunkId]) -> None:
        """These are needed. Raises OSError if the temporary file cannot be written."""
        buffers = self._buffers
        touched: set[int] = set()
        for id_ in ids:
            first = id_[0]
            buffers[first] += id_
            touched.add(first)
            self.added += 1
        for number in touched:
            if len(buffers[number]) >= _SPILL_BYTES:
                self._spill(number)

    def _spill(self, number: int) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - closed by __exit__
        buffer = self._buffers[number]
        self._file.seek(self._size)
        self._file.write(buffer)
        self._pieces[number].append((self._size, len(buffer)))
        self._size += len(buffer)
        buffer.clear()

    def part(self, number: int) -> set[bytes]:
        """All needed ids whose first byte is `number`."""
        pieces = [bytes(self._buffers[number])]
        for offset, length in self._pieces[number]:
            assert self._file is not None
            self._file.seek(offset)
            pieces.append(self._file.read(length))
        return {piece[at : at + _ID] for piece in pieces for at in range(0, len(piece), _ID)}

    def among(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        """Those of `ids` that are needed."""
        wanted: dict[int, set[ChunkId]] = {}
        for id_ in ids:
            wanted.setdefault(id_[0], set()).add(id_)
        return {id_ for number, some in wanted.items() for id_ in some & self.part(number)}


class PackUse(NamedTuple):
    """One pack: its hash, domain and length, the bytes of its blobs, and how many of these are needed.

    `needed` leaves out what a `twin` keeps: a pack of which at least half is a second copy of this one's blobs, as a
    broken-off rewriting leaves it. `held` counts these, too.
    """

    pack: bytes
    domain_id: DomainId
    length: int
    blobs: int
    needed: int
    held: int
    twins: tuple[bytes, ...] = ()


class Usage:
    """The packs of the map, counted against what is needed."""

    def __init__(self, cache: Cache, live: LiveIds) -> None:
        self._cache = cache
        (last,) = cache.row("SELECT coalesce(max(number), 0) FROM packs")
        self._blobs = array("Q", bytes(8 * (last + 1)))
        self._held = array("Q", bytes(8 * (last + 1)))
        self._spare: dict[int, dict[int, int]] = {}
        """Bytes that a pack has and another one keeps, by that other one."""
        self.needed = 0
        """How many different ids are needed."""
        self.absent = 0
        """How many of them lie nowhere."""
        self.suspected = 0
        """How many of them lie only where they did not open when they were last read."""
        copies: dict[bytes, list[tuple[int, int]]] = {}
        for first in range(PARTS):
            self._count(first, live.part(first), copies)
        self._names: dict[int, bytes] = {}
        self._choose_keepers(copies)

    def _count(self, first: int, needed: set[bytes], copies: dict[bytes, list[tuple[int, int]]]) -> None:
        blobs, held = self._blobs, self._held
        low, high = bytes([first]), bytes([first + 1]) if first < PARTS - 1 else b"\xff" * 25
        seen, before, before_at = 0, b"", (0, 0)
        with self._cache.lock:
            for id_, pack, sealed, counted in self._cache.connection.execute(_ROWS, (low, high)):
                if id_ not in needed:
                    blobs[pack] += counted
                    continue
                blobs[pack] += sealed
                held[pack] += sealed
                if id_ == before:
                    copies.setdefault(id_, [before_at]).append((pack, sealed))
                else:
                    seen += 1
                    before, before_at = id_, (pack, sealed)
            self.needed += len(needed)
            if seen != len(needed):
                rows = self._cache.connection.execute(_ROWS, (low, high))
                missing = needed - {row[0] for row in rows}
                suspected = missing & self._suspected(low, high)
                self.suspected += len(suspected)
                self.absent += len(missing) - len(suspected)

    def _suspected(self, low: bytes, high: bytes) -> set[bytes]:
        query = "SELECT s.id FROM suspects s JOIN packs p ON p.name = s.pack WHERE s.id >= ? AND s.id < ?"
        return {row[0] for row in self._cache.rows(query, (low, high))}

    def _choose_keepers(self, copies: dict[bytes, list[tuple[int, int]]]) -> None:
        """Of several copies in one domain the one in the fullest pack is kept, if that pack is a twin."""
        among = {place[0] for places in copies.values() for place in places}
        domains: dict[int, bytes] = {}
        for number in among:
            query = "SELECT name, domain FROM packs WHERE number = ?"
            self._names[number], domains[number] = self._cache.row(query, (number,))
        for places in copies.values():
            by_domain: dict[bytes, list[tuple[int, int]]] = {}
            for place in places:
                by_domain.setdefault(domains[place[0]], []).append(place)
            for same in by_domain.values():
                keeper = max(same, key=lambda place: (self._share(place[0]), place[0]))[0]
                for pack, sealed in same:
                    if pack != keeper:
                        shared = self._spare.setdefault(pack, {})
                        shared[keeper] = shared.get(keeper, 0) + sealed
        for pack, shared in self._spare.items():
            self._spare[pack] = {keeper: size for keeper, size in shared.items() if size * 2 >= self._blobs[keeper]}

    def _share(self, pack: int) -> float:
        return self._held[pack] / max(1, self._blobs[pack])

    def packs(self) -> Iterator[PackUse]:
        """Every pack whose head opened."""
        for number, name, domain, length in self._cache.pages(_PACKS, -1):
            held, spare = self._held[number], self._spare.get(number, {})
            twins = tuple(self._names[keeper] for keeper in spare)
            needed = held - sum(spare.values())
            yield PackUse(name, DomainId(domain), length, self._blobs[number], needed, held, twins)

    def hinted(self) -> list[bytes]:
        """Packs that hold something needed and are known from an index segment only."""
        query = "SELECT number, name FROM packs WHERE header IS NULL AND trouble IS NULL ORDER BY name"
        return [name for number, name in self._cache.rows(query) if self._held[number]]
