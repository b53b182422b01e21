"""Figures of all packs together, from the map: for sizes, verifying, pruning and repairing."""

from __future__ import annotations

from collections.abc import Iterable

from lamella.base.ids import ChunkId, DomainId
from lamella.base.names import pack_name
from lamella.format.container import Kind
from lamella.packs.blobmap import BlobMap


def domains(blobs: BlobMap) -> set[DomainId]:
    """Every domain that has a pack whose head opened, or that an index segment names."""
    rows = blobs.cache.rows("SELECT DISTINCT domain FROM packs WHERE trouble IS NULL")
    return {DomainId(domain) for (domain,) in rows}


def small_documents(blobs: BlobMap, longest: int) -> list[tuple[DomainId, ChunkId]]:
    """Documents and tree notes of at most `longest` bytes: domain and id."""
    query = (
        "SELECT DISTINCT p.domain, b.id FROM blobs b JOIN packs p ON p.number = b.pack"
        " WHERE b.kind = ? AND b.content <= ? ORDER BY p.domain, b.id"
    )
    rows = blobs.cache.rows(query, (Kind.DOCUMENT, longest))
    return [(DomainId(domain), ChunkId(id_)) for domain, id_ in rows]


def total_length(blobs: BlobMap, domains: set[DomainId] | None = None) -> int:
    """Bytes of the packs whose head opened; of these domains or all."""
    among = "" if domains is None else f" AND domain IN ({','.join('?' * len(domains))})"
    query = f"SELECT coalesce(sum(length), 0) FROM packs WHERE trouble IS NULL{among}"
    return int(blobs.cache.row(query, tuple(sorted(domains or ())))[0])


def stored(blobs: BlobMap, domain_id: DomainId, first: int) -> list[tuple[ChunkId, int, int]]:
    """A domain's blobs whose id begins with the byte `first`, by id: id, a number for the pack, sealed length."""
    query = (
        "SELECT b.id, b.pack, b.sealed FROM blobs b JOIN packs p ON p.number = b.pack"
        " WHERE b.id >= ? AND b.id < ? AND p.domain = ? ORDER BY b.id"
    )
    low, high = bytes([first]), bytes([first + 1]) if first < 255 else b"\xff" * 25
    rows = blobs.cache.rows(query, (low, high, domain_id))
    return [(ChunkId(id_), pack, sealed) for id_, pack, sealed in rows]


def bytes_of(blobs: BlobMap, packs: Iterable[int]) -> int:
    """The size of packs by the numbers that `stored` gives."""
    query = "SELECT length FROM packs WHERE number = ?"
    return sum(int(blobs.cache.row(query, (pack,))[0]) for pack in packs)


def troubled(blobs: BlobMap) -> list[tuple[str, str]]:
    """Packs whose head does not open: object name and reason. Opens those known from segments only."""
    blobs.open_hinted()
    query = "SELECT name, trouble FROM packs WHERE trouble IS NOT NULL ORDER BY name"
    rows = blobs.cache.rows(query)
    return [(pack_name(name), trouble) for name, trouble in rows]


def covered(blobs: BlobMap, packs: Iterable[bytes]) -> set[bytes]:
    """Those of these packs that index segments name, as far as this host has read the segments."""
    query = "SELECT pack FROM covered WHERE pack = ?"
    return {row[0] for pack in set(packs) for row in blobs.cache.rows(query, (pack,))}


def known(blobs: BlobMap, packs: Iterable[bytes]) -> set[bytes]:
    """Those of these packs that are listed, whether their head opened or not."""
    query = "SELECT name FROM packs WHERE name = ?"
    return {row[0] for pack in set(packs) for row in blobs.cache.rows(query, (pack,))}


def keep_complete(blobs: BlobMap, roots: Iterable[ChunkId]) -> None:
    """Forget that any other tree was complete."""
    with blobs.cache.change() as connection:
        connection.execute("CREATE TEMP TABLE IF NOT EXISTS kept (root BLOB PRIMARY KEY) WITHOUT ROWID")
        connection.execute("DELETE FROM kept")
        connection.executemany("INSERT OR IGNORE INTO kept VALUES (?)", ((root,) for root in roots))
        connection.execute("DELETE FROM complete WHERE root NOT IN kept")


def forget(blobs: BlobMap, packs: Iterable[bytes]) -> None:
    """These packs were deleted because nothing that stands needs them: trees that were complete still are."""
    with blobs.cache.change() as connection:
        for pack in packs:
            connection.execute("DELETE FROM blobs WHERE pack = (SELECT number FROM packs WHERE name = ?)", (pack,))
            connection.execute("DELETE FROM packs WHERE name = ?", (pack,))
