"""Sets of chunk numbers that stay small whether few, many or nearly all are in them. Pure.

Numbers lie in pages of 4096, each page an integer used as a bitmap: memory follows the numbers in the set and is at
most one bit a chunk; unions and differences are page-wise integer operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

PAGE = 4096
_FULL = (1 << PAGE) - 1


class ChunkSet:
    """A mutable set of non-negative chunk numbers."""

    __slots__ = ("_pages",)

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._pages: dict[int, int] = {}
        for first, end in ranges:
            self.add(first, end)

    def add(self, first: int, end: int) -> None:
        """Add `[first, end)`. Raises ValueError for a negative number."""
        for page, bits in _spread(first, end):
            self._pages[page] = self._pages.get(page, 0) | bits

    def discard(self, first: int, end: int) -> None:
        """Remove `[first, end)`; what is not in the set stays out of it."""
        for page in list(self._pages):
            low, high = max(first - page * PAGE, 0), min(end - page * PAGE, PAGE)
            if low < high:
                self._put(page, self._pages[page] & ~(((1 << (high - low)) - 1) << low))

    def _put(self, page: int, bits: int) -> None:
        if bits:
            self._pages[page] = bits
        else:
            self._pages.pop(page, None)

    def __contains__(self, chunk: int) -> bool:
        return bool(self._pages.get(chunk // PAGE, 0) >> chunk % PAGE & 1)

    def __len__(self) -> int:
        return sum(bits.bit_count() for bits in self._pages.values())

    def __bool__(self) -> bool:
        return bool(self._pages)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChunkSet) and self._pages == other._pages

    def __hash__(self) -> int:
        raise TypeError("a ChunkSet can change")

    def __or__(self, other: ChunkSet) -> ChunkSet:
        result = self.copy()
        for page, bits in other._pages.items():
            result._pages[page] = result._pages.get(page, 0) | bits
        return result

    def __and__(self, other: ChunkSet) -> ChunkSet:
        result = ChunkSet()
        for page, bits in self._pages.items():
            result._put(page, bits & other._pages.get(page, 0))
        return result

    def __sub__(self, other: ChunkSet) -> ChunkSet:
        result = ChunkSet()
        for page, bits in self._pages.items():
            result._put(page, bits & ~other._pages.get(page, 0))
        return result

    def copy(self) -> ChunkSet:
        """An independent set with the same members."""
        result = ChunkSet()
        result._pages = dict(self._pages)
        return result

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield disjoint, merged ranges `(first, end)` in ascending order."""
        first = end = -1
        for page in sorted(self._pages):
            for low, high in _runs_of(self._pages[page]):
                start, stop = page * PAGE + low, page * PAGE + high
                if start == end:
                    end = stop
                    continue
                if end > first:
                    yield first, end
                first, end = start, stop
        if end > first:
            yield first, end


def _spread(first: int, end: int) -> Iterator[tuple[int, int]]:
    """The pages of a range, each with the range's bits in it."""
    if first < 0:
        raise ValueError("chunk numbers are not negative")
    while first < end:
        page = first // PAGE
        stop = min(end, (page + 1) * PAGE)
        yield page, _FULL if stop - first == PAGE else ((1 << (stop - first)) - 1) << first % PAGE
        first = stop


def _runs_of(bits: int) -> Iterator[tuple[int, int]]:
    """Runs of ones in one page's bitmap."""
    position = 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        ones = (~bits & (bits + 1)).bit_length() - 1
        yield position + zeros, position + zeros + ones
        bits >>= ones
        position += zeros + ones
