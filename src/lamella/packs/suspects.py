"""Findings of this host's reading: places at which a blob did not open, and when each pack was last read whole.

Both live in the cache: losing them costs reading again. A suspect place is taken out of the blob map, so that nothing
is deduplicated against it and the next backup stores the blob anew; readers still try it when nothing else is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from lamella.base.ids import ChunkId, DomainId
from lamella.format.container import Blob, Kind
from lamella.format.lost import Address
from lamella.packs import census
from lamella.packs.blobmap import BlobMap, Place, place_of
from lamella.packs.cache import Cache

_PLACES = (
    "SELECT s.id, s.place, s.sealed, s.content, p.name, p.header, p.domain, p.own"
    " FROM suspects s JOIN packs p ON p.name = s.pack WHERE s.kind = ? AND s.id = ? AND p.header IS NOT NULL"
)


class Due(NamedTuple):
    """A pack to be read whole: its hash, its length, and when it was last found sound (0: never by this host)."""

    pack: bytes
    length: int
    time_ms: int


class Suspects:
    """The suspect places and proved packs of one repository. Thread-safe."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    # -- suspect places -----------------------------------------------------------------------------------------------

    def mark(self, pack: bytes, blobs: Iterable[tuple[Kind, ChunkId]]) -> None:
        """These blobs do not open in that pack: take the places out of the map."""
        names = list(blobs)
        move = (
            "INSERT OR IGNORE INTO suspects SELECT b.id, b.kind, p.name, b.place, b.sealed, b.content"
            " FROM blobs b JOIN packs p ON p.number = b.pack WHERE p.name = ? AND b.kind = ? AND b.id = ?"
        )
        remove = "DELETE FROM blobs WHERE pack = (SELECT number FROM packs WHERE name = ?) AND kind = ? AND id = ?"
        rows = [(pack, kind, id_) for kind, id_ in names]
        with self._cache.change() as connection:
            connection.executemany(move, rows)
            gone = connection.executemany(remove, rows).rowcount
            connection.execute("DELETE FROM proved WHERE pack = ?", (pack,))
            if gone:
                connection.execute("DELETE FROM complete")

    def clear(self, pack: bytes, blobs: Iterable[tuple[Kind, ChunkId]] | None = None) -> None:
        """These blobs (None: all) open in that pack after all: put the places back into the map."""
        which = "" if blobs is None else " AND s.kind = ? AND s.id = ?"
        rows: list[tuple[bytes | int, ...]] = [(pack,)]
        if blobs is not None:
            rows = [(pack, kind, id_) for kind, id_ in blobs]
        back = (
            "INSERT OR IGNORE INTO blobs SELECT s.id, s.kind, p.number, s.place, s.sealed, s.content"
            f" FROM suspects s JOIN packs p ON p.name = s.pack WHERE s.pack = ?{which}"
        )
        with self._cache.change() as connection:
            connection.executemany(back, rows)
            connection.executemany(f"DELETE FROM suspects AS s WHERE s.pack = ?{which}", rows)

    def apply(self, addresses: Iterable[Address], blobs: BlobMap) -> None:
        """Take what verifications published as bad out of the map, each address once: it comes back when it is read.

        A pack that is gone, or whose head does not open, has its turn when it is there. Raises StoreUnavailable.
        """
        done = set(self._cache.rows("SELECT pack, kind, id FROM applied"))
        packs: dict[bytes, list[Address]] = {}
        for one in addresses:
            if (one.pack, one.kind, one.id) not in done:
                packs.setdefault(one.pack, []).append(one)
        there = census.known(blobs, packs)
        packs = {pack: ones for pack, ones in packs.items() if pack in there}
        if packs:
            blobs.open_hinted(packs)  # all at once; opened later, they would put their places back into the map
        for pack, ones in packs.items():
            directory = blobs.directory(pack)
            if directory is None:
                continue
            whole = any(one.kind == Kind.DIRECTORY for one in ones)
            self.mark(pack, [(one.kind, one.id) for one in (directory.blobs if whole else ones)])
            with self._cache.change() as connection:
                connection.executemany("INSERT OR IGNORE INTO applied VALUES (?, ?, ?)", ones)

    def places(self, kind: Kind, id_: ChunkId) -> list[Place]:
        """Where a blob should lie but did not open when it was last read."""
        rows = self._cache.rows(_PLACES, (kind, id_))
        return [place_of(kind, row) for row in rows]

    def blobs(self, pack: bytes) -> list[Blob]:
        """The suspect blobs of a pack."""
        query = "SELECT kind, id, place, sealed, content FROM suspects WHERE pack = ? ORDER BY place"
        rows = self._cache.rows(query, (pack,))
        return [Blob(Kind(kind), ChunkId(id_), place, sealed, content) for kind, id_, place, sealed, content in rows]

    def packs(self) -> list[bytes]:
        """Packs that are listed and have suspect places."""
        query = "SELECT DISTINCT s.pack FROM suspects s JOIN packs p ON p.name = s.pack ORDER BY s.pack"
        return [row[0] for row in self._cache.rows(query)]

    # -- proved packs -------------------------------------------------------------------------------------------------

    def prove(self, packs: Sequence[bytes], time_ms: int) -> None:
        """These packs were read to the last byte and are sound."""
        with self._cache.change() as connection:
            connection.executemany("INSERT OR REPLACE INTO proved VALUES (?, ?)", ((pack, time_ms) for pack in packs))

    def due(self, domains: set[DomainId] | None, before_ms: int) -> Iterator[Due]:
        """The packs of these domains (None: all) not proved since `before_ms`, the longest unread first.

        A time after `before_ms` is one that a wrong clock left: it counts as never.
        """
        among = "" if domains is None else f" AND p.domain IN ({','.join('?' * len(domains))})"
        query = (
            "SELECT p.number, p.name, p.length, iif(c.time <= ?, c.time, 0) AS since FROM packs p"
            " LEFT JOIN proved c ON c.pack = p.name WHERE p.trouble IS NULL AND since < ?"
            f" AND (since, p.number) > (?, ?){among} ORDER BY since, p.number LIMIT 1000"
        )
        last = (-1, -1)
        while True:
            with self._cache.lock:
                parameters = (before_ms, before_ms, *last, *sorted(domains or ()))
                rows = self._cache.connection.execute(query, parameters).fetchall()
            if not rows:
                return
            yield from (Due(name, length, since) for _, name, length, since in rows)
            last = (rows[-1][3], rows[-1][0])
