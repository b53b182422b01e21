"""Changing the content of a frozen moment: a clone of the moment takes changes, and can be kept in its place."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Protocol, runtime_checkable

from lamella.base.errors import SourceAtRisk, SourceError
from lamella.sources.base import FrozenVolume, Source
from lamella.sources.discarding import discard, discarded_at_once
from lamella.sources.zeroing import Zeroing, zero_range

Change = tuple[int, bytes | int]
"""An offset in bytes, and what stands there now: bytes, or the length of a range that reads as zero and is given back.
"""
_LOOK_BYTES = 16 << 20
"""After so many bytes that may have been allotted, the room is looked at again."""
_UNKNOWN_GRAIN = 1 << 20
"""Of a device that does not discard: a pool that ignores discards still allots whole blocks."""


@runtime_checkable
class _Cloning(Protocol):
    """A source whose moments are clones that can be cloned (`ClonedSource`, `ThinSource`)."""

    def clone(
        self, image: int, undone: ExitStack, edit: Callable[[int, Callable[[], None]], None]
    ) -> FrozenVolume | str: ...


@runtime_checkable
class _Cloned(Protocol):
    """A moment that is a clone."""

    @property
    def descriptor(self) -> int: ...


@runtime_checkable
class _Outer(Protocol):
    """A source that finds the volume anew each time (`QubeSource`), and reads by `inner`."""

    @property
    def inner(self) -> Source: ...

    def moment(self, frozen: FrozenVolume) -> FrozenVolume: ...


@runtime_checkable
class _OuterMoment(Protocol):
    """A moment of such a source."""

    @property
    def inner(self) -> FrozenVolume: ...


def edited(source: Source, frozen: FrozenVolume, changes: Iterable[Change], held: ExitStack) -> FrozenVolume:
    """A clone of a frozen moment with these changes: a moment of its own, undone with `held` unless it is kept.

    The moment it is made from stays as it is. Raises SourceError where there can be no such clone; SourceAtRisk where
    there is no room for the changes.
    """
    driver, moment = _innermost(source, frozen)
    if not isinstance(driver, _Cloning) or not isinstance(moment, _Cloned) or not moment.checkpoint:
        raise SourceError(no_clone(source))
    made = driver.clone(moment.descriptor, held, lambda fd, look: write_changes(fd, changes, look))
    if isinstance(made, str):
        raise SourceError(f"its clone cannot be cloned: {made}")
    return source.moment(made) if isinstance(source, _Outer) else made


def can_be_edited(source: Source, frozen: FrozenVolume) -> bool:
    """Whether `edited` can work."""
    driver, moment = _innermost(source, frozen)
    return isinstance(driver, _Cloning) and isinstance(moment, _Cloned) and bool(moment.checkpoint)


def _innermost(source: Source, frozen: FrozenVolume) -> tuple[Source, FrozenVolume]:
    both = isinstance(source, _Outer) and isinstance(frozen, _OuterMoment)
    return (source.inner, frozen.inner) if both else (source, frozen)  # type: ignore[attr-defined]


def no_clone(source: Source) -> str:
    """Why it cannot."""
    return f"the {source.driver} driver makes no clone here that could be changed"


def write_changes(fd: int, changes: Iterable[Change], look: Callable[[], None] = lambda: None) -> None:
    """Change an open clone, and `look` now and then. Raises SourceError; SourceAtRisk if there is no room for them."""
    try:
        # The least that a device takes anew for a write, and gives back; a file has blocks of its own.
        grain = discarded_at_once(fd) if stat.S_ISBLK(os.fstat(fd).st_mode) else 1
        allotted = 0
        for offset, content in changes:
            if isinstance(content, int):
                written = _give_back(fd, offset, offset + content, grain)
            else:
                written = _write(fd, offset, content)
            allotted += max(grain or _UNKNOWN_GRAIN, written)
            if allotted >= _LOOK_BYTES:
                os.fsync(fd)  # or nothing is allotted yet
                look()
                allotted = 0
        os.fsync(fd)
    except OSError as reason:
        raise SourceAtRisk(f"the clone cannot be changed: {reason.strerror}") from reason


def _write(fd: int, offset: int, content: bytes) -> int:
    left = memoryview(content)
    while left:
        written = os.pwrite(fd, left, offset)
        offset += written
        left = left[written:]
    return len(content)


def _give_back(fd: int, start: int, end: int, grain: int) -> int:
    """Make a range read as zero: whole grains of a device are given back, zeros are written beside them; so many."""
    if grain == 1:
        zero_range(fd, start, end, Zeroing.GIVE_BACK)
        return 0
    low, high = (-(-start // grain) * grain, end // grain * grain) if grain else (start, start)
    if low >= high:
        low = high = start
    discard(fd, low, high)
    zero_range(fd, start, low, Zeroing.KEEP_SPACE)
    zero_range(fd, high, end, Zeroing.KEEP_SPACE)
    return low - start + end - high
