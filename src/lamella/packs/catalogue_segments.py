"""Segments of the catalogue: the older records of a long history (FORMAT 8)."""

from __future__ import annotations

from lamella.base.errors import IntegrityError, ObjectNotFound, UnknownFormat
from lamella.base.ids import CATALOGUE
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
        return stored_segment(store, keys, place)
    except (IntegrityError, ObjectNotFound, UnknownFormat):
        pass
    packs.map.refresh()
    return packs.contents.get(CATALOGUE, Kind.SEGMENT, place.id)


def stored_segment(store: Store, keys: Keys, place: SegmentPlace) -> Opened:
    """A segment from the pack that the checkpoint names, as anybody reads it who knows nothing else.

    Raises IntegrityError, UnknownFormat, StoreError.
    """
    name = pack_name(place.pack)
    size = store.stat(name)
    if size > MAX_OBJECT:
        raise IntegrityError("a container of impossible size", obj=name)
    content = store.get(name, 0, size)
    head = open_head(keys, name, content)
    for blob in head.blobs if head.domain_id == CATALOGUE else ():
        if (blob.kind, blob.id) == (Kind.SEGMENT, place.id):
            sealed = content[blob.offset : blob.offset + blob.sealed_length]
            return open_blob(keys.domain(CATALOGUE), head.header, blob, sealed, name)
    raise IntegrityError(f"segment {place.id.hex()[:16]} is not in its pack", obj=name)
