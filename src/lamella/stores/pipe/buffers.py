"""Memory for objects being received, used again: a fresh 16 MiB costs a page fault for every 4 KiB of it."""

from __future__ import annotations

import threading

_KEPT = 4
_LEAST_BYTES, _MOST_BYTES = 1 << 20, 24 << 20
"""Between them lie all packs. What is larger is rare, and a client must not make a server keep it."""


class Buffers:
    """A few buffers that are free, together 96 MiB at most. Any thread may take and give back."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._free: list[bytearray] = []

    def take(self, size: int) -> memoryview:
        """A buffer of exactly `size` bytes, which hold anything."""
        with self._mutex:
            for at, buffer in enumerate(self._free):
                if len(buffer) >= size >= _LEAST_BYTES:
                    del self._free[at]
                    return memoryview(buffer)[:size]
        return memoryview(bytearray(size))

    def give(self, view: memoryview) -> None:
        """Have the memory of a view from `take` back; nobody may look at the view any more."""
        buffer = view.obj
        if isinstance(buffer, bytearray) and _LEAST_BYTES <= len(buffer) <= _MOST_BYTES:
            with self._mutex:
                self._free = [buffer, *self._free][:_KEPT]
