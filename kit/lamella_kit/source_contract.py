"""The source contract as a test suite, for pytest: what every source must do (lamella.sources.base).

Subclass `SourceContract` for a driver that keeps moments, `ReadOnlySourceContract` for one that does not, and give it
`make_source`, and `image` for image files or `volume` for other kinds. The suite changes volumes as a guest would.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pytest

from lamella.base.errors import CheckpointLost, SourceError
from lamella.sources.base import Consistency, Source
from lamella.sources.kept_bytes import Remembering
from lamella_kit.image_changes import ImageChanges
from lamella_kit.source_changes import CHANGES, SIZE, overwrite
from lamella_kit.source_reading import GRAIN, KIB, MIB, SourceReading, check_delta, pattern, whole
from lamella_kit.volumes import ChangingVolume

ROUNDS = 6
READ_FOR_A_DELTA = 64 * KIB
"""Bytes that may be read from files to make a delta of `SIZE` bytes: records and tables, no data."""


class RandomChanges(Protocol):
    """Makes random changes to a volume; `done` counts them by name."""

    done: Counter[str]

    def change(self, count: int, earlier: Path | None = None) -> None:
        """Make `count` of them; some bring back what an earlier moment holds, where that is a file."""


class ReadOnlySourceContract(SourceReading):
    """The contract of a source that keeps no checkpoints."""

    def test_says_that_it_keeps_nothing(self) -> None:
        source = self.source_of(self.filled(b"x"))
        assert not source.tracks
        with source.freeze() as frozen:
            assert frozen.checkpoint == ""
            source.keep("")
        assert source.kept() == []


class SourceContract(SourceReading):
    """The whole contract; `checkpoint_file`, `most_changed` and `changes` may be overridden too."""

    small_sizes: tuple[int, ...] = (0, 1, 4096, GRAIN, GRAIN + 1, MIB)
    """Bytes; what a volume is made larger and smaller from and to, each with each."""

    def changes(self, volume: ChangingVolume, chance: random.Random) -> AbstractContextManager[RandomChanges]:
        """Return what makes random changes to a volume, of at most about `SIZE` bytes."""
        volume.remove()
        return ImageChanges(volume.path, chance, SIZE)

    def checkpoint_file(self, source: Source, checkpoint: str) -> Path | None:
        """Return the file that holds a checkpoint, if one does."""
        return None

    def most_changed(self, touched: int) -> int:
        """Return how many chunks a delta may hold at most after `touched` chunks of a volume were written."""
        return touched

    def bytes_read(self) -> int:
        """Return a count that grows with every byte of data that is read: those this process got by reading calls."""
        return _bytes_read()

    def base(self, source: Source) -> str:
        """Keep the present moment of a source; return its checkpoint."""
        with source.freeze() as frozen:
            source.keep(frozen.checkpoint)
            return frozen.checkpoint

    def test_says_that_it_keeps_moments(self) -> None:
        source = self.source_of(self.filled(b"x"))
        assert source.tracks
        with source.freeze() as frozen:
            assert frozen.checkpoint
            frozen.checkpoint.encode()

    # -- one moment -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", CHANGES)
    def test_a_frozen_volume_does_not_change(self, name: str) -> None:
        volume = self.filled(pattern(SIZE, 1))
        content = volume.content()
        with self.source_of(volume).freeze() as frozen:
            CHANGES[name](volume)
            assert frozen.size == len(content)
            assert whole(frozen) == content
            assert frozen.consistency() >= Consistency.LIVE

    def test_a_frozen_volume_outlives_the_volume(self) -> None:
        volume = self.filled(pattern(SIZE, 1))
        content = volume.content()
        with self.source_of(volume).freeze() as frozen:
            volume.remove()
            assert whole(frozen) == content

    def test_two_moments_at_once(self) -> None:
        volume = self.filled(b"first")
        before = volume.content()
        source = self.source_of(volume)
        with source.freeze() as first:
            volume.write(0, b"other")
            with source.freeze() as second:
                assert first.checkpoint != second.checkpoint
                assert (whole(first), whole(second)) == (before, volume.content())
                assert before != volume.content()
                assert source.kept() == [], "nothing was kept yet"
            assert whole(first) == before
        assert source.kept() == []

    # -- keeping ----------------------------------------------------------------------------------------------------

    def test_every_exit_path_undoes_the_moment(self) -> None:
        volume = self.filled(pattern(SIZE, 2))
        source = self.source_of(volume)
        for kind in (RuntimeError, KeyboardInterrupt, SystemError):
            with pytest.raises(kind), source.freeze():
                raise kind
            assert self.source_of(volume).kept() == []
        abandoned = source.freeze()
        abandoned.__enter__()
        del abandoned
        assert self.source_of(volume).kept() == []

    def test_a_kept_moment_stays_until_it_is_dropped(self) -> None:
        volume = self.filled(pattern(SIZE, 2))
        first = self.base(self.source_of(volume))
        volume.write(0, b"x")
        second = self.base(self.source_of(volume))
        source = self.source_of(volume)
        assert source.kept() == [first, second]
        source.drop(first)
        assert self.source_of(volume).kept() == [second]
        source.drop(first)
        assert source.kept() == [second]
        source.drop(second)
        assert source.kept() == []

    def test_what_was_kept_can_be_read_where_the_driver_says_so(self) -> None:
        volume = self.filled(pattern(SIZE, 2))
        content, checkpoint = volume.content(), self.base(self.source_of(volume))
        volume.write(0, b"changed since")
        source = self.source_of(volume)
        if not isinstance(source, Remembering):
            return
        with source.kept_bytes(checkpoint) as kept:
            found = bytearray(kept.size)
            kept.read_into(0, memoryview(found))
            assert found == content
        with source.freeze() as frozen, source.kept_bytes(checkpoint) as kept:
            kept.read_into(0, memoryview(found))
            assert found == content and whole(frozen) == volume.content(), "both at once, as a backup reads them"
        source.drop(checkpoint)
        with pytest.raises(CheckpointLost), source.kept_bytes(checkpoint):
            pass

    def test_a_moment_is_kept_when_an_error_follows(self) -> None:
        source = self.source_of(self.filled(b"x"))
        with pytest.raises(RuntimeError), source.freeze() as frozen:
            source.keep(frozen.checkpoint)
            raise RuntimeError
        assert source.kept() == [frozen.checkpoint]
        source.keep(frozen.checkpoint)
        assert source.kept() == [frozen.checkpoint]

    def test_a_moment_can_be_dropped_while_it_is_read(self) -> None:
        volume = self.filled(pattern(SIZE, 2))
        content, source = volume.content(), self.source_of(volume)
        with source.freeze() as frozen:
            source.keep(frozen.checkpoint)
            source.drop(frozen.checkpoint)
            assert source.kept() == []
            assert whole(frozen) == content
        assert source.kept() == []

    def test_what_was_dropped_cannot_be_kept(self) -> None:
        source = self.source_of(self.filled(b"x"))
        checkpoint = self.base(source)
        source.drop(checkpoint)
        with pytest.raises(SourceError):
            source.keep(checkpoint)

    def test_moments_of_another_source_are_left_alone(self) -> None:
        volume = self.filled(pattern(SIZE, 3))
        sibling = volume.sibling()
        sibling.fill(volume.content())
        source, other = self.source_of(volume), self.source_of(sibling)
        checkpoint = self.base(other)
        assert source.kept() == []
        source.drop(checkpoint)
        assert other.kept() == [checkpoint]
        with source.freeze() as frozen, pytest.raises(CheckpointLost):
            frozen.delta_since(checkpoint, GRAIN)
        other.drop(checkpoint)

    # -- deltas -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", CHANGES)
    def test_nothing_outside_a_delta_changed(self, name: str) -> None:
        volume = self.filled(pattern(SIZE, 4))
        content = volume.content()
        checkpoint = self.base(self.source_of(volume))
        CHANGES[name](volume)
        with self.source_of(volume).freeze() as frozen:
            now = whole(frozen)
            for grain in (GRAIN, MIB):
                delta = frozen.delta_since(checkpoint, grain)
                assert delta.grain == grain
                check_delta(delta, content, now)

    def test_small_and_empty_volumes(self) -> None:
        for before, after in itertools.product(self.small_sizes, repeat=2):
            volume = self.filled(pattern(before, 5))
            base = volume.content()
            source = self.source_of(volume)
            checkpoint = self.base(source)
            for content in (pattern(after, 5), pattern(after, 6)):
                volume.fill(content)
                with self.source_of(volume).freeze() as frozen:
                    delta = frozen.delta_since(checkpoint, GRAIN)
                    check_delta(delta, base, volume.content(), f"{before} to {after} bytes")
            source.drop(checkpoint)

    def test_a_delta_is_small_when_little_changed(self) -> None:
        volume = self.filled(pattern(SIZE, 7))
        checkpoint = self.base(self.source_of(volume))
        touched = {3, 11, 12, 30, 40, 64}
        for chunk in touched:
            volume.write(chunk * GRAIN + 8192, b"x" * 4096)
        with self.source_of(volume).freeze() as frozen:
            delta = frozen.delta_since(checkpoint, GRAIN)
            assert all(chunk in delta.changed for chunk in touched)
            assert len(delta.changed) <= self.most_changed(len(touched))

    def test_a_delta_reads_no_data(self) -> None:
        volume = self.filled(pattern(SIZE, 7))
        checkpoint = self.base(self.source_of(volume))
        volume.write(0, pattern(SIZE // 2, 8))
        with self.source_of(volume).freeze() as frozen:
            before = self.bytes_read()
            frozen.delta_since(checkpoint, GRAIN)
            assert self.bytes_read() - before < READ_FOR_A_DELTA

    def test_several_bases_of_one_volume(self) -> None:
        volume = self.filled(pattern(SIZE, 0))
        bases: dict[str, bytes] = {}
        for number in range(1, 4):
            bases[self.base(self.source_of(volume))] = volume.content()
            volume.write(number * 300_000, pattern(70_000, number))
        with self.source_of(volume).freeze() as frozen:
            for checkpoint, content in bases.items():
                check_delta(frozen.delta_since(checkpoint, GRAIN), content, whole(frozen))

    def test_a_delta_in_the_moment_that_is_kept(self) -> None:
        volume = self.filled(pattern(SIZE, 9))
        content, source = volume.content(), self.source_of(volume)
        with source.freeze() as frozen:
            delta = frozen.delta_since(frozen.checkpoint, GRAIN)
            check_delta(delta, content, content)

    @pytest.mark.parametrize("seed", range(3))
    def test_random_changes(self, seed: int) -> None:
        """Each moment is compared with all that are kept; the oldest is dropped, so that its space is used again."""
        chance = random.Random(seed)
        volume = self.volume()
        bases: dict[str, bytes] = {}
        earlier: Path | None = None
        with self.changes(volume, chance) as changes:
            for number in range(ROUNDS):
                source = self.source_of(volume)
                newest = self.base(source)
                bases[newest] = volume.content()
                changes.change(chance.choice([1, 3, 10]), earlier)
                with self.source_of(volume).freeze() as frozen:
                    now = whole(frozen)
                    assert now == volume.content(), f"seed {seed}, round {number}"
                    for text, content in bases.items():
                        delta = frozen.delta_since(text, chance.choice([GRAIN, 4 * GRAIN]))
                        check_delta(delta, content, now, f"seed {seed}, round {number}, {dict(changes.done)}")
                earlier = self.checkpoint_file(source, newest)
                if len(bases) > 2:
                    oldest = next(iter(bases))
                    del bases[oldest]
                    source.drop(oldest)

    # -- moments that are not what they were ------------------------------------------------------------------------

    def test_a_dropped_moment_is_lost(self) -> None:
        volume = self.filled(pattern(SIZE, 1))
        source = self.source_of(volume)
        checkpoint = self.base(source)
        source.drop(checkpoint)
        self.assert_lost(volume, checkpoint)
        self.base(source)
        self.assert_lost(volume, checkpoint)

    def test_a_text_that_differs_anywhere_names_nothing(self) -> None:
        volume = self.filled(pattern(SIZE, 1))
        checkpoint = self.base(self.source_of(volume))
        altered = {checkpoint[:at] + other + checkpoint[at + 1 :] for at in range(len(checkpoint)) for other in "0z"}
        altered |= {checkpoint[:at] for at in range(len(checkpoint))} | {checkpoint + "x", checkpoint * 2}
        with self.source_of(volume).freeze() as frozen:
            for text in altered - {checkpoint}:
                with pytest.raises(CheckpointLost):
                    frozen.delta_since(text, GRAIN)

    @pytest.mark.parametrize("how", ["edited", "edited in secret", "cut", "copied", "made anew", "exchanged", "gone"])
    def test_a_moment_tampered_with_is_lost(self, how: str) -> None:
        volume = self.filled(pattern(SIZE, 1))
        source = self.source_of(volume)
        checkpoint = self.base(source)
        file = self.checkpoint_file(source, checkpoint)
        if file is None:
            pytest.skip("the moments of this driver are no files")
        tamper(file, how)
        self.assert_lost(volume, checkpoint)

    def test_a_moment_edited_before_its_delta_can_still_be_dropped(self) -> None:
        source = self.source_of(self.filled(pattern(SIZE, 1)))
        checkpoint = self.base(source)
        file = self.checkpoint_file(source, checkpoint)
        if file is None:
            pytest.skip("the moments of this driver are no files")
        tamper(file, "edited")
        source.drop(checkpoint)
        assert not file.exists()

    def assert_lost(self, volume: ChangingVolume, checkpoint: str) -> None:
        """Fail unless no delta can be had from this moment."""
        with self.source_of(volume).freeze() as frozen, pytest.raises(CheckpointLost) as caught:
            frozen.delta_since(checkpoint, GRAIN)
        assert caught.value.message


def tamper(file: Path, how: str) -> None:
    """Do to a file of a driver what nobody should, and leave its name, size and time stamps as far as one can."""
    before = file.stat()
    file.chmod(0o600)
    if how == "gone":
        file.unlink()
        return
    if how == "cut":
        os.truncate(file, 1)
    elif how.startswith("edited"):
        overwrite(file, 100, b"!")
    else:
        aside = file.with_name("aside")
        if how != "made anew":
            shutil.copyfile(file, aside)
        else:
            aside.write_bytes(pattern(before.st_size, 99))
        if how == "exchanged":
            file.rename(file.with_name("before"))
        aside.rename(file)
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # stamps are coarse
        os.utime(file)
    if how != "edited":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    file.chmod(before.st_mode & 0o777)


def _bytes_read() -> int:
    """Bytes this process got from reading calls so far (proc(5), io: rchar)."""
    lines = Path("/proc/self/io").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith("rchar:")).split()[1])
