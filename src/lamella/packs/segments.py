"""Reading and writing index segments (docs/FORMAT.md 11).

A segment lets a machine without a cache learn from a few objects which packs hold what. It is a hint: its rows enter
the map without a header, and the map opens a pack's own head before it gives out any place there. A lost, stale or
hostile segment therefore costs time, never data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

from lamella.base.errors import IntegrityError, ObjectNotFound, StoreError, UnknownFormat
from lamella.base.ids import ChunkId, DomainId
from lamella.base.trust import Opened
from lamella.crypto.derive import Keys
from lamella.format import segment
from lamella.format.container import FIRST_READ, MAX_OBJECT, Blob, Kind, decode_header, directory_length, object_length
from lamella.format.segment import PREFIX, Covered, segment_hash, segment_name
from lamella.packs.building import build_single
from lamella.packs.cache import Cache
from lamella.packs.containers import open_whole
from lamella.packs.reach import require_alive
from lamella.run.pipeline import default_workers, ordered_map
from lamella.stores.base import Entry, Store

MOST_WRITTEN = 16
"""Segments one run writes for one domain: at most 128 MiB beside its own work."""
_PACKS_A_SEGMENT = 16
_FEWEST_SEGMENTS = 8

Contents = tuple[DomainId, list[Opened]]


class Segments:
    """The index segments of one repository and what the cache remembers of them."""

    def __init__(self, cache: Cache, keys: Keys, store: Store) -> None:
        self._cache = cache
        self._keys = keys
        self._store = store

    # -- reading ------------------------------------------------------------------------------------------------------

    def enter_hints(self, new_packs: int) -> None:
        """Enter what segments say of packs that are listed and not in the map. Raises StoreUnavailable.

        No more is read than the heads of `new_packs` packs would cost. The table `listed` holds the store's listing.
        """
        self._read(self._list(), budget=new_packs)

    def _list(self) -> list[Entry]:
        """The segments there are, without those that cannot be one; forgets those that are gone."""
        entries = [entry for entry in self._store.list(PREFIX) if segment_hash(entry.name) and entry.size <= MAX_OBJECT]
        names = {segment_hash(entry.name) for entry in entries}
        with self._cache.change() as connection:
            known = connection.execute("SELECT number, name FROM segments").fetchall()
            gone = [(number,) for number, name in known if name not in names]
            connection.executemany("DELETE FROM covered WHERE segment = ?", gone)
            connection.executemany("DELETE FROM segments WHERE number = ?", gone)
        return entries

    def _read(self, entries: Sequence[Entry], budget: int) -> None:
        wanted: list[Entry] = []
        left = budget * FIRST_READ
        # Large ones first: they say most for one request.
        for entry in sorted(entries, key=lambda entry: (-entry.size, entry.name)):
            left -= entry.size
            if left >= 0 and len(wanted) < max(_FEWEST_SEGMENTS, budget // _PACKS_A_SEGMENT):
                wanted.append(entry)
        for entry, contents in ordered_map(self._opened, wanted, workers=default_workers()):
            if contents is not None:
                self._enter(entry, *contents)

    def _opened(self, entry: Entry) -> tuple[Entry, Contents | None]:
        try:
            return entry, read_segment(self._store, self._keys, entry.name)
        except ObjectNotFound:
            return entry, None
        except (IntegrityError, UnknownFormat, StoreError) as error:
            require_alive(self._store, error)
            return entry, None

    def _enter(self, entry: Entry, domain_id: DomainId, contents: list[Opened]) -> None:
        """Enter the rows of one segment; of a malformed one, those before the fault."""
        with self._cache.change() as connection:
            connection.execute("BEGIN IMMEDIATE")
            number = self._remember(entry.name)
            named = 0
            for content in contents:
                try:
                    for row in segment.decode(content, entry.name):
                        self._enter_pack(number, domain_id, row)
                        named += 1
                except (IntegrityError, UnknownFormat):
                    continue
            connection.execute("UPDATE segments SET packs = ? WHERE number = ?", (named, number))

    def _remember(self, name: str, packs: int = 0) -> int:
        connection = self._cache.connection
        sha256 = segment_hash(name)
        connection.execute("INSERT OR IGNORE INTO segments (name, packs) VALUES (?, ?)", (sha256, packs))
        return int(connection.execute("SELECT number FROM segments WHERE name = ?", (sha256,)).fetchone()[0])

    def _enter_pack(self, number: int, domain_id: DomainId, row: Covered) -> None:
        """Only a pack that is there, and as long as the segment says, is worth a hint."""
        connection = self._cache.connection
        length = object_length(row.blobs)
        listed = connection.execute("SELECT 1 FROM listed WHERE name = ? AND size = ?", (row.pack, length)).fetchone()
        if listed is None:
            return
        connection.execute("INSERT OR IGNORE INTO covered VALUES (?, ?)", (row.pack, number))
        known = connection.execute("SELECT 1 FROM packs WHERE name = ?", (row.pack,)).fetchone()
        if known is None:
            values = (row.pack, domain_id, length)
            cursor = connection.execute("INSERT INTO packs (name, domain, length, own) VALUES (?, ?, ?, 0)", values)
            pack = cursor.lastrowid
            rows = ((b.id, b.kind, pack, b.offset, b.sealed_length, b.content_length) for b in row.blobs)
            connection.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?, ?, ?)", rows)

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, lacking: Callable[[], list[DomainId]]) -> int:
        """Write segments for the domains that are `lacking` them; returns the bytes put. Raises StoreError.

        Only packs whose head this host opened are named.
        """
        # Others may have written some since: what they cover needs no second one.
        known = self._known()
        self._read([one for one in self._list() if segment_hash(one.name) not in known], budget=1 << 20)
        return sum(self._write(domain_id) for domain_id in lacking())

    def _known(self) -> set[bytes]:
        return {row[0] for row in self._cache.rows("SELECT name FROM segments")}

    def _write(self, domain_id: DomainId) -> int:
        stored = 0
        for rows in self._full(domain_id):
            content = segment.encode(rows)
            sealed, _ = build_single(self._keys, domain_id, [(Kind.INDEX, content)])
            sha256 = hashlib.sha256(sealed).digest()
            self._store.put(segment_name(sha256), sealed)
            stored += len(sealed)
            with self._cache.change() as connection:
                number = self._remember(segment_name(sha256), len(rows))
                connection.executemany(
                    "INSERT OR IGNORE INTO covered VALUES (?, ?)", ((row.pack, number) for row in rows)
                )
        return stored

    def drop_stale(self) -> int:
        """Delete the segments known here most of whose packs are gone or named elsewhere; returns how many.

        What names a few packs that are gone does no harm, and saves requests for the rest. Raises StoreError.
        """
        query = (
            "SELECT s.number, s.name FROM segments s WHERE 2 * (SELECT COUNT(*) FROM covered c"
            " JOIN packs p ON p.name = c.pack WHERE c.segment = s.number) < s.packs ORDER BY s.number"
        )
        stale = self._cache.rows(query)
        for _, sha256 in stale:
            self._store.delete(segment_name(sha256))
        with self._cache.change() as connection:
            connection.executemany("DELETE FROM covered WHERE segment = ?", ((number,) for number, _ in stale))
            connection.executemany("DELETE FROM segments WHERE number = ?", ((number,) for number, _ in stale))
        return len(stale)

    def _full(self, domain_id: DomainId) -> Iterator[list[Covered]]:
        """The domain's packs without a segment, in portions that make one each."""
        rows: list[Covered] = []
        size = made = 0
        for row in self._uncovered(domain_id):
            more = segment.row_size(len(row.blobs))
            if rows and not segment.fits(size + more, len(rows) + 1):
                yield rows
                rows, size, made = [], 0, made + 1
                if made == MOST_WRITTEN:
                    return
            rows.append(row)
            size += more
        if rows:
            yield rows

    def _uncovered(self, domain_id: DomainId) -> Iterator[Covered]:
        query = (
            "SELECT p.name, p.number, p.header FROM packs p LEFT JOIN covered c ON c.pack = p.name"
            " WHERE p.name > ? AND p.domain = ? AND p.header IS NOT NULL AND c.pack IS NULL ORDER BY p.name LIMIT 1000"
        )
        for name, number, header in self._cache.pages(query, b"", domain_id):
            blobs = self._blobs(number)
            # Not a pack that was forgotten meanwhile, or of which the map leaves something out.
            if directory_length(len(blobs)) == decode_header(header, name.hex()).directory_length:
                yield Covered(name, blobs)

    def _blobs(self, number: int) -> list[Blob]:
        query = "SELECT kind, id, place, sealed, content FROM blobs WHERE pack = ? ORDER BY place"
        rows = self._cache.rows(query, (number,))
        return [Blob(Kind(kind), ChunkId(id_), place, sealed, content) for kind, id_, place, sealed, content in rows]


def read_segment(store: Store, keys: Keys, name: str) -> Contents:
    """The domain and the contents of a segment, authenticated, not yet decoded. Raises IntegrityError, StoreError."""
    content = store.get(name)
    if hashlib.sha256(content).digest() != segment_hash(name):
        raise IntegrityError("does not match its name", obj=name)
    head, opened = open_whole(keys, name, content)
    if any(blob.kind != Kind.INDEX for blob in head.blobs):
        raise IntegrityError("an index segment made of the wrong kinds", obj=name)
    return head.domain_id, opened


def packs_named(store: Store, keys: Keys, name: str) -> set[bytes]:
    """The packs that a segment names: once one of them is deleted, so should the segment be.

    Empty for one that does not open. Raises StoreError.
    """
    try:
        _, contents = read_segment(store, keys, name)
        return {row.pack for content in contents for row in segment.decode(content, name)}
    except (IntegrityError, UnknownFormat):
        return set()
