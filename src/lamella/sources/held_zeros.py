"""The ranges of a target that hold data where the volume has zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lamella.base.errors import SourceError

_LOOKED_AT = 1 << 20


def not_zero(
    read_into: Callable[[int, memoryview], None], stored: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """The parts of what is stored that hold anything but zeros, each at most 1 MiB.

    A file system that cannot punch gets the zeros written, and most are there already.
    """
    buffer = bytearray(_LOOKED_AT)
    for low, high in stored:
        for offset in range(low, high, _LOOKED_AT):
            stop = min(offset + _LOOKED_AT, high)
            view = memoryview(buffer)[: stop - offset]
            try:
                read_into(offset, view)
                is_zero = view.tobytes() == bytes(len(view))
            except SourceError:  # what the disk cannot read any more is no reason to keep it
                is_zero = False
            if not is_zero:
                yield offset, stop
