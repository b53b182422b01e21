"""Storing changed chunks as differences from what they were (docs/decisions/0077).

What a chunk was comes from a moment of the source that this host kept, never from the repository; its id must be that
of the base's slot. A chunk is stored in full if its base has no copy of its own that this host wrote and that stays, if
the difference is more than half as long as the base, or if the bases of a range would lie in too many packs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from lamella.base.errors import IntegrityError, SourceError
from lamella.base.ids import ChunkId
from lamella.base.trust import Opened
from lamella.format.container import Kind
from lamella.format.difference import apply, make
from lamella.format.encoder import Encoder
from lamella.format.node import DeltaChunk
from lamella.operations.shared.ranges import RANGE, ThreadBuffers
from lamella.operations.writing.chunks import CHECK_ONE_IN, VolumeReader
from lamella.packs.blobmap import Place
from lamella.packs.building import raw_body
from lamella.sources.base import Source
from lamella.sources.kept_bytes import KeptBytes, Remembering

MOST_PACKS = 8
"""Packs that the bases of one range may lie in: so many more reads a restore makes there, at most."""


class Differences:
    """What the chunks of one volume were, and their differences from that. May be used from several threads."""

    def __init__(self, kept: KeptBytes, chunk_size: int, compression: str) -> None:
        self._kept = kept
        self._chunk_log2 = chunk_size.bit_length() - 1
        self._buffers = ThreadBuffers(chunk_size)
        self._compression = compression
        self._local = _OfThread()

    def stored(
        self, reader: VolumeReader, id_: ChunkId, part: memoryview, chunk: int, old: ChunkId
    ) -> tuple[ChunkId, int] | None:
        """Store a chunk as its difference from `old`; returns slot and sealed length, None where that is not worth it.

        Raises IntegrityError if a difference does not make the chunk again.
        """
        place = None if isinstance(old, DeltaChunk) else self._base(reader, old, len(part), chunk)
        if place is None:
            return None
        before = self._before(reader, old, chunk << self._chunk_log2, len(part))
        content = None if before is None else make(before, part, self._encoder().encode)
        if before is None or content is None or len(content) * 2 > place.blob.sealed_length:
            return None
        self._check(before, part, content, every=reader.check_all)
        sealed, difference = 0, reader.packer.identify(Kind.CHUNK)(content)
        if not reader.stored(difference, memoryview(content)):
            sealed = reader.packer.store_blob(Kind.CHUNK, difference, len(content), lambda: raw_body(content))
        reader.repo.blobs.relied.add(place.pack)
        self._local.packs.add(place.pack)
        return DeltaChunk.slot(id_, old, difference), sealed

    def _base(self, reader: VolumeReader, old: ChunkId, length: int, chunk: int) -> Place | None:
        """The place of a base to rely on: in a pack of this host's writer that is not condemned."""
        local, number = self._local, chunk << self._chunk_log2 >> RANGE.bit_length() - 1
        if local.range != number:
            local.range, local.packs = number, set()
        for place in reader.repo.blobs.reusable(Kind.CHUNK, old):
            fits = place.own and place.domain_id == reader.packer.domain_id and place.blob.content_length == length
            if fits and (place.pack in local.packs or len(local.packs) < MOST_PACKS):
                return place
        return None

    def _before(self, reader: VolumeReader, old: ChunkId, offset: int, length: int) -> memoryview | None:
        """The content that the base's slot names, if the kept moment has that there."""
        if offset + length > self._kept.size:
            return None
        view = self._buffers.view(length)
        try:
            self._kept.read_into(offset, view)
        except SourceError:
            return None
        return view if reader.packer.identify(Kind.CHUNK)(view) == old else None

    def _encoder(self) -> Encoder:
        if self._local.encoder is None:
            self._local.encoder = Encoder(self._compression)
        return self._local.encoder

    def _check(self, before: memoryview, part: memoryview, content: bytes, *, every: bool) -> None:
        """What leaves must make what came in, as for whole chunks (docs/decisions/0004)."""
        self._local.made += 1
        checked = self._local.made % (1 if every else CHECK_ONE_IN) == 0
        if checked and apply(bytes(before), Opened(content), "a new difference") != bytes(part):
            raise IntegrityError("a difference was made that does not make its chunk")


class _OfThread(threading.local):
    encoder: Encoder | None = None
    made = 0
    range = -1

    def __init__(self) -> None:
        self.packs: set[bytes] = set()


@contextmanager
def differences(source: Source, checkpoint: str, chunk_size: int, compression: str) -> Iterator[Differences | None]:
    """Differences from a moment that a source kept; None if its driver cannot read that, or it is gone."""
    with ExitStack() as held:
        found: Differences | None = None
        if isinstance(source, Remembering):
            with suppress(SourceError):
                kept = held.enter_context(source.kept_bytes(checkpoint))
                found = Differences(kept, chunk_size, compression)
        try:
            yield found
        finally:
            # What was read is sound, whatever becomes of the moment that was read beside it.
            with suppress(SourceError):
                held.close()
