"""The stream of `zfs send -i`, read for what it says of one volume's data: a bounded parser, and no more than that.

Source: OpenZFS, include/sys/zfs_ioctl.h (dmu_replay_record, 2.1). Records of 312 bytes, each with a payload whose
length its kind tells; numbers are in the byte order of the machine that sent it, which the first record shows. Only
what a stream of a volume without raw data can hold is accepted; everything else refuses the stream.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost

RECORD_BYTES: Final = 312
MAX_PAYLOAD: Final = (16 << 20) + 4096
"""Bytes. No block of ZFS is larger than 16 MiB (SPA_MAXBLOCKSIZE)."""

_MAGIC: Final = 0x2F5BACBAC
_SUBSTREAM: Final = 1
_ZVOL: Final = 3
_DATA: Final = 1
"""The number of the object that holds a volume's data (zvol.h: ZVOL_OBJ)."""
_TO_THE_END: Final = (1 << 64) - 1
_HARMLESS: Final = {
    2: "SA_SPILL", 16: "EMBED_DATA", 17: "LZ4", 19: "LARGE_BLOCKS", 22: "COMPRESSED", 23: "LARGE_DNODE", 25: "ZSTD",
    27: "SWITCH_TO_LARGE_BLOCKS",
}  # fmt: skip
_REFUSED: Final = {0: "DEDUP", 1: "DEDUPPROPS", 20: "RESUMING", 21: "REDACTED", 24: "RAW", 26: "HOLDS"}
_BEGIN, _OBJECT, _FREEOBJECTS, _WRITE, _FREE, _END = range(6)
_SPILL, _WRITE_EMBEDDED = 7, 8


@dataclass(frozen=True, slots=True)
class Expected:
    """The two moments that a stream must lie between, and the volume's sizes then, in bytes."""

    base: int
    """GUID of the earlier snapshot, which its bookmark keeps."""
    now: int
    base_size: int
    size: int


def delta(pieces: Iterator[bytes], expected: Expected, grain: int) -> Delta:
    """The ranges that may differ, on a grid of `grain` bytes. Raises CheckpointLost for an unreliable stream."""
    stream = _SendStream(pieces)
    _begin(stream, expected)
    found = _Ranges(grain, expected.size)
    while True:
        kind, payload, record = stream.record()
        if kind == _END:
            if stream.numbers("Q", record, 40) != (expected.now,):
                raise _wrong("its end names another snapshot")
            if not stream.ended():
                raise _wrong("something follows its end")
            return Delta.bounded(grain, expected.base_size, expected.size, found.changed, found.zeros())
        stream.skip(_noted(stream, kind, record, found, payload))


def _begin(stream: _SendStream, expected: Expected) -> None:
    kind, payload, record = stream.record(first=True)
    magic, version, _, of, _, now, base = stream.numbers("QQQIIQQ", record, 8)
    if kind != _BEGIN or magic != _MAGIC:
        raise _wrong("it does not begin like a stream")
    if version & 3 != _SUBSTREAM or of != _ZVOL:
        raise _wrong("it is not that of one volume")
    features = [bit for bit in range(30) if version >> 2 & 1 << bit and bit not in _HARMLESS]
    if features or version >> 32:
        names = ", ".join(_REFUSED.get(bit, f"bit {bit}") for bit in features) or "in its upper half"
        raise _wrong(f"it has features that this version does not read: {names}")
    if (base, now) != (expected.base, expected.now):
        raise _wrong("it lies between other snapshots")
    stream.skip(payload)


def _noted(stream: _SendStream, kind: int, record: bytes, found: _Ranges, payload: int) -> int:
    """Take in a record; return the bytes that follow it."""
    if kind in (_WRITE, _FREE, _WRITE_EMBEDDED):
        return _noted_data(stream, kind, record, found)
    if kind == _OBJECT:
        return payload or _padded(stream.numbers("I", record, 28)[0])
    if kind == _SPILL:
        return stream.numbers("Q", record, 40 if record[33] else 16)[0]
    if kind != _FREEOBJECTS:
        raise _wrong(f"it has a record of kind {kind}, which a volume's stream has not")
    first, count = stream.numbers("QQ", record, 8)
    if first <= _DATA < first + count:
        raise _wrong("it removes the volume's data as a whole")
    return 0


