"""Segments of the catalogue: the older records of a long history (FORMAT 8)."""

from __future__ import annotations

from lamella.base.errors import IntegrityError, ObjectNotFound, UnknownFormat
from lamella.base.ids import CATALOGUE, ChunkId
from lamella.base.names import pack_name
from lamella.base.trust import Opened
from lamella.crypto.derive import Keys
from lamella.format.container import MAX_OBJECT, Kind
from lamella.format.records import SegmentPlace
from lamella.packs.containers import open_blob, open_head
from lamella.packs.packs import Packs
from lamella.stores.base import Store


def catalogue_segment(store: Store, keys: Keys, packs: Packs, place: SegmentPlace) -> Opened:
    """A segment of a checkpoint: from the pack that the checkpoint names, else from wherever the map finds it.

    Raises IntegrityError, StoreError.
    """
    try:
        return _in_pack(store, keys, place.id, place.pack)
    except (IntegrityError, ObjectNotFound, UnknownFormat):
        pass
    packs.map.refresh()
    return packs.contents.get(CATALOGUE, Kind.SEGMENT, place.id)


def stored_segment(store: Store, keys: Keys, packs: Packs, place: SegmentPlace) -> Opened:
    """A segment as anybody reads it now: every pack is opened by its own head as it is stored, not by what is known.

    From the pack that the checkpoint names, else from any other one that holds it, as a repair puts it. Raises
    IntegrityError, UnknownFormat, StoreError.
    """
    try:
        return _in_pack(store, keys, place.id, place.pack)
    except (IntegrityError, ObjectNotFound, UnknownFormat) as error:
        packs.map.refresh()
        for other in packs.map.find(Kind.SEGMENT, place.id):
            try:
                return _in_pack(store, keys, place.id, other.pack)
            except (IntegrityError, ObjectNotFound, UnknownFormat):
                continue
        raise error


def _in_pack(store: Store, keys: Keys, id_: ChunkId, pack: bytes) -> Opened:
    name = pack_name(pack)
    size = store.stat(name)
    if size > MAX_OBJECT:
        raise IntegrityError("a container of impossible size", obj=name)
    content = store.get(name, 0, size)
    head = open_head(keys, name, content)
    for blob in head.blobs if head.domain_id == CATALOGUE else ():
        if (blob.kind, blob.id) == (Kind.SEGMENT, id_):
            sealed = content[blob.offset : blob.offset + blob.sealed_length]
            return open_blob(keys.domain(CATALOGUE), head.header, blob, sealed, name)
    raise IntegrityError(f"segment {id_.hex()[:16]} is not in its pack", obj=name)
