"""Where blobs lie: the host's map from ids to places in packs, rebuilt from the directories of packs (FORMAT 7).

The map is a cache. `refresh` makes it agree with what the store lists: heads of new packs are read, packs that are
gone are forgotten together with every statement that a tree was complete, so that the next backup looks for what was
lost.

Where many packs are new, index segments spare reading all their heads at once (lamella.packs.segments). Rows from
there are hints: their pack has no header yet. Before any place in such a pack is given out, its own head is opened, and
what that says takes the place of the hint.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from lamella.base.errors import ObjectCold
from lamella.base.ids import ChunkId, DomainId
from lamella.base.names import PACKS, pack_hash, pack_name
from lamella.crypto.derive import Keys
from lamella.format.container import Blob, Header, Kind, decode_header, object_length
from lamella.packs.cache import Cache
from lamella.packs.containers import PackHead
from lamella.stores.base import Entry, Store

if TYPE_CHECKING:
    from lamella.packs.segments import Segments

WORTH_WRITING = 256
"""More packs of a domain than this without a segment make a run write one."""
WORTH_READING = 64
"""With fewer new packs than this their heads are read at once, without index segments."""
_FOR_COLD = 1 << 16
"""As if so many packs were new: where heads cannot be read, all segments are worth reading."""
Row = tuple[bytes, int, int, int, bytes, bytes | None, bytes, int]
_HINTED = "header IS NULL AND trouble IS NULL"
_LOOKUP = (
    "SELECT b.id, b.place, b.sealed, b.content, p.name, p.header, p.domain, p.own"
    " FROM blobs b JOIN packs p ON p.number = b.pack WHERE b.kind = ? AND b.id IN ({}) ORDER BY p.own DESC, p.number"
)


@dataclass(frozen=True, slots=True)
class Place:
    """One copy of a blob: its pack, and what is needed to open it there."""

    pack: bytes
    header: Header | None
    """None: an index segment names the pack, and its head cannot be read before the pack is thawed. The blob is
    probably there, and nothing new may rely on that.
    """
    domain_id: DomainId
    blob: Blob
    own: bool
    """The pack was written by this host's writer: it may be deduplicated against unseen (FORMAT 13.3 of the design)."""


@dataclass(frozen=True, slots=True)
class Directory:
    """The map's entry of one pack."""

    domain_id: DomainId
    header: Header
    blobs: list[Blob]
    length: int


