"""Changing the content of a frozen moment: a clone of the moment takes changes, and can be kept in its place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Protocol, runtime_checkable

from lamella.base.errors import SourceAtRisk, SourceError
from lamella.sources.base import FrozenVolume, Source
from lamella.sources.zeroing import Zeroing, zero_range

Change = tuple[int, bytes | int]
"""An offset in bytes, and what stands there now: bytes, or the length of a range that reads as zero and is given back.
"""


@runtime_checkable
class _Cloning(Protocol):
    """A source whose moments are clones of files (`ClonedSource`)."""

    def clone(self, image: int, undone: ExitStack, edit: Callable[[int], None]) -> FrozenVolume | str: ...


@runtime_checkable
class _Cloned(Protocol):
    """A moment that is a clone (`FrozenClone`)."""

    @property
    def descriptor(self) -> int: ...


def edited(source: Source, frozen: FrozenVolume, changes: Iterable[Change], held: ExitStack) -> FrozenVolume:
    """A clone of a frozen moment with these changes: a moment of its own, undone with `held` unless it is kept.

    The moment it is made from stays as it is. Raises SourceError where there can be no such clone.
    """
    if not isinstance(source, _Cloning) or not isinstance(frozen, _Cloned) or not frozen.checkpoint:
        raise SourceError(no_clone(source))
    made = source.clone(frozen.descriptor, held, lambda fd: write_changes(fd, changes))
    if isinstance(made, str):
        raise SourceError(f"its clone cannot be cloned: {made}")
    return made


def can_be_edited(source: Source, frozen: FrozenVolume) -> bool:
    """Whether `edited` can work."""
    return isinstance(source, _Cloning) and isinstance(frozen, _Cloned) and bool(frozen.checkpoint)


def no_clone(source: Source) -> str:
    """Why it cannot."""
    return f"the {source.driver} driver makes no clone here that could be changed"


def write_changes(fd: int, changes: Iterable[Change]) -> None:
    """Change an open clone. Raises SourceError; SourceAtRisk if there is no room for the changes."""
    try:
        for offset, content in changes:
            if isinstance(content, int):
                zero_range(fd, offset, offset + content, Zeroing.GIVE_BACK)
                continue
            left = memoryview(content)
            while left:
                written = os.pwrite(fd, left, offset)
                offset += written
                left = left[written:]
        os.fsync(fd)
    except OSError as reason:
        raise SourceAtRisk(f"the clone cannot be changed: {reason.strerror}") from reason
