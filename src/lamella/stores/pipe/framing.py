"""Reading and writing frames on file descriptors, bounded both ways (lamella.stores.pipe.frames)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping

from lamella.stores.pipe.frames import HEADER, ProtocolError

_BUFFER = 1 << 16


class FrameSource:
    """The frames of one descriptor, for one thread.

    `wait` returns when the descriptor can be read, and raises when nothing is to be waited for any more.
    """

    def __init__(self, descriptor: int, limits: Mapping[int, int], wait: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._limits = limits
        self._wait = wait
        self._buffer = memoryview(bytearray(_BUFFER))
        self._start = self._end = 0

    def header(self) -> tuple[int, int, int]:
        """Length of the payload that follows, kind and request of the next frame.

        Raises EOFError at the end, ProtocolError for a kind that has no place here or a payload longer than its kind
        may have, OSError.
        """
        if self._start == self._end:
            self._fill()
        length, kind, request = HEADER.unpack(self.exactly(HEADER.size))
        limit = self._limits.get(kind)
        if limit is None:
            raise ProtocolError(f"a frame of unknown kind {kind}")
        if length > limit:
            raise ProtocolError(f"a frame of {length} bytes, where {limit} is the limit")
        return length, kind, request

    def exactly(self, length: int) -> bytearray:
        """The next `length` bytes; the caller has bounded it. Raises EOFError if they end before, OSError."""
        content = bytearray(length)
        self.into(memoryview(content))
        return content

    def into(self, target: memoryview) -> None:
        """Fill `target` with the next bytes. Raises EOFError if they end before, OSError."""
        while target:
            taken = min(len(target), self._end - self._start)
            if taken:
                target[:taken] = self._buffer[self._start : self._start + taken]
                self._start += taken
            elif len(target) >= _BUFFER:  # straight to where it belongs
                self._wait()
                taken = os.readv(self._descriptor, [target])
                if not taken:
                    raise EOFError
            else:
                self._fill()
            target = target[taken:]

    def rest(self) -> bytes:
        """What was read already and not taken yet: for messages about a side that speaks something else."""
        return bytes(self._buffer[self._start : self._end])

    def skip(self, length: int) -> None:
        """Pass over the next bytes."""
        while length:
            taken = min(length, _BUFFER)
            self.exactly(taken)
            length -= taken

    def _fill(self) -> None:
        self._wait()
        self._start, self._end = 0, os.readv(self._descriptor, [self._buffer])
        if not self._end:
            raise EOFError


class FrameSink:
    """Writes frames to one descriptor; threads take turns, a frame at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._turn = threading.Lock()
        self.frames = 0
        """Frames written: two equal looks at it mean that nothing was said in between."""

    def shut(self, seconds: float) -> bool:
        """Write nothing any more; False if a thread is still stuck in a write after that time."""
        if not self._turn.acquire(timeout=seconds):
            return False
        self._descriptor = -1
        self._turn.release()
        return True

    def raw(self, content: bytes) -> None:
        """Write bytes that are no frame. Raises OSError."""
        with self._turn:
            self._write([content])

    def frame(self, kind: int, request: int, payload: bytes | bytearray | memoryview = b"") -> None:
        """Write one frame. Raises OSError."""
        with self._turn:
            self._write([HEADER.pack(len(payload), kind, request), payload])
            self.frames += 1

    def frame_unless_busy(self, kind: int) -> None:
        """Write an empty frame of request 0, unless another one is just being written. Raises OSError."""
        if self._turn.acquire(blocking=False):
            try:
                self._write([HEADER.pack(0, kind, 0)])
                self.frames += 1
            finally:
                self._turn.release()

    def _write(self, parts: list[bytes | bytearray | memoryview]) -> None:
        written = os.writev(self._descriptor, parts)
        for part in parts:
            rest = memoryview(part)[written:]
            written = max(0, written - len(part))
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
