"""Chunks that are stored as differences: what they are read from, whether that is there, and reading them (FORMAT 6).

A chunk of a DELTA slot is had from a copy of its own, or from its base and its difference: all three are plain chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lamella.base.errors import IntegrityError
from lamella.base.ids import ChunkId, DomainId
from lamella.base.trust import Opened
from lamella.format.container import Kind
from lamella.format.difference import apply
from lamella.format.node import DeltaChunk
from lamella.packs.blobmap import BlobMap, Place

if TYPE_CHECKING:
    from lamella.packs.contents import Contents

_AT_ONCE = 64
Wanted = tuple[ChunkId, int | None]


def blobs_of(blobs: BlobMap, domain_id: DomainId, ids: Sequence[ChunkId]) -> list[ChunkId]:
    """Everything that these chunks may be read from: what of it is there, and where that is not enough, all of it.

    A base is as needed as the difference from it. A copy of the chunk itself is needed where there is one; if nothing
    is there, base and difference are what is missing.
    """
    found: list[ChunkId] = []
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        there = _places(blobs, some)
        for id_ in some:
            if not isinstance(id_, DeltaChunk):
                found.append(id_)
                continue
            own = _is_there(there, domain_id, id_, None)
            found += [ChunkId(bytes(id_))] if own else []
            found += [one for one in (id_.base, id_.difference) if not own or _is_there(there, domain_id, one, None)]
    return found


def present(blobs: BlobMap, domain_id: DomainId, wanted: Sequence[Wanted]) -> list[bool]:
    """Whether the map has a place for each chunk, of the length that its position implies; None: of any length."""
    found: list[bool] = []
    for start in range(0, len(wanted), _AT_ONCE):
        some = wanted[start : start + _AT_ONCE]
        there = _places(blobs, [id_ for id_, _ in some])
        for id_, length in some:
            had = _is_there(there, domain_id, id_, length)
            if not had and isinstance(id_, DeltaChunk):
                had = _is_there(there, domain_id, id_.base, length) and _is_there(
                    there, domain_id, id_.difference, None
                )
            found.append(had)
    return found


def _places(blobs: BlobMap, ids: Sequence[ChunkId]) -> dict[ChunkId, list[Place]]:
    parts = [part for id_ in ids if isinstance(id_, DeltaChunk) for part in (id_.base, id_.difference)]
    return blobs.find_many(Kind.CHUNK, list({*ids, *parts}))


def _is_there(places: Mapping[ChunkId, Sequence[Place]], domain_id: DomainId, id_: ChunkId, length: int | None) -> bool:
    return any(
        place.domain_id == domain_id and length in (None, place.blob.content_length) for place in places.get(id_, ())
    )


def opened(contents: Contents, domain_id: DomainId, id_: DeltaChunk, length: int | None) -> Opened:
    """One chunk from its base and its difference. Raises IntegrityError."""
    base = contents.get(domain_id, Kind.CHUNK, id_.base, length)
    return _made(contents, domain_id, id_, base, contents.get(domain_id, Kind.CHUNK, id_.difference))


def each(
    contents: Contents, domain_id: DomainId, wanted: Mapping[ChunkId, int | None], *, identified: bool
) -> Iterator[tuple[ChunkId, Opened]]:
    """Those of these chunks that can be had from bases and differences, fetched with few reads; in no order.

    Not `identified`, the caller computes the ids of what comes.
    """
    parts: dict[ChunkId, int | None] = {}
    chunks = [(id_, length) for id_, length in wanted.items() if isinstance(id_, DeltaChunk)]
    for id_, length in chunks:
        parts |= {id_.difference: None, id_.base: length}
    found = contents.at_first_places(domain_id, Kind.CHUNK, parts, identified=identified)
    for id_, _ in chunks:
        base, difference = found.get(id_.base), found.get(id_.difference)
        if base is None or difference is None:
            continue
        try:
            content = _made(contents, domain_id, id_, base, difference, identified=identified)
        except IntegrityError:
            continue
        yield ChunkId(id_), content


def _made(
    contents: Contents,
    domain_id: DomainId,
    id_: DeltaChunk,
    base: Opened,
    difference: Opened,
    *,
    identified: bool = True,
) -> Opened:
    """The id of what a difference makes is checked, always: here, or by the caller."""
    made = apply(base, difference, id_.hex())
    if identified and bytes(contents.chunk_id(domain_id, made)) != bytes(id_):
        raise IntegrityError(f"chunk {id_.hex()[:16]} is not what its difference makes", obj=id_.hex())
    return made
