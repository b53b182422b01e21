"""Reading contents by id: every known place is tried, the bad ones are remembered (FORMAT 7)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from lamella.base.errors import IntegrityError, ObjectCold, ObjectNotFound, StoreError, StoreUnavailable
from lamella.base.ids import ChunkId, DomainId
from lamella.base.names import pack_name
from lamella.base.trust import Opened
from lamella.crypto.buffers import opens_views
from lamella.crypto.chunk_id import identifier
from lamella.crypto.derive import Keys
from lamella.format.container import NODES, Kind
from lamella.format.node import DeltaChunk
from lamella.packs.blobmap import BlobMap, Place
from lamella.packs.containers import BlobOpener
from lamella.packs.reach import reinstated, require_alive
from lamella.stores.base import Store

if TYPE_CHECKING:
    from lamella.format.lost import Address
    from lamella.packs.suspects import Suspects

_GAP = 64 * 1024
_MAX_READ = 8 * 1024 * 1024


class _Misplaced(IntegrityError):
    """The blob may be sound, but not for this position."""


class Contents:
    """Opened contents of one repository. Thread-safe."""

    def __init__(
        self, store: Store, keys: Keys, blobs: BlobMap, suspects: Callable[[], Suspects] | None = None
    ) -> None:
        self._store = store
        self._keys = keys
        self._blobs = blobs
        self._suspects = suspects
        self._lock = threading.Lock()
        self._looked_for: dict[str, bool] = {}
        self.keeps_nodes = False
        """Nodes this host has seen sealed are not fetched again: for backups to distant stores, never to verify."""
        self.headless: set[bytes] = set()
        """To verify: packs whose heads do not open. What only this host remembers to lie there, no other host finds."""
        self.bad_places: list[tuple[str, str]] = []
        """Objects in which a blob could not be opened, with the reason; another place may have served."""
        self.bad: set[Address] = set()
        """Those of these places that are there and did not open for good."""

    def get(self, domain_id: DomainId, kind: Kind, id_: ChunkId, length: int | None = None) -> Opened:
        """One content. `length` is what its position implies, None where the position implies nothing.

        Raises IntegrityError if no place has it, StoreError if the store fails.
        """
        places = self._blobs.find(kind, id_)
        if isinstance(id_, DeltaChunk) and not places:
            return self._from_difference(domain_id, id_, length)
        try:
            return self._first_good(domain_id, kind, id_, places, length)
        except IntegrityError:
            if isinstance(id_, DeltaChunk):
                return self._from_difference(domain_id, id_, length)
            # An index segment may have left something out: the heads of the packs it spared us know.
            if not self._blobs.open_hinted():
                raise
            return self._first_good(domain_id, kind, id_, self._blobs.find(kind, id_), length)

    def _from_difference(self, domain_id: DomainId, id_: DeltaChunk, length: int | None) -> Opened:
        """A chunk that has no copy of its own; last of all one that did not open before."""
        from lamella.packs import deltas  # most volumes have none

        try:
            return deltas.opened(self, domain_id, id_, length)
        except IntegrityError as error:
            with suppress(IntegrityError):
                return self._first_good(domain_id, Kind.CHUNK, ChunkId(bytes(id_)), [], length)
            text = f"chunk {id_.hex()[:16]} cannot be read: it is a difference, and {error.message}"
            raise IntegrityError(text, obj=id_.hex()) from error

    def chunk_id(self, domain_id: DomainId, content: Opened) -> ChunkId:
        """The id of a chunk of this domain."""
        return identifier(self._keys.domain(domain_id), Kind.CHUNK)(content)

    def blobs_of(self, domain_id: DomainId, ids: Sequence[ChunkId]) -> Sequence[ChunkId]:
        """The chunks that these are read from: themselves, but for those that are stored as differences."""
        if not any(isinstance(id_, DeltaChunk) for id_ in ids):
            return ids
        from lamella.packs import deltas  # most volumes have none

        return deltas.blobs_of(self._blobs, domain_id, ids)

    def get_many(
        self, domain_id: DomainId, kind: Kind, wanted: Sequence[tuple[ChunkId, int | None]]
    ) -> dict[ChunkId, Opened]:
        """Several contents, fetched with few reads: neighbours in a pack are read together. A length may be None.

        Raises IntegrityError if any of them cannot be had.
        """
        return dict(self.each(domain_id, kind, wanted))

    def each(
        self, domain_id: DomainId, kind: Kind, wanted: Sequence[tuple[ChunkId, int | None]], *, identified: bool = True
    ) -> Iterator[tuple[ChunkId, Opened]]:
        """As `get_many`, but one after the other, in no order.

        Not `identified`, they are authentic, and the caller computes the ids: what a holder of the keys sealed under a
        wrong id comes through. Raises IntegrityError.
        """
        lengths = dict(wanted)
        places = self._blobs.find_many(kind, list(lengths))
        careful = dict(lengths)
        for id_, content in self._read_runs([found[0] for found in places.values()], domain_id, lengths, identified):
            del careful[id_]
            yield id_, content
        if any(isinstance(id_, DeltaChunk) for id_ in careful):
            from lamella.packs import deltas  # most volumes have none

            for id_, content in deltas.each(self, domain_id, dict(careful), identified=identified):
                del careful[id_]
                yield id_, content
        for id_, length in careful.items():
            yield id_, self.get(domain_id, kind, id_, length)

    def at_first_places(
        self, domain_id: DomainId, kind: Kind, lengths: dict[ChunkId, int | None], *, identified: bool
    ) -> dict[ChunkId, Opened]:
        """Those of these contents that open at the first place of each, fetched with few reads."""
        places = self._blobs.find_many(kind, list(lengths))
        return dict(self._read_runs([found[0] for found in places.values()], domain_id, lengths, identified))

    def _read_runs(
        self, places: list[Place], domain_id: DomainId, lengths: dict[ChunkId, int | None], identified: bool
    ) -> Iterator[tuple[ChunkId, Opened]]:
        """The contents that open at their first place; the careful way reads the others."""
        warm = (place for place in places if place.header is not None)
        for run in _runs(sorted(warm, key=lambda place: (place.pack, place.blob.offset))):
            start = run[0].blob.offset
            end = run[-1].blob.offset + run[-1].blob.sealed_length
            try:
                stored = self._store.get(pack_name(run[0].pack), start, end - start)
            except StoreError as error:
                require_alive(self._store, error)
                continue
            content = memoryview(stored) if opens_views() else stored
            opener = self._opener(run[0], identified=identified)
            for place in run:
                at = place.blob.offset - start
                sealed = content[at : at + place.blob.sealed_length]
                try:
                    _require_fit(domain_id, place, lengths[place.blob.id])
                    opened = opener.open(place.blob, sealed)
                except IntegrityError:
                    continue
                yield place.blob.id, opened

    def open_at(self, place: Place) -> Opened:
        """The content at one place and no other. Raises IntegrityError, StoreError."""
        return self._opened(place.domain_id, place, None)[0]

    def _open(self, domain_id: DomainId, place: Place, sealed: bytes, length: int | None) -> Opened:
        _require_fit(domain_id, place, length)
        return self._opener(place).open(place.blob, sealed)

    def _opener(self, place: Place, *, identified: bool = True) -> BlobOpener:
        """Opens the blobs of the pack of `place`, for its domain."""
        keys = self._keys.domain(place.domain_id)
        if place.header is None:
            raise ObjectCold("the pack must be thawed first", obj=pack_name(place.pack))
        return BlobOpener(keys, place.header, pack_name(place.pack), checks=identified)

    def _first_good(
        self, domain_id: DomainId, kind: Kind, id_: ChunkId, places: Sequence[Place], length: int | None
    ) -> Opened:
        trouble = "no pack holds it"
        cold: ObjectCold | None = None
        for place, was_bad in self._where(kind, id_, places):
            try:
                content = self._at(domain_id, place, length)
            except ObjectCold as error:
                cold = error
            except (IntegrityError, StoreError) as error:
                trouble = self._failed(place, error)
            else:
                if was_bad and self._suspects is not None:
                    self._suspects().clear(place.pack, [(kind, id_)])
                return content
        if cold is None and not places and (unknown := self._blobs.unknown_cold()):
            cold = ObjectCold("nobody knows what this pack holds before it is thawed", obj=pack_name(unknown[0]))
        if cold is not None:
            raise cold
        raise IntegrityError(f"{kind.name.lower()} {id_.hex()[:16]} cannot be read: {trouble}", obj=id_.hex())

    def _where(self, kind: Kind, id_: ChunkId, places: Sequence[Place]) -> Iterator[tuple[Place, bool]]:
        """These places, and those where it did not open before: replaced, or readable again, it may open now."""
        yield from ((place, False) for place in places)
        for place in self._suspects().places(kind, id_) if self._suspects is not None else ():
            if place.pack not in self.headless.union(one.pack for one in places):
                yield place, True

    def _at(self, domain_id: DomainId, place: Place, length: int | None) -> Opened:
        if not (self.keeps_nodes and place.blob.kind in NODES):
            return self._opened(domain_id, place, length)[0]
        kept = self._blobs.cache.node(place.pack, place.blob.offset)
        if kept is not None:
            with suppress(IntegrityError):
                return self._open(domain_id, place, kept, length)
        opened, sealed = self._opened(domain_id, place, length)
        self._blobs.cache.remember_nodes([(place.pack, place.blob.offset, sealed)])
        return opened

    def _opened(self, domain_id: DomainId, place: Place, length: int | None) -> tuple[Opened, bytes]:
        """The content at a place of the store, and its sealed bytes."""
        name = pack_name(place.pack)
        try:
            sealed = self._store.get(name, place.blob.offset, place.blob.sealed_length)
            return self._open(domain_id, place, sealed, length), sealed
        except (_Misplaced, StoreUnavailable, ObjectCold):
            raise
        except (IntegrityError, StoreError):
            if not self._reinstated(name):
                raise
            sealed = self._store.get(name, place.blob.offset, place.blob.sealed_length)
            return self._open(domain_id, place, sealed, length), sealed

    def _reinstated(self, name: str) -> bool:
        """Whether the store has found the genuine version of a pack; asked once for each, and others wait for that."""
        with self._lock:
            if name not in self._looked_for:
                self._looked_for[name] = reinstated(self._store, name)
            return self._looked_for[name]

    def _failed(self, place: Place, error: IntegrityError | StoreError) -> str:
        """Remember a place that failed, unless the store as a whole is out of reach; what to say about it."""
        from lamella.format.lost import Address  # rarely needed

        require_alive(self._store, error)
        name = pack_name(place.pack)
        for_good = not error.retryable and not isinstance(error, _Misplaced)
        with self._lock:
            self.bad_places.append((name, error.message))
            if for_good and not isinstance(error, ObjectNotFound):
                self.bad.add(Address(place.pack, place.blob.kind, place.blob.id))
        if self._suspects is not None and for_good:
            self._blobs.doubted.add(place.pack)
            self._suspects().mark(place.pack, [(place.blob.kind, place.blob.id)])
        return f"{error.message} ({name})"


def _require_fit(domain_id: DomainId, place: Place, length: int | None) -> None:
    if place.domain_id != domain_id or length not in (None, place.blob.content_length):
        name = pack_name(place.pack)
        raise _Misplaced("a blob of another domain or length than its position implies", obj=name)


def _runs(places: list[Place]) -> list[list[Place]]:
    """Cut places sorted by pack and offset into runs worth one read each."""
    runs: list[list[Place]] = []
    for place in places:
        run = runs[-1] if runs else None
        if run is not None and run[0].pack == place.pack:
            end = run[-1].blob.offset + run[-1].blob.sealed_length
            reach = place.blob.offset + place.blob.sealed_length - run[0].blob.offset
            if place.blob.offset - end <= _GAP and reach <= _MAX_READ:
                run.append(place)
                continue
        runs.append([place])
    return runs
