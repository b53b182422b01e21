"""Ranges of bytes: joined, and made few enough for a record."""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]
"""First byte and the byte after the last one."""


def join(ranges: Iterable[Range]) -> list[Range]:
    """Ascending ranges with neighbours joined."""
    joined: list[Range] = []
    for start, end in ranges:
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def fewer(ranges: list[Range], most: int) -> list[Range]:
    """At most so many ranges that cover these: the smallest gaps are closed."""
    if len(ranges) <= most:
        return ranges
    gaps = sorted(range(1, len(ranges)), key=lambda number: ranges[number][0] - ranges[number - 1][1], reverse=True)
    starts = [0, *sorted(gaps[: most - 1])]
    return [
        (ranges[first][0], ranges[end - 1][1]) for first, end in zip(starts, [*starts[1:], len(ranges)], strict=True)
    ]
