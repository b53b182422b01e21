"""A set of block numbers, one bit each. Pure; whoever shares one holds a lock while it changes."""

from __future__ import annotations

from collections.abc import Iterator

_STEP = 1 << 16


class Bitmap:
    """Numbers in `[0, count)`, at first none."""

    def __init__(self, count: int) -> None:
        self.octets = bytearray(-(-count // 8))
        """Number n is bit n mod 8 of octet n div 8."""

    def has(self, number: int) -> bool:
        """Whether the number is in it."""
        return bool(self.octets[number >> 3] >> (number & 7) & 1)

    def covers(self, first: int, end: int) -> bool:
        """Whether all of `[first, end)` is in it."""
        return first >= end or (self.has(first) and self._same_until(first, end, value=True) == end)

    def add(self, first: int, end: int) -> None:
        """Put `[first, end)` into it."""
        low, high = -(-first // 8), end // 8
        if low < high:
            self.octets[low:high] = b"\xff" * (high - low)
            ends = (*range(first, low * 8), *range(high * 8, end))
        else:
            ends = (*range(first, end),)
        for number in ends:
            self.octets[number >> 3] |= 1 << (number & 7)

    def runs(self, first: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """`[first, end)` cut where it changes from numbers that are in it to others, or back."""
        while first < end:
            value = self.has(first)
            stop = self._same_until(first, end, value=value)
            yield first, stop, value
            first = stop

    def _same_until(self, position: int, end: int, *, value: bool) -> int:
        """The first number from `position` on that is not like it; `end` if there is none."""
        same = b"\xff" if value else b"\0"
        while position < end:
            if position & 7 == 0 and end - position >= 8:
                part = bytes(self.octets[position >> 3 : min(end >> 3, (position >> 3) + _STEP)])
                skipped = len(part) - len(part.lstrip(same))
                position += 8 * skipped
                if skipped == len(part):
                    continue
            if self.has(position) != value:
                return position
            position += 1
        return end