class BlobMap:
    """The map of one repository. Thread-safe."""

    def __init__(self, cache: Cache, keys: Keys, store: Store) -> None:
        self.cache = cache
        self._keys = keys
        self._store = store
        self.vanished = 0
        """Packs that were known and then not listed any more, counted since the start of this process."""
        self.condemned: frozenset[bytes] = frozenset()
        """Packs that nothing new may rely on (lamella.history.condemned)."""
        self.doubted: set[bytes] = set()
        """Packs in which something does not open: what else lies in them is relied on only after it was read."""
        self.relied: set[bytes] = set()
        """Packs in which something to be stored was found and therefore not stored again."""
        self.cold: dict[bytes, int] = {}
        """Packs whose heads could not be read because they must be thawed first, with their lengths."""
        cache.row("CREATE TEMP TABLE IF NOT EXISTS listed (name BLOB PRIMARY KEY, size INTEGER) WITHOUT ROWID")

    # -- agreeing with the store --------------------------------------------------------------------------------------

    def refresh(self, own_packs: Iterable[bytes] = (), reaped: Collection[bytes] = ()) -> int:
        """Agree with the store's listing; returns the number of packs listed.

        `own_packs` are packs known to be written by this host's writer, `reaped` those that a collector said it
        deleted: trees stay complete without them. Raises StoreError.
        """
        listed = 0
        self.cold.clear()
        with self.cache.change() as connection:
            connection.execute("DELETE FROM listed")
            for rows in _batches(self._listing()):
                listed += len(rows)
                connection.executemany("INSERT OR REPLACE INTO listed VALUES (?, ?)", rows)
            self._forget_missing(reaped)
            new = connection.execute(
                "SELECT COUNT(*) FROM listed l LEFT JOIN packs p ON p.name = l.name WHERE p.name IS NULL"
            ).fetchone()[0]
        if new >= WORTH_READING:
            self._segments().enter_hints(new)
        self._read_new_heads()
        if self.unknown_cold():
            self._segments().enter_hints(_FOR_COLD)  # what no head says for now
        self.mark_own(own_packs)
        self.doubted.update(pack for (pack,) in self.cache.rows("SELECT DISTINCT pack FROM suspects"))
        return listed

    def _listing(self) -> Iterator[tuple[bytes, int]]:
        for entry in self._store.list(PACKS):
            sha256 = pack_hash(entry.name)
            if sha256 is not None:
                yield sha256, entry.size

    def _forget_missing(self, reaped: Collection[bytes]) -> None:
        connection = self.cache.connection
        # What did not open may open now: repaired, or readable again.
        connection.execute("DELETE FROM packs WHERE trouble IS NOT NULL")
        # A changed size means that the object is not the one whose head was read: forget it, too.
        gone = connection.execute(
            "SELECT p.number, p.name FROM packs p LEFT JOIN listed l ON p.name = l.name AND p.length = l.size"
            " WHERE l.name IS NULL"
        ).fetchall()
        if any(name not in reaped for _, name in gone):
            connection.execute("DELETE FROM complete")
        self.vanished += len(gone)
        numbers = [(number,) for number, _ in gone]
        connection.executemany("DELETE FROM blobs WHERE pack = ?", numbers)
        connection.executemany("DELETE FROM packs WHERE number = ?", numbers)

    def _read_new_heads(self) -> None:
        query = (
            "SELECT l.name, l.size FROM listed l LEFT JOIN packs p ON p.name = l.name"
            " WHERE p.name IS NULL AND l.name > ? ORDER BY l.name LIMIT 5000"
        )
        after = b""
        while True:
            rows = self.cache.rows(query, (after,))
            if not rows:
                return
            self._read_heads(rows)
            after = rows[-1][0]

    def _read_heads(self, rows: Sequence[tuple[bytes, int]]) -> None:
        from lamella.packs.heads import read_heads  # what this host wrote it knows

        for sha256, size, head in read_heads(self._store, self._keys, rows):
            if isinstance(head, ObjectCold):
                self.cold[sha256] = size
                continue
            own = self._drop_hint(sha256)
            if isinstance(head, PackHead):
                self._insert(sha256, head.domain_id, head.header, head.blobs, own=own)
            elif head is not None:
                with self.cache.change() as connection:
                    row = (sha256, size, own, head)
                    connection.execute(
                        "INSERT OR IGNORE INTO packs (name, length, own, trouble) VALUES (?, ?, ?, ?)", row
                    )

    def _drop_hint(self, sha256: bytes) -> bool:
        """Forget what a segment said of a pack whose head was looked at; returns whether it is an own pack."""
        with self.cache.change() as connection:
            query = f"SELECT number, own FROM packs WHERE name = ? AND {_HINTED}"
            row = connection.execute(query, (sha256,)).fetchone()
            if row is None:
                return False
            connection.execute("DELETE FROM blobs WHERE pack = ?", (row[0],))
            connection.execute("DELETE FROM packs WHERE number = ?", (row[0],))
        return bool(row[1])

    def open_hinted(self, packs: Iterable[bytes] | None = None) -> int:
        """Open the heads of the packs that are known from segments only, of these or of all; returns how many.

        Raises StoreUnavailable.
        """
        query = f"SELECT name, length FROM packs WHERE {_HINTED}"
        if packs is None:
            rows = self.cache.rows(f"{query} ORDER BY name")
        else:
            rows = [row for name in packs for row in self.cache.rows(f"{query} AND name = ?", (name,))]
        if self.cold:
            rows = [row for row in rows if row[0] not in self.cold]
        if rows:
            self._read_heads(rows)
        return len(rows)

    def _segments(self) -> Segments:
        from lamella.packs.segments import Segments  # only where many packs are new

        return Segments(self.cache, self._keys, self._store)

    def write_segments(self) -> int:
        """Write index segments if many packs have none, or where packs become cold; returns the bytes put.

        Raises StoreError.
        """
        return self._segments().write(self._lacking) if self._lacking() else 0

    def _lacking(self) -> list[DomainId]:
        query = (
            "SELECT p.domain FROM packs p LEFT JOIN covered c ON c.pack = p.name"
            " WHERE p.header IS NOT NULL AND c.pack IS NULL GROUP BY p.domain HAVING COUNT(*) > ? ORDER BY p.domain"
        )
        # A machine without a cache cannot ask a cold pack what it holds.
        fewest = 0 if self._store.abilities.cold_from else WORTH_WRITING
        rows = self.cache.rows(query, (fewest,))
        return [DomainId(row[0]) for row in rows]

    def drop_stale_segments(self) -> int:
        """Delete index segments most of whose packs are gone; returns how many. Raises StoreError."""
        return self._segments().drop_stale()

    def unknown_cold(self) -> list[bytes]:
        """Packs of which nothing is known before they are thawed: neither a head nor an index segment says it."""
        query = "SELECT 1 FROM packs WHERE name = ?"
        return [pack for pack in self.cold if self.cache.row(query, (pack,)) is None]

    def mark_own(self, packs: Iterable[bytes]) -> None:
        """Remember that these packs were written by this host's writer."""
        with self.cache.change() as connection:
            others = connection.execute("SELECT 1 FROM packs WHERE own = 0 LIMIT 1").fetchone()
            if others is None:
                return
            connection.executemany("UPDATE packs SET own = 1 WHERE name = ? AND own = 0", ((pack,) for pack in packs))

    def add(self, sha256: bytes, domain_id: DomainId, header: Header, blobs: Sequence[Blob]) -> None:
        """Enter a pack this process has just written."""
        self._insert(sha256, domain_id, header, blobs, own=True)

    def _insert(self, sha256: bytes, domain_id: DomainId, header: Header, blobs: Sequence[Blob], *, own: bool) -> None:
        with self.cache.change() as connection:
            # The write lock first: two processes may have read the same new head.
            connection.execute("BEGIN IMMEDIATE")
            known = connection.execute("SELECT number FROM packs WHERE name = ?", (sha256,)).fetchone()
            if known is not None:
                return
            row = (sha256, domain_id, header.encode(), object_length(blobs), own)
            cursor = connection.execute(
                "INSERT INTO packs (name, domain, header, length, own) VALUES (?, ?, ?, ?, ?)", row
            )
            connection.executemany(
                "INSERT INTO blobs VALUES (?, ?, ?, ?, ?, ?)",
                ((b.id, b.kind, cursor.lastrowid, b.offset, b.sealed_length, b.content_length) for b in blobs),
            )

    # -- asking -------------------------------------------------------------------------------------------------------

    def empty(self, domain_id: DomainId) -> bool:
        """Whether no pack of the domain is known."""
        query = "SELECT 1 FROM packs WHERE domain = ? LIMIT 1"
        return self.cache.row(query, (domain_id,)) is None

    def find(self, kind: Kind, id_: ChunkId) -> list[Place]:
        """All known places of a blob, own packs first."""
        return self.find_many(kind, [id_]).get(id_, [])

    def find_many(self, kind: Kind, ids: Sequence[ChunkId]) -> dict[ChunkId, list[Place]]:
        """The places of several blobs at once (up to some hundreds): own packs first, cold ones without a head last."""
        rows = self._look_up(kind, ids)
        hinted = {row[4] for row in rows if row[5] is None}
        if hinted:
            self.open_hinted(sorted(hinted))
            rows = [row for row in self._look_up(kind, ids) if row[5] is not None or row[4] in self.cold]
        found: dict[ChunkId, list[Place]] = {}
        for row in rows:
            found.setdefault(ChunkId(row[0]), []).append(place_of(kind, row))
        if self.cold:
            found = {id_: sorted(ones, key=lambda one: one.header is None) for id_, ones in found.items()}
        return found

    def _look_up(self, kind: Kind, ids: Sequence[ChunkId]) -> list[Row]:
        query = _LOOKUP.format(",".join("?" * len(ids)))
        return self.cache.rows(query, (kind, *ids))

    def reusable(self, kind: Kind, id_: ChunkId) -> list[Place]:
        """The places of a blob that something new may rely on, own packs first; doubted ones are as another's."""
        places = [replace(one, own=one.own and one.pack not in self.doubted) for one in self.find(kind, id_)]
        return [place for place in places if place.header is not None and place.pack not in self.condemned]

    def has(self, kind: Kind, id_: ChunkId) -> bool:
        """Whether any place of a blob is known."""
        query = "SELECT p.header FROM blobs b JOIN packs p ON p.number = b.pack WHERE b.id = ? AND b.kind = ? LIMIT 1"
        row = self.cache.row(query, (id_, kind))
        return row is not None and (row[0] is not None or bool(self.find(kind, id_)))

    def packs(self, domain_id: DomainId | None = None) -> Iterator[Entry]:
        """Packs whose head opened, with their size; of one domain or all. Opens those known from segments only."""
        self.open_hinted()
        query = (
            "SELECT number, name, length FROM packs WHERE number > ? AND header IS NOT NULL"
            " AND (? IS NULL OR domain = ?) ORDER BY number LIMIT 5000"
        )
        for _, name, length in self.cache.pages(query, -1, domain_id, domain_id):
            yield Entry(pack_name(name), length)

    def directory(self, sha256: bytes) -> Directory | None:
        """The directory of a pack as its head says it; None for unknown or troubled packs."""
        self.open_hinted([sha256])
        with self.cache.lock:
            query = "SELECT number, domain, header, length FROM packs WHERE name = ? AND header IS NOT NULL"
            row = self.cache.connection.execute(query, (sha256,)).fetchone()
            if row is None:
                return None
            query = "SELECT kind, id, place, sealed, content FROM blobs WHERE pack = ? ORDER BY place"
            rows = self.cache.connection.execute(query, (row[0],)).fetchall()
        blobs = [Blob(Kind(kind), ChunkId(id_), place, sealed, content) for kind, id_, place, sealed, content in rows]
        return Directory(DomainId(row[1]), _header(row[2]), blobs, row[3])

    def length(self, sha256: bytes) -> int | None:
        """The length of a pack whose head opened, None for others."""
        self.open_hinted([sha256])
        query = "SELECT length FROM packs WHERE name = ? AND trouble IS NULL"
        row = self.cache.row(query, (sha256,))
        return None if row is None else int(row[0])

    # -- what is known to be complete ---------------------------------------------------------------------------------

    def complete(self, root: ChunkId) -> bool:
        """Whether every blob below this root had a place when last looked, and no pack was lost since."""
        query = "SELECT 1 FROM complete WHERE root = ?"
        return self.cache.row(query, (root,)) is not None

    def set_complete(self, roots: Iterable[ChunkId]) -> None:
        """Remember that every blob below these roots has a place: not where a cold pack's head could not be read."""
        if self.cold:
            return
        with self.cache.change() as connection:
            connection.executemany("INSERT OR IGNORE INTO complete VALUES (?)", ((root,) for root in roots))


def place_of(kind: Kind, row: Row) -> Place:
    """A place from its columns: id, offset, sealed and content length, pack, header, domain, own."""
    id_, offset, sealed, content, name, header, domain_id, own = row
    blob = Blob(kind, ChunkId(id_), offset, sealed, content)
    return Place(name, None if header is None else _header(header), DomainId(domain_id), blob, bool(own))


@lru_cache(maxsize=256)
def _header(encoded: bytes) -> Header:
    return decode_header(encoded, "a cached header")


def _batches(rows: Iterator[tuple[bytes, int]], size: int = 1000) -> Iterator[list[tuple[bytes, int]]]:
    batch: list[tuple[bytes, int]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
