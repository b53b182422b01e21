"""The directories of packs whose heads must be thawed before anybody can read them (docs/decisions/0100).

A pack is deleted by its own directory, read for that purpose. Of a cold pack two others stand in for it, and have to
agree: the map, which this host made from the head when it could be read, and an index segment in the store.
"""

from __future__ import annotations

from collections.abc import Iterable

from lamella.base.errors import IntegrityError, StoreError, UnknownFormat
from lamella.base.names import pack_name
from lamella.crypto.derive import Keys
from lamella.format import segment
from lamella.format.container import Blob, directory_length
from lamella.format.segment import segment_name
from lamella.packs.blobmap import BlobMap
from lamella.packs.containers import PackHead
from lamella.packs.reach import require_alive
from lamella.packs.segments import read_segment
from lamella.stores.base import Store


def said_twice(blobs: BlobMap, store: Store, keys: Keys, packs: Iterable[bytes]) -> dict[bytes, PackHead]:
    """The heads of those of these packs that the map and an index segment know, and agree about.

    Raises StoreUnavailable.
    """
    by_segment: dict[bytes, list[bytes]] = {}
    query = "SELECT s.name FROM covered c JOIN segments s ON s.number = c.segment WHERE c.pack = ?"
    for pack in packs:
        for (name,) in blobs.cache.rows(query, (pack,)):
            by_segment.setdefault(name, []).append(pack)
    found: dict[bytes, PackHead] = {}
    for name, wanted in by_segment.items():
        said = _said(store, keys, segment_name(name))
        for pack in wanted:
            head = _known(blobs, pack)
            if head is not None and said.get(pack) == head.blobs:
                found[pack] = head
    return found


def _said(store: Store, keys: Keys, name: str) -> dict[bytes, list[Blob]]:
    """What a segment says, by pack; nothing where it does not open."""
    try:
        _, contents = read_segment(store, keys, name)
        return {row.pack: list(row.blobs) for content in contents for row in segment.decode(content, name)}
    except (IntegrityError, UnknownFormat, StoreError) as error:
        require_alive(store, error)
        return {}


def _known(blobs: BlobMap, pack: bytes) -> PackHead | None:
    """The head as this host opened it; None where the map leaves something out, or never saw the head."""
    known = blobs.directory(pack)
    if known is None or directory_length(len(known.blobs)) != known.header.directory_length:
        return None
    return PackHead(pack_name(pack), known.domain_id, known.header, known.blobs)
