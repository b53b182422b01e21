"""Which chunks of a tree's volume are in use, and where something new goes. Pure.

Small contents share a chunk and never cross its end; a large one has whole chunks of its own, one after the other. So
a chunk is either full of small contents, of which this counts the bytes that are still needed, or part of a large
content, of which this counts the entries that use it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lamella.base.chunkset import ChunkSet

_SMALL = 4
"""Small is what fits so often into a chunk."""
_GAPS_TRIED = 64


class Space:
    """The use of a volume with chunks of `2 ** log2` bytes. Chunk 0 belongs to the superblock."""

    def __init__(self, log2: int) -> None:
        self.log2 = log2
        self.shared: dict[int, int] = {}
        """Chunk of small contents -> bytes of them that are needed."""
        self.large: dict[int, tuple[int, int]] = {}
        """First chunk of a large content -> its chunks, and how many entries use it."""

    def is_small(self, length: int) -> bool:
        """Whether a content of so many bytes shares a chunk."""
        return length * _SMALL <= 1 << self.log2

    def chunks(self, length: int) -> int:
        """Chunks of a large content."""
        return -(-length >> self.log2)

    def retain(self, address: int, length: int) -> None:
        """One entry more uses a content."""
        chunk = address >> self.log2
        if not length:
            return
        if self.is_small(length):
            self.shared[chunk] = self.shared.get(chunk, 0) + length
        else:
            count, users = self.large.get(chunk, (self.chunks(length), 0))
            self.large[chunk] = (max(count, self.chunks(length)), users + 1)

    def release(self, address: int, length: int) -> None:
        """One entry less uses a content."""
        chunk = address >> self.log2
        if not length:
            return
        if self.is_small(length):
            left = self.shared.get(chunk, 0) - length
            if left > 0:
                self.shared[chunk] = left
            else:
                self.shared.pop(chunk, None)
            return
        count, users = self.large.get(chunk, (0, 0))
        if users > 1:
            self.large[chunk] = (count, users - 1)
        else:
            self.large.pop(chunk, None)

    def rewritten(self, address: int, length: int, new_length: int) -> bool:
        """Whether a large content's only entry can have its new content in the same place: then it has it."""
        if not length or self.is_small(length) or self.is_small(new_length):
            return False
        chunk = address >> self.log2
        count, users = self.large.get(chunk, (0, 0))
        if users != 1 or self.chunks(new_length) > count:
            return False
        self.large[chunk] = (self.chunks(new_length), 1)
        return True

    def used(self) -> ChunkSet:
        """Every chunk in use."""
        found = ChunkSet([(0, 1)])
        for chunk in self.shared:
            found.add(chunk, chunk + 1)
        for chunk, (count, _) in self.large.items():
            found.add(chunk, chunk + count)
        return found

    @property
    def end(self) -> int:
        """The chunk behind the last one in use."""
        large = (chunk + count for chunk, (count, _) in self.large.items())
        return max(1, max(self.shared, default=0) + 1, max(large, default=1))

    def thin(self) -> set[int]:
        """Chunks of small contents of which three quarters are needed no more, or never were."""
        return {chunk for chunk, needed in self.shared.items() if self.is_small(needed)}


class Allocator:
    """Gives out chunks that nothing uses, the lowest first."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._gaps = list(_gaps(space.used().runs()))
        self._gaps.reverse()
        self._open = self._room = 0

    def close_chunk(self) -> None:
        """What comes next begins a chunk."""
        self._room = 0

    def place(self, length: int) -> int:
        """The address for a content of so many bytes, which is in use from now on."""
        log2 = self._space.log2
        if not length:
            return 0
        if not self._space.is_small(length):
            address = self._take(self._space.chunks(length)) << log2
        else:
            if length > self._room:
                self._open, self._room = self._take(1) << log2, 1 << log2
            address = self._open
            self._open, self._room = self._open + length, self._room - length
        self._space.retain(address, length)
        return address

    def _take(self, count: int) -> int:
        """So many chunks in a row."""
        tried = range(len(self._gaps) - 1, max(len(self._gaps) - 1 - _GAPS_TRIED, 0), -1)
        number = next((at for at in tried if self._gaps[at][1] - self._gaps[at][0] >= count), 0)
        first, end = self._gaps[number]
        if end - first > count:
            self._gaps[number] = (first + count, end)
        else:
            del self._gaps[number]
        return first


_ENDLESS = 1 << 62


def _gaps(used: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    end = 0
    for first, stop in used:
        if first > end:
            yield end, first
        end = stop
    yield end, _ENDLESS
