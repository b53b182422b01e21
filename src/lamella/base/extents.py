"""Byte ranges of a volume. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extent:
    """Half-open byte range `[start, end)` of a volume, `0 <= start < end`."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"not a byte range: [{self.start}, {self.end})")

    @property
    def length(self) -> int:
        """Bytes in the range."""
        return self.end - self.start


def chunk_ranges(extents: Iterable[Extent], chunk_size: int) -> Iterator[tuple[int, int]]:
    """Widen ascending extents to the absolute chunk grid; yield disjoint, merged `(first, end)` chunk numbers.

    Raises ValueError if the extents do not ascend.
    """
    first = end = -1
    previous_end = 0
    for extent in extents:
        if extent.start < previous_end:
            raise ValueError("extents must ascend and not overlap")
        previous_end = extent.end
        start, stop = extent.start // chunk_size, -(-extent.end // chunk_size)
        if start <= end:
            end = max(end, stop)
            continue
        if end > first:
            yield first, end
        first, end = start, stop
    if end > first:
        yield first, end
