"""How much of each pack is needed: the mark laid over the blob map (FORMAT 8).

The map says what to look at; what is deleted is decided by the packs' own directories, read again for that purpose.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple

from lamella.base.ids import DomainId
from lamella.operations.shared.marking import PARTS, LiveIds
from lamella.packs.cache import Cache

# Tree notes, which no tree refers to, do not count as waste: a pack is not rewritten for their sake.
_ROWS = (
    "SELECT id, pack, sealed, iif(kind = 5 AND content <= 512, 0, sealed) FROM blobs WHERE id >= ? AND id < ?"
    " ORDER BY id"
)
_PACKS = (
    "SELECT number, name, domain, length FROM packs WHERE number > ? AND trouble IS NULL ORDER BY number LIMIT 5000"
)


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
        with cache.lock:
            last = cache.connection.execute("SELECT coalesce(max(number), 0) FROM packs").fetchone()[0]
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
        return {row[0] for row in self._cache.connection.execute(query, (low, high))}

    def _choose_keepers(self, copies: dict[bytes, list[tuple[int, int]]]) -> None:
        """Of several copies in one domain the one in the fullest pack is kept, if that pack is a twin."""
        among = {place[0] for places in copies.values() for place in places}
        domains: dict[int, bytes] = {}
        for number in among:
            with self._cache.lock:
                query = "SELECT name, domain FROM packs WHERE number = ?"
                self._names[number], domains[number] = self._cache.connection.execute(query, (number,)).fetchone()
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
        after = -1
        while True:
            with self._cache.lock:
                rows = self._cache.connection.execute(_PACKS, (after,)).fetchall()
            if not rows:
                return
            for number, name, domain, length in rows:
                held, spare = self._held[number], self._spare.get(number, {})
                needed = held - sum(spare.values())
                twins = tuple(self._names[keeper] for keeper in spare)
                yield PackUse(name, DomainId(domain), length, self._blobs[number], needed, held, twins)
            after = rows[-1][0]

    def hinted(self) -> list[bytes]:
        """Packs that hold something needed and are known from an index segment only."""
        query = "SELECT number, name FROM packs WHERE header IS NULL AND trouble IS NULL ORDER BY name"
        with self._cache.lock:
            rows = self._cache.connection.execute(query).fetchall()
        return [name for number, name in rows if self._held[number]]