def _noted_data(stream: _SendStream, kind: int, record: bytes, found: _Ranges) -> int:
    """The same for a range that was written or freed."""
    number = stream.numbers("Q", record, 8)[0]
    offset, length = stream.numbers("QQ", record, 24 if kind == _WRITE else 16)
    if number == _DATA:
        (found.freed if kind == _FREE else found.written)(offset, length)
    if kind == _FREE:
        return 0
    if kind == _WRITE_EMBEDDED:
        return _padded(stream.numbers("I", record, 52)[0])
    return stream.numbers("Q", record, 96)[0] if record[50] else length


def _padded(length: int) -> int:
    return (length + 7) & ~7


@dataclass(slots=True)
class _Ranges:
    """The facts in the records about the volume's data so far."""

    grain: int
    size: int
    changed: ChunkSet = field(default_factory=ChunkSet)
    _zeroed: ChunkSet = field(default_factory=ChunkSet)
    _freed: tuple[int, int] = (0, 0)
    """The freed range that the last records add up to."""

    def written(self, offset: int, length: int) -> None:
        self._settle()
        self._touched(offset, self._end(offset, length))

    def freed(self, offset: int, length: int) -> None:
        end = self._end(offset, length)
        self._touched(offset, end)
        if offset != self._freed[1]:
            self._settle()
            self._freed = (offset, offset)
        self._freed = (self._freed[0], end)

    def zeros(self) -> ChunkSet:
        """Chunks that were freed as a whole, and not written."""
        self._settle()
        return self._zeroed

    def _end(self, offset: int, length: int) -> int:
        if length != _TO_THE_END and offset + length > _TO_THE_END:
            raise _wrong("a range ends beyond 2^64")
        return min(offset + length, max(offset, self.size))

    def _touched(self, offset: int, end: int) -> None:
        if offset < end:
            self.changed.add(offset // self.grain, -(-end // self.grain))
            self._zeroed.discard(offset // self.grain, -(-end // self.grain))

    def _settle(self) -> None:
        """The freed range is complete: what it covers is zero, what it covers in part stays changed."""
        start, end = self._freed
        self._freed = (0, 0)
        first = -(-start // self.grain)
        stop = -(-end // self.grain) if end >= self.size else end // self.grain
        if first < stop:
            self._zeroed.add(first, stop)
            self.changed.discard(first, stop)


class _SendStream:
    """The bytes of a stream: records, and what is skipped between them."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = b""
        self._order = "<"

    def record(self, *, first: bool = False) -> tuple[int, int, bytes]:
        """The kind of the next record, the payload it names, and the record."""
        record = self._taken(RECORD_BYTES)
        kind, payload = self.numbers("II", record, 0)
        if first and self.numbers("Q", record, 8) != (_MAGIC,):
            self._order = ">"
            kind, payload = self.numbers("II", record, 0)
        return kind, payload, record

    def numbers(self, form: str, record: bytes, offset: int) -> tuple[int, ...]:
        """Numbers of a record, in its byte order."""
        return struct.unpack_from(self._order + form, record, offset)

    def skip(self, count: int) -> None:
        """Leave out so many bytes."""
        if count > MAX_PAYLOAD:
            raise _wrong(f"a record of it is followed by {count} bytes")
        while count > len(self._held):
            count -= len(self._held)
            self._held = self._next()
        self._held = self._held[count:]

    def ended(self) -> bool:
        """Whether nothing is left."""
        return not self._held and not next((piece for piece in self._pieces if piece), b"")

    def _taken(self, count: int) -> bytes:
        while len(self._held) < count:
            self._held += self._next()
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def _next(self) -> bytes:
        for piece in self._pieces:
            if piece:
                return piece
        raise _wrong("it is cut short")


def _wrong(why: str) -> CheckpointLost:
    return CheckpointLost(f"the stream of zfs send cannot be used: {why}")
