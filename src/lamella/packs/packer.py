"""Writing blobs of one domain into packs (FORMAT 4, at most once; FORMAT 5).

A blob is reserved in the open pack under the packer's lock, sealed outside it, and appended under it again. Data goes
into packs as it comes; nodes are collected and join the last data pack, so that a small run makes one pack.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from lamella.base.ids import ChunkId, DomainId
from lamella.base.names import pack_name
from lamella.base.trust import Sealed
from lamella.crypto.chunk_id import identifier
from lamella.crypto.derive import Keys
from lamella.crypto.seal import PackSealer, new_salt
from lamella.format.container import MAX_BLOBS, NODES, Blob, Header, Kind, aligned
from lamella.packs.blobmap import BlobMap
from lamella.packs.building import SealedBlob, build, raw_body
from lamella.run.pipeline import Outbox
from lamella.stores.base import Store

INCREMENTAL_TARGET = 8 * 1024 * 1024
BULK_TARGET = 16 * 1024 * 1024
"""For the first that a domain gets. What comes later, or is written again by a prune, goes sooner and in parts: smaller
packs keep less of it, or make less of it be written again (docs/decisions/0035)."""
RESUMED_TARGET = 4 * 1024 * 1024
"""A run or a connection that broke once may break again: then less than a pack is lost."""
_BULK_AFTER = 4
_RESUMED_STEP = 32
"""Packs after which they may be twice as large again."""
_NODES_AT_ONCE = 4 * 1024 * 1024


@dataclass(slots=True, eq=False)
class _OpenPack:
    sealer: PackSealer
    blobs: list[SealedBlob] = field(default_factory=list)
    size: int = 0
    reserved: int = 0
    closed: bool = False

    @property
    def full_of(self) -> int:
        """Blobs that are in or on their way in."""
        return len(self.blobs) + self.reserved


class Packer:
    """The packs that one run writes into one domain. `store_blob` may be called from several threads."""

    def __init__(  # noqa: PLR0913 - all but the first five by name
        self,
        keys: Keys,
        domain_id: DomainId,
        store: Store,
        blobs: BlobMap,
        outbox: Outbox,
        *,
        breaks: Callable[[], int] = lambda: 0,
        most: int | None = None,
    ) -> None:
        """`breaks` says how often this work was interrupted so far; a pack is full with `most` bytes at the latest."""
        self.domain_id = domain_id
        self._most = most or BULK_TARGET
        self._hot = store.abilities.cold_from // 2
        """Where larger packs become cold: nodes lie in packs of no more than this. 0: anywhere."""
        self._breaks = breaks
        self._broken = 0
        self._calm_since = 0
        self._keys = keys
        self._domain = keys.domain(domain_id)
        self._store = store
        self._map = blobs
        self._outbox = outbox
        self._lock = threading.Lock()
        self._handed_over = threading.Condition(self._lock)
        self._held: set[_OpenPack] = set()
        """Packs with blobs in them that the outbox does not have yet."""
        self._open: _OpenPack | None = None
        self._pending: set[ChunkId] = set()
        self._nodes: list[tuple[Kind, ChunkId, bytes]] = []
        self._nodes_size = 0
        self._first = blobs.empty(domain_id)
        # The map of a domain that was empty holds only what this run put: a small filter spares most of the look-ups.
        self._seen = bytearray(1 << 20) if self._first else None
        self.packs: list[bytes] = []
        """SHA-256 of every pack handed over to be put, in order; complete after `finish`."""
        self.arrived: list[bytes] = []
        """Those of them that the store has taken."""
        self.sizes: dict[bytes, int] = {}
        """Their lengths. Not asked from the map: another process may forget there what it did not see listed."""
        self.data_bytes = 0
        self.put_bytes = 0

    # -- asking -------------------------------------------------------------------------------------------------------

    def identify(self, kind: Kind) -> Callable[[bytes | bytearray | memoryview], ChunkId]:
        """The id function of this domain for a kind."""
        return identifier(self._domain, kind)

    def pending(self, id_: ChunkId) -> bool:
        """Whether this run has taken the blob on, and it is not yet in the map."""
        with self._lock:
            return id_ in self._pending

    def may_be_stored(self, id_: ChunkId) -> bool:
        """False only if the blob certainly is not in the map."""
        if self._seen is None:
            return True
        bit = int.from_bytes(id_[:3], "little") & 0x7FFFFF
        return bool(self._seen[bit >> 3] & 1 << (bit & 7))

    # -- writing ------------------------------------------------------------------------------------------------------

    def store_blob(self, kind: Kind, id_: ChunkId, length: int, encode: Callable[[], bytes]) -> int:
        """Store a blob that is not in the map; returns its sealed length, 0 if this run had already taken it on.

        `encode` makes the body; it is called without the lock, and only by the one caller that got the reservation.
        """
        with self._lock:
            if id_ in self._pending:
                return 0
            pack = self._open_pack()
            pack.sealer.reserve(kind, id_)
            pack.reserved += 1
            self._pending.add(id_)
        sealed: Sealed | None = None
        try:
            sealed = pack.sealer.seal(kind, id_, encode())
        finally:
            self._append(pack, kind, id_, sealed, length)
        return len(sealed)

    def _open_pack(self) -> _OpenPack:
        """The pack that takes the next blob, which the caller reserves at once; the lock is held."""
        if self._open is None or self._open.closed:
            self._open = _OpenPack(PackSealer(self._domain, new_salt()))
            self._held.add(self._open)
        if self._open.full_of + 1 >= MAX_BLOBS:
            self._open.closed = True
        return self._open

    def _append(self, pack: _OpenPack, kind: Kind, id_: ChunkId, sealed: Sealed | None, length: int) -> None:
        with self._lock:
            pack.reserved -= 1
            if sealed is None:
                # A blob reserved but not stored ends its salt (FORMAT 4): nobody may seal that id under it again.
                pack.closed = True
                self._pending.discard(id_)
            else:
                pack.blobs.append((kind, id_, sealed, length))
                pack.size = aligned(pack.size) + len(sealed)
                if kind == Kind.CHUNK:
                    self.data_bytes += len(sealed)
                pack.closed = pack.closed or pack.size >= self._target
            complete = pack.closed and not pack.reserved
        if complete:
            self._put(pack)

    @property
    def _target(self) -> int:
        broken = self._breaks()
        if broken != self._broken:
            self._broken, self._calm_since = broken, len(self.packs)
        if broken:
            return min(RESUMED_TARGET << (len(self.packs) - self._calm_since) // _RESUMED_STEP, self._most)
        return min(BULK_TARGET if self._first and len(self.packs) >= _BULK_AFTER else INCREMENTAL_TARGET, self._most)

    def _put(self, pack: _OpenPack) -> None:
        """Seal the directory of a pack that nobody else touches any more, and hand it to the outbox.

        The lock is not held: a full outbox waits for uploads, and these need the lock to finish.
        """
        try:
            if pack.blobs:
                self._hand_over(pack)
        finally:
            with self._lock:
                self._held.discard(pack)
                self._handed_over.notify_all()

    def _hand_over(self, pack: _OpenPack) -> None:
        content, header = build(self._keys, self.domain_id, pack.sealer, pack.blobs)
        placed: list[Blob] = []
        offset = header.blobs_start
        for kind, id_, sealed, length in pack.blobs:
            placed.append(Blob(kind, id_, offset, len(sealed), length))
            offset = aligned(offset + len(sealed))
        pack.blobs.clear()
        sha256 = hashlib.sha256(content).digest()
        with self._lock:
            self.packs.append(sha256)
            self.sizes[sha256] = len(content)
            self.put_bytes += len(content)
        self._outbox.submit(lambda: self._upload(sha256, content, header, placed), len(content))

    def _upload(self, sha256: bytes, content: Sealed, header: Header, placed: list[Blob]) -> None:
        self._store.put(pack_name(sha256), content)
        self._map.add(sha256, self.domain_id, header, placed)
        if self._store.abilities.distant:
            nodes = [blob for blob in placed if blob.kind in NODES]
            rows = ((sha256, blob.offset, content[blob.offset : blob.offset + blob.sealed_length]) for blob in nodes)
            self._map.cache.remember_nodes(rows)
        with self._lock:
            self.arrived.append(sha256)
            for blob in placed:
                self._note_stored(blob.id)
                self._pending.discard(blob.id)

    def _note_stored(self, id_: ChunkId) -> None:
        if self._seen is not None:
            bit = int.from_bytes(id_[:3], "little") & 0x7FFFFF
            self._seen[bit >> 3] |= 1 << (bit & 7)

    def store_node(self, kind: Kind, content: bytes) -> ChunkId:
        """Take on a node, document part or note; returns its id. Call it from one thread."""
        id_ = self.identify(kind)(content)
        with self._lock:
            known = id_ in self._pending
        if known or (self.may_be_stored(id_) and self._stored_by_us(kind, id_)):
            return id_
        with self._lock:
            self._pending.add(id_)
        self._nodes.append((kind, id_, content))
        self._nodes_size += len(content)
        if self._nodes_size >= (self._hot or _NODES_AT_ONCE) or len(self._nodes) >= MAX_BLOBS:
            self._put_nodes(_OpenPack(PackSealer(self._domain, new_salt())))
        return id_

    def _stored_by_us(self, kind: Kind, id_: ChunkId) -> bool:
        """Whether a pack of this host's writer has it. Another writer's pack may list what it does not hold."""
        for place in self._map.reusable(kind, id_):
            if place.own and place.domain_id == self.domain_id:
                self._map.relied.add(place.pack)
                return True
        return False

    def _put_nodes(self, pack: _OpenPack) -> None:
        nodes, self._nodes, self._nodes_size = self._nodes, [], 0
        for kind, id_, content in nodes:
            pack.sealer.reserve(kind, id_)
            sealed = pack.sealer.seal(kind, id_, raw_body(content))
            pack.blobs.append((kind, id_, sealed, len(content)))
        self._put(pack)

    def finish(self) -> None:
        """Hand over everything that was stored until now; what comes meanwhile may go along.

        Workers may keep storing meanwhile. Call it from the thread that stores nodes. Raises StoreError.
        """
        with self._lock:
            begun = self._held.copy()
            while (begun & self._held) - {self._open}:
                self._handed_over.wait()
            # Taken only now: a wait that Ctrl-C breaks off must not leave a pack that nobody will put.
            pack, self._open = self._open, None
            if pack is not None and (pack.closed or pack.reserved):
                pack.closed = True  # the worker that comes last puts it
                while pack in self._held:
                    self._handed_over.wait()
                pack = None
        apart = bool(self._hot) and pack is not None and pack.size + self._nodes_size > self._hot
        if pack is not None and (apart or pack.full_of + len(self._nodes) > MAX_BLOBS):
            self._put(pack)
            pack = None
        self._put_nodes(pack or _OpenPack(PackSealer(self._domain, new_salt())))
