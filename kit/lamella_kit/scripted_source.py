"""Sources that do what a test tells them: contents in memory, and real sources with something happening in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from lamella.base.errors import SourceError
from lamella.base.extents import Extent
from lamella.sources.base import Consistency, FrozenVolume, Source
from lamella.sources.driver import Untracked, UntrackedMoment

BeforeRead = Callable[[int, int], None]
"""Called with the number of the read, the first being 1, and its offset; may change things or raise."""


@dataclass(slots=True)
class ScriptedSource(Untracked):
    """A volume in memory called `name`; `content` may be replaced between runs, `extents` None means all of it."""

    name: str
    content: bytes
    extents: Sequence[Extent] | None = None
    seen: Consistency = Consistency.HALTED
    driver: str = "scripted"

    @property
    def identity(self) -> bytes:
        """Follows from the name."""
        return b"scripted:" + self.name.encode()

    @property
    def default_name(self) -> str:
        """The name."""
        return self.name

    @contextmanager
    def freeze(self) -> Iterator[FrozenVolume]:
        """The content as it is now."""
        yield _Frozen(self.content, self.extents, self.seen)


class _Frozen(UntrackedMoment):
    def __init__(self, content: bytes, extents: Sequence[Extent] | None, seen: Consistency) -> None:
        self._content = content
        self._extents = extents
        self._seen = seen

    @property
    def size(self) -> int:
        return len(self._content)

    def consistency(self) -> Consistency:
        return self._seen

    def allocated(self) -> Iterator[Extent]:
        if self._extents is not None:
            yield from self._extents
        elif self._content:
            yield Extent(0, len(self._content))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset < 0 or offset + len(buffer) > len(self._content):
            raise SourceError("read past the end of a scripted volume")
        buffer[:] = self._content[offset : offset + len(buffer)]


class DisturbedSource(Untracked):
    """A real source, with `before_read` called before each read of each frozen moment."""

    def __init__(self, inner: Source, before_read: BeforeRead) -> None:
        self._inner = inner
        self._before_read = before_read

    @property
    def driver(self) -> str:
        """That of the source inside."""
        return self._inner.driver

    @property
    def identity(self) -> bytes:
        """That of the source inside."""
        return self._inner.identity

    @property
    def default_name(self) -> str:
        """That of the source inside."""
        return self._inner.default_name

    def freeze(self) -> AbstractContextManager[FrozenVolume]:
        """Freeze the source inside."""
        return self._frozen()

    @contextmanager
    def _frozen(self) -> Iterator[FrozenVolume]:
        with self._inner.freeze() as frozen:
            yield _Disturbed(frozen, self._before_read)


class _Disturbed(UntrackedMoment):
    def __init__(self, inner: FrozenVolume, before_read: BeforeRead) -> None:
        self._inner = inner
        self._before_read = before_read
        self._mutex = threading.Lock()
        self._reads = 0

    @property
    def size(self) -> int:
        return self._inner.size

    def consistency(self) -> Consistency:
        return self._inner.consistency()

    def allocated(self) -> Iterator[Extent]:
        return self._inner.allocated()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._mutex:
            self._reads += 1
            number = self._reads
        self._before_read(number, offset)
        self._inner.read_into(offset, buffer)
