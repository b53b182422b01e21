"""Decoded chunks of one repository, shared by everybody who reads its snapshots at random offsets."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from lamella.base.errors import IntegrityError, StoreError
from lamella.base.ids import ChunkId, DomainId
from lamella.base.trust import Opened
from lamella.format.container import Kind
from lamella.packs.contents import Contents
from lamella.packs.tree import TreeReader
from lamella.run.beside import Spare
from lamella.run.pipeline import default_workers

CACHE_BYTES = 64 * 1024 * 1024
DAMAGE_SECONDS = 10.0
"""A chunk that did not open is looked for again after this time: it may have been repaired."""
_DAMAGED_KEPT = 1024
_CLOSE_SECONDS = 2.0
_QUEUED = 32
"""Pieces of reading ahead that may wait; more are left to those who read them."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Wanted = Sequence[tuple[ChunkId, int]]
"""Ids of chunks, each with the length that its position implies."""


class Recent(Generic[Key, Value]):
    """The most recently used values, up to a sum of weights. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self.weight = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def get(self, key: Key) -> Value | None:
        """The value, which is now the newest; None if it is not kept."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def drop(self, key: Key) -> None:
        """Forget a value, if it is kept."""
        with self._lock:
            found = self._kept.pop(key, None)
            self.weight -= 0 if found is None else found[1]

    def put(self, key: Key, value: Value, weight: int = 1) -> None:
        """Keep a value; the oldest make room."""
        with self._lock:
            before = self._kept.pop(key, None)
            self.weight += weight - (0 if before is None else before[1])
            self._kept[key] = (value, weight)
            while self.weight > self._limit:
                _, (_, gone) = self._kept.popitem(last=False)
                self.weight -= gone


class _Batch:
    """Chunks that one thread is decoding; others wait for them."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.opened: dict[ChunkId, Opened] = {}
        self.error: StoreError | None = None
        """Why none could be had; damaged chunks are only missing from `opened`."""


class DecodedChunks:
    """Opens chunks and keeps those used last, up to `limit_bytes`. Each chunk is decoded by one thread at a time.

    Thread-safe. What is read at the same moment, or is being sent, comes on top of the limit.
    """

    def __init__(self, contents: Contents, limit_bytes: int = CACHE_BYTES, workers: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self._contents = contents
        self._chunks: Recent[ChunkId, Opened] = Recent(limit_bytes)
        self._damaged: Recent[ChunkId, tuple[str, float]] = Recent(_DAMAGED_KEPT)
        self._lock = threading.Lock()
        self._pending: dict[ChunkId, _Batch] = {}
        self._spare = Spare(workers or max(4, default_workers()), _QUEUED, "lamella-ahead")

    @property
    def held_bytes(self) -> int:
        """Bytes of the chunks that are kept."""
        return self._chunks.weight

    def get(self, domain_id: DomainId, wanted: Wanted) -> dict[ChunkId, Opened]:
        """The contents of these chunks. Raises IntegrityError that names the first damaged chunk, StoreError."""
        found: dict[ChunkId, Opened] = {}
        mine: dict[ChunkId, int] = {}
        others: dict[ChunkId, tuple[int, _Batch]] = {}
        batch = _Batch()
        with self._lock:
            for id_, length in wanted:
                kept = self._chunks.get(id_)
                pending = self._pending.get(id_)
                if kept is not None:
                    found[id_] = kept
                elif pending is None:
                    mine[id_] = length
                    self._pending[id_] = batch
                elif pending is not batch:
                    others[id_] = (length, pending)
        if mine:
            self._decode(domain_id, batch, list(mine.items()))
            found.update(batch.opened)
        for id_, (length, theirs) in others.items():
            theirs.done.wait()
            if theirs.error is not None:
                raise theirs.error
            content = theirs.opened.get(id_)
            # Missing: damaged, or the other thread was interrupted.
            found[id_] = self._one(domain_id, Kind.CHUNK, id_, length) if content is None else content
        return found

    def tree_reader(self, domain_id: DomainId) -> TreeReader:
        """Reads the manifests of one domain. A damaged node costs no more than a damaged chunk, however often it is
        asked for."""
        return TreeReader(lambda kind, id_: self._one(domain_id, kind, id_, None))

    def has(self, id_: ChunkId) -> bool:
        """Whether a chunk is kept, or being decoded."""
        return id_ in self._chunks or id_ in self._pending

    def ahead(self, call: Callable[[], object]) -> None:
        """Make a call beside, which decodes what will be asked for soon; not at all if too many wait already.

        What the call raises is not seen: whoever needs these chunks meets the same trouble.
        """
        self._spare.offer(call)

    def close(self) -> None:
        """End the reading ahead; what is being decoded is waited for, unless the store does not answer."""
        self._spare.close(_CLOSE_SECONDS)

    def _decode(self, domain_id: DomainId, batch: _Batch, wanted: Wanted) -> None:
        """Open chunks that this thread claimed. Raises what `get` raises, after the others were served."""
        try:
            self._open(domain_id, batch, wanted)
        except StoreError as error:
            batch.error = error
            raise
        finally:
            with self._lock:
                for id_, length in wanted:
                    content = batch.opened.get(id_)
                    if content is not None:
                        self._chunks.put(id_, content, length)
                    del self._pending[id_]
            batch.done.set()

    def _open(self, domain_id: DomainId, batch: _Batch, wanted: Wanted) -> None:
        with suppress(IntegrityError):
            if not any(self._damaged.get(id_) for id_, _ in wanted):
                batch.opened.update(self._contents.get_many(domain_id, Kind.CHUNK, wanted))
                return
        # One of them is damaged; the others can be had.
        trouble: IntegrityError | None = None
        for id_, length in wanted:
            try:
                batch.opened[id_] = self._one(domain_id, Kind.CHUNK, id_, length)
            except IntegrityError as error:
                trouble = trouble or error
        if trouble is not None:
            raise trouble

    def _one(self, domain_id: DomainId, kind: Kind, id_: ChunkId, length: int | None) -> Opened:
        """One content by itself; damage is remembered. Raises IntegrityError, StoreError."""
        known = self._damaged.get(id_)
        if known is not None and time.monotonic() < known[1]:
            raise IntegrityError(known[0], obj=id_.hex())
        try:
            content = self._contents.get(domain_id, kind, id_, length)
        except IntegrityError as error:
            self._damaged.put(id_, (error.message, time.monotonic() + DAMAGE_SECONDS))
            raise
        self._damaged.drop(id_)
        return content
