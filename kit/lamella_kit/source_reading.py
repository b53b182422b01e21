"""The reading half of the source contract as a test suite; lamella_kit.source_contract has the whole."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path

import pytest

from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, SourceError
from lamella.sources.base import Consistency, FrozenVolume, Source
from lamella_kit.volumes import ChangingVolume, FileVolume

KIB = 1 << 10
MIB = 1 << 20
GRAIN = 64 * KIB
"""Bytes; the finest grid a delta is asked for."""

PIECE = 1 << 20


@lru_cache(maxsize=32)
def pattern(length: int, seed: int) -> bytes:
    """Return bytes without zeros whose blocks all differ, and differ from those of other seeds."""
    blocks = (b"%15x\n" % (block << 16 | seed) for block in range(-(-length // 16)))
    return b"".join(blocks)[:length]


def whole(frozen: FrozenVolume) -> bytes:
    """Read all of a frozen volume, in pieces of 1 MiB."""
    content = bytearray(frozen.size)
    view = memoryview(content)
    for offset in range(0, frozen.size, PIECE):
        frozen.read_into(offset, view[offset : offset + PIECE])
    return bytes(content)


def part(frozen: FrozenVolume, offset: int, length: int) -> bytes:
    """Read some of a frozen volume."""
    content = bytearray(length)
    frozen.read_into(offset, memoryview(content))
    return bytes(content)


def check_delta(delta: Delta, base: bytes, now: bytes, when: str = "") -> None:
    """Fail unless the delta is sound for these contents: it may say too much, never too little."""
    grain = delta.grain
    assert (delta.base_size, delta.size) == (len(base), len(now)), when
    assert not delta.changed & delta.zeroed, f"chunks are both changed and zero {when}"
    assert all(end * grain < len(now) + grain for _, end in (delta.changed | delta.zeroed).runs()), f"too long {when}"
    for chunk, offset in enumerate(range(0, len(now), grain)):
        content = now[offset : offset + grain]
        if chunk in delta.zeroed:
            assert not any(content), f"chunk {chunk} is called zero and is not {when}"
        elif chunk not in delta.changed:
            assert content == base[offset : offset + grain], f"chunk {chunk} changed, the delta does not say so {when}"


class SourceReading:
    """What holds for every source: subclass it and give it `make_source`, and `image` or `volume`."""

    sizes: tuple[int, ...] = (0, 1, 511, 4096, GRAIN - 1, GRAIN, GRAIN + 1, 3 * MIB + 12345)
    """Bytes; sizes that are tried. A kind of volume that rounds sizes need not try what it makes the same of."""

    def image(self) -> Path:
        """Return the path of the image file of the running test, which the test writes to; it holds something."""
        raise NotImplementedError

    def volume(self) -> ChangingVolume:
        """Return the volume of the running test: the image file, unless this is about another kind of volume."""
        return FileVolume(self.image())

    def make_source(self, image: Path) -> Source:
        """Return a new source for the volume at a path."""
        raise NotImplementedError

    def source_of(self, volume: ChangingVolume) -> Source:
        """Return a new source for a volume."""
        return self.make_source(volume.path)

    def filled(self, content: bytes) -> ChangingVolume:
        """Return the volume with this content, and nothing else."""
        volume = self.volume()
        volume.fill(content)
        return volume

    def test_size_and_bytes_are_those_of_the_volume(self) -> None:
        for size in self.sizes:
            volume = self.filled(pattern(size, 1))
            content = volume.content()
            assert content.rstrip(b"\0") == pattern(size, 1)
            with self.source_of(volume).freeze() as frozen:
                assert frozen.size == len(content)
                assert whole(frozen) == content
                assert isinstance(frozen.consistency(), Consistency)

    def test_any_range_can_be_read(self) -> None:
        volume = self.filled(pattern(300_000, 2))
        content = volume.content()
        with self.source_of(volume).freeze() as frozen:
            for offset, length in [(0, 1), (1, 4096), (4095, 2), (299_999, 1), (0, 300_000), (12_345, 100_000), (7, 0)]:
                assert part(frozen, offset, length) == content[offset : offset + length]

    def test_reading_beyond_the_end_is_an_error(self) -> None:
        volume = self.filled(pattern(5000, 3))
        end = len(volume.content())
        with self.source_of(volume).freeze() as frozen:
            for offset, length in [(0, end + 1), (end - 1, 2), (end, 1), (end + 1, 0), (1 << 50, 1), (-1, 1)]:
                with pytest.raises(SourceError):
                    part(frozen, offset, length)

    def test_reading_after_the_end_of_the_moment_is_an_error(self) -> None:
        with self.source_of(self.filled(pattern(5000, 3))).freeze() as frozen:
            pass
        with pytest.raises(SourceError):
            part(frozen, 0, 1)

    def test_many_threads_may_read(self) -> None:
        content = pattern(4 * MIB, 4)
        wrong: list[int] = []

        def read(first: int) -> None:
            places = range(first * 4096, len(content) - 4096, 17 * 4096)
            wrong.extend(at for at in places if part(frozen, at, 4096) != content[at : at + 4096])

        with self.source_of(self.filled(content)).freeze() as frozen:
            # A suite that outsiders run cannot borrow the threads of lamella.run.pipeline.
            threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        assert wrong == []

    def test_what_is_not_allocated_reads_as_zero(self) -> None:
        volume = self.filled(b"")
        pieces = {0: 4096, 5 * MIB + 4096: 8192, 9 * MIB: 1, 20 * MIB - 5000: 5000}
        volume.resize(30 * MIB + 3)
        for offset, length in pieces.items():
            volume.write(offset, pattern(length, 5))
        with self.source_of(volume).freeze() as frozen:
            content, found = whole(frozen), list(frozen.allocated())
        end = 0
        for extent in found:
            assert extent.start >= end, "the ranges must ascend and not overlap"
            assert not any(content[end : extent.start]), "data lies where nothing is allocated"
            end = extent.end
        assert end <= len(content)
        assert not any(content[end:]), "data lies where nothing is allocated"
        for offset, length in pieces.items():
            assert content[offset : offset + length] == pattern(length, 5)

    def test_an_empty_volume_has_nothing_allocated(self) -> None:
        with self.source_of(self.filled(b"")).freeze() as frozen:
            assert list(frozen.allocated()) == []

    def test_the_identity_stays_and_tells_volumes_apart(self) -> None:
        volume = self.filled(b"x")
        other = volume.sibling()
        other.fill(b"x")
        source = self.source_of(volume)
        assert source.identity == self.source_of(volume).identity != self.source_of(other).identity
        assert 0 < len(source.identity) <= 8192
        assert source.driver
        assert source.default_name

    def test_a_volume_made_anew_is_the_same_volume(self) -> None:
        volume = self.filled(b"old")
        identity = self.source_of(volume).identity
        volume.remove()
        volume.fill(b"new!")
        source = self.source_of(volume)
        assert source.identity == identity
        with source.freeze() as frozen:
            assert whole(frozen).rstrip(b"\0") == b"new!"

    def test_a_volume_that_vanished_cannot_be_frozen(self) -> None:
        volume = self.filled(b"x")
        source = self.source_of(volume)
        volume.remove()
        with pytest.raises(SourceError), source.freeze():
            pytest.fail("there is nothing to freeze")

    def test_an_error_inside_goes_through(self) -> None:
        source = self.source_of(self.filled(b"x"))
        for kind in (RuntimeError, KeyboardInterrupt):
            with pytest.raises(kind, match="inside"), source.freeze():
                raise kind("inside")

    def test_freezing_alone_keeps_nothing(self) -> None:
        source = self.source_of(self.filled(pattern(5000, 6)))
        with source.freeze():
            pass
        assert source.kept() == []

    def test_texts_that_name_no_moment(self) -> None:
        source = self.source_of(self.filled(b"x"))
        with source.freeze() as frozen:
            for text in NO_MOMENTS:
                with pytest.raises(CheckpointLost) as caught:
                    frozen.delta_since(text, GRAIN)
                assert caught.value.message, "the reason must be told"
                source.drop(text)


NO_MOMENTS = (
    "",
    "x",
    "{}",
    "[]",
    "null",
    "..",
    "/etc/passwd",
    "\0",
    "\ud800",
    "[" * 1000,
    "9" * 5000,
    "0123456789abcdef-01234567-1",
    "0123456789abcdef-01234567-1/../../x",
)
"""Texts that no driver may take for one of its moments."""
