"""The `stream` driver: a volume that comes once, from its beginning to its end (docs/decisions/0057).

Standard input, or what a command of the user writes. Nobody knows its size before the end, unless somebody says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from lamella.base.errors import SourceError, shown_bytes
from lamella.base.extents import Extent
from lamella.run.user_command import UserCommand, fill
from lamella.sources.base import Consistency
from lamella.sources.driver import Untracked, UntrackedMoment

DRIVER: Final = "stream"
_STANDARD_INPUT: Final = 0


@dataclass(frozen=True, slots=True)
class StreamSource(Untracked):
    """A stream: `command` is run by a shell; empty, it is standard input."""

    name: str
    machine: str
    command: str = ""
    locale: str = ""
    """LC_ALL of the command; empty: none."""
    size: int | None = None
    """Bytes that it must have; None: as many as come."""
    claimed_ms: int | None = None
    """The moment that it shows, as its user says, in UTC milliseconds."""
    driver: str = DRIVER

    @property
    def identity(self) -> bytes:
        """`stream:MACHINE:NAME`: a command may change, and a stream has no place."""
        return f"{DRIVER}:{self.machine}:{self.name}".encode("utf-8", "surrogateescape")

    @property
    def default_name(self) -> str:
        """The name that its user gave."""
        return self.name

    @contextmanager
    def freeze(self) -> Iterator[FrozenStream]:
        """Nothing is read, and no command started, before `pieces` is asked for the first piece."""
        frozen = FrozenStream(self)
        try:
            yield frozen
        finally:
            frozen.close()


class FrozenStream(UntrackedMoment):
    """A stream as it is read. `pieces` reads; `read_into` hands out each piece once."""

    why_untracked = "a stream keeps no record of changes"

    def __init__(self, source: StreamSource) -> None:
        self._source = source
        self._open = ExitStack()
        self._held: dict[int, bytearray] = {}
        self._begun = False
        self.ended = False
        """All of it came, and whoever wrote it succeeded."""
        self.read_bytes = 0
        """Bytes that have come."""

    @property
    def size(self) -> int:
        """Bytes of the volume; as many as have come, unless its size was given."""
        return self.read_bytes if self._source.size is None else self._source.size

    @property
    def known_size(self) -> int | None:
        """Bytes that it must have, if that was given."""
        return self._source.size

    @property
    def claimed_ms(self) -> int | None:
        """The moment that it shows, as its user says."""
        return self._source.claimed_ms

    def consistency(self) -> Consistency:
        """UNKNOWN: what was piped in may have been read anyhow."""
        return Consistency.UNKNOWN

    def allocated(self) -> Iterator[Extent]:
        """Everything that came."""
        if self.size:
            yield Extent(0, self.size)

    def pieces(self, length: int) -> Iterator[Extent]:
        """Read the stream from its beginning: where each piece of `length` bytes lies, only the last one shorter.

        A command is run again each time. Raises SourceError if the stream is empty, has not the size it must have, or
        the command fails; also if standard input is to be read a second time.
        """
        self.close()
        again, self._begun, self.ended, self.read_bytes = self._begun, True, False, 0
        command = self._started(again)
        while piece := self._piece(command, length):
            start, self.read_bytes = self.read_bytes, self.read_bytes + len(piece)
            if self._source.size is not None and self.read_bytes > self._source.size:
                raise self._failed(f"is longer than the {shown_bytes(self._source.size)} of --size")
            self._held[start] = piece
            yield Extent(start, self.read_bytes)
        if command is not None:
            command.finish()
        if self.read_bytes != self.size or not self.read_bytes:
            short = f"after {shown_bytes(self.read_bytes)}"
            if self._source.size is not None:
                left = shown_bytes(self._source.size - self.read_bytes)
                short = f"{left} before the {shown_bytes(self._source.size)} of --size"
            raise self._failed(f"ended {short}")
        self.ended = True
        self._open.close()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the piece at `offset`, which is forgotten then. Raises SourceError for any other."""
        piece = self._held.pop(offset, b"")
        if len(piece) != len(buffer):
            raise self._failed("can be read in order only")
        buffer[:] = piece

    def close(self) -> None:
        """End the command, if it still runs."""
        self._open.close()
        self._held.clear()

    def _started(self, again: bool) -> UserCommand | None:
        if self._source.command:
            return self._open.enter_context(UserCommand(self._source.command, self._source.locale, SourceError))
        if again:
            raise self._failed("can be read only once: save it to one repository, then: lamella copy")
        return None

    def _piece(self, command: UserCommand | None, length: int) -> bytearray:
        piece = bytearray(length)
        try:
            with memoryview(piece) as view:
                count = fill(_STANDARD_INPUT, view) if command is None else command.read(view)
        except OSError as reason:
            raise self._failed(f"cannot be read: {reason.strerror or reason}") from reason
        del piece[count:]
        return piece

    def _failed(self, how: str) -> SourceError:
        what = "the output of the command" if self._source.command else "standard input"
        return SourceError(f"{what} {how}", obj=self._source.name)
