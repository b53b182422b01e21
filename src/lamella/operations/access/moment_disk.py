"""A frozen volume as a disk that can be served and laid under writes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from lamella.base.extents import Extent
from lamella.operations.access.view import PIECE, Part, Stretch
from lamella.sources.base import FrozenVolume


class MomentDisk:
    """The bytes of a frozen volume. Thread-safe as far as its driver's reading is, which the contract demands."""

    def __init__(self, volume: FrozenVolume) -> None:
        self.size = volume.size
        self._volume = volume
        self._data = list(volume.allocated())

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range, fewer where the volume ends. Raises SourceError."""
        content = bytearray(max(0, min(length, self.size - offset)))
        if content:
            self._volume.read_into(offset, memoryview(content))
        return bytes(content)

    def parts(self, offset: int, length: int) -> Iterator[Part]:
        """The bytes of a range in parts. Raises SourceError."""
        end = min(offset + length, self.size)
        while offset < end:
            step = min(PIECE, end - offset)
            yield self.read(offset, step)
            offset += step

    def expect(self, offset: int, length: int) -> None:
        """The kernel reads ahead."""

    def extents(self, offset: int, length: int, most: int | None = None) -> list[Stretch]:
        """The stretches of a range: what may hold data, and holes."""
        found: list[Stretch] = []
        end = min(offset + length, self.size)
        for one in _around(self._data, offset, end):
            if most is not None and len(found) >= most:
                break
            found.append(one)
        return found

    def is_hole(self, offset: int, length: int) -> bool:
        """Whether nothing of a range is allocated."""
        return all(one.hole for one in self.extents(offset, length))


def _around(data: list[Extent], start: int, end: int) -> Iterator[Stretch]:
    for at in range(max(0, bisect_right(data, start, key=lambda one: one.end)), len(data)):
        one = data[at]
        low, high = max(one.start, start), min(one.end, end)
        if low >= high:
            break
        if start < low:
            yield Stretch(low - start, hole=True, zero=True)
        yield Stretch(high - low, hole=False, zero=False)
        start = high
    if start < end:
        yield Stretch(end - start, hole=True, zero=True)
