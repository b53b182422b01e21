"""Where the blobs of one repository lie: the map of packs, their contents, and what did not open.

Everything here is found out by reading the store, and can be made again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from lamella.base.errors import IntegrityError
from lamella.base.ids import ChunkId, DomainId
from lamella.base.names import PACKS
from lamella.base.trust import Opened
from lamella.crypto.derive import Keys
from lamella.format.container import Kind
from lamella.packs.blobmap import BlobMap
from lamella.packs.cache import Cache
from lamella.packs.contents import Contents
from lamella.packs.tree import TreeReader
from lamella.stores.base import Store

if TYPE_CHECKING:
    from lamella.format.lost import Address
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
