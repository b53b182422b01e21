"""Where the blobs of one repository lie: the map of packs, their contents, and what did not open.

Everything here is found out by reading the store, and can be made anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from lamella.base.errors import IntegrityError, ObjectNotFound, UnknownFormat
from lamella.base.ids import CATALOGUE, ChunkId, DomainId
from lamella.base.names import PACKS, pack_name
from lamella.base.trust import Opened
from lamella.crypto.derive import Keys
from lamella.format.container import MAX_OBJECT, Kind
from lamella.format.lost import Address
from lamella.format.records import SegmentPlace
from lamella.packs.blobmap import BlobMap
from lamella.packs.cache import Cache
from lamella.packs.containers import open_blob, open_head
from lamella.packs.contents import Contents
from lamella.packs.tree import TreeReader
from lamella.stores.base import Store

if TYPE_CHECKING:
    from lamella.packs.suspects import Suspects


class Packs:
    """The packs of one repository, as this host knows them."""

    def __init__(self, store: Store, keys: Keys, cache: Cache) -> None:
        self._store = store
        self._keys = keys
        self._cache = cache
        self.map = BlobMap(cache, keys, store)
        self.contents = Contents(store, keys, self.map, lambda: self.suspects)
        self.fresh = False
        """The map agrees with the store, as far as this process has seen the history."""

    @cached_property
    def suspects(self) -> Suspects:
        """Places at which a blob did not open, and when packs were read whole."""
        from lamella.packs.suspects import Suspects  # only where something is damaged, or verified

        return Suspects(self._cache)

    def refresh(
        self, own_packs: Iterable[bytes], reaped: Collection[bytes], bad: Collection[Address], *, expected: bool
    ) -> None:
        """Make the map agree with the store's listing, and take the `bad` addresses out of it.

        `own_packs` are packs known to be written by this host's writer, `reaped` those that a collector said it
        deleted. Raises IntegrityError if packs are `expected` and none is listed, StoreError.
        """
        listed = self.map.refresh(own_packs, reaped)
        if not listed and expected:
            raise IntegrityError("the repository lists no packs although it has snapshots", obj=PACKS)
        if bad:
            self.suspects.apply(bad, self.map)
        self.fresh = True

    def tree_reader(self, domain_id: DomainId) -> TreeReader:
        """Reads the manifests of one domain; the map must be fresh."""

        def fetch(kind: Kind, id_: ChunkId) -> Opened:
            return self.contents.get(domain_id, kind, id_)

        return TreeReader(fetch)

    def catalogue_segment(self, place: SegmentPlace) -> Opened:
        """A segment of a checkpoint: from the pack that the checkpoint names, else from wherever the map finds it.

        Raises IntegrityError, StoreError.
        """
        name = pack_name(place.pack)
        try:
            size = self._store.stat(name)
            if size > MAX_OBJECT:
                raise IntegrityError("a container of impossible size", obj=name)
            content = self._store.get(name, 0, size)
            head = open_head(self._keys, name, content)
            for blob in head.blobs if head.domain_id == CATALOGUE else ():
                if (blob.kind, blob.id) == (Kind.SEGMENT, place.id):
                    sealed = content[blob.offset : blob.offset + blob.sealed_length]
                    return open_blob(self._keys.domain(CATALOGUE), head.header, blob, sealed, name)
        except (IntegrityError, ObjectNotFound, UnknownFormat):
            pass
        self.map.refresh()
        return self.contents.get(CATALOGUE, Kind.SEGMENT, place.id)
