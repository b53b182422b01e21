"""The `file` driver on real files and devices."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamella.base.clock import now_ms
from lamella.base.errors import SourceError
from lamella.base.extents import Extent
from lamella.run.spawn import run
from lamella.sources.base import Consistency, FrozenVolume
from lamella.sources.file import FileSource, holds_image
from lamella.sources.frozen_file import FrozenFile
from lamella.sources.in_place import PIECE, ReadTwice
from lamella.sources.page_cache import PageCache
from lamella_kit.image_files import loop_device, partition, sparse_file
from tests.unit.real_devices import need_devices

MACHINE = "00112233445566ff"
MIB = 1 << 20
LATER = 10_000
"""Milliseconds after which a file's stamps are old enough to be believed."""


def source(path: Path) -> FileSource:
    """The source, opened by a clock that stands far enough behind the file's last change."""
    return FileSource(path, MACHINE, clock=lambda: now_ms() + LATER)


def content_by_extents(volume: FrozenVolume, extents: list[Extent]) -> bytes:
    """The volume as a backup sees it: what is not allocated is zero."""
    content = bytearray(volume.size)
    for extent in extents:
        volume.read_into(extent.start, memoryview(content)[extent.start : extent.end])
    return bytes(content)


def read_all(path: Path) -> bytes:
    with source(path).freeze() as volume:
        return content_by_extents(volume, list(volume.allocated()))


def test_names_and_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = sparse_file(tmp_path / "my.disk.img", 10, {})
    link = tmp_path / "link.raw"
    link.symlink_to(image)
    monkeypatch.chdir(tmp_path)
    expected = b"file:" + MACHINE.encode() + b":" + os.fsencode(tmp_path.resolve()) + b"/my.disk.img"
    assert source(image).identity == source(Path("./my.disk.img")).identity == source(link).identity == expected
    assert [source(path).default_name for path in (image, link)] == ["my.disk", "link"]


def test_names_that_are_not_text_have_an_identity(tmp_path: Path) -> None:
    image = tmp_path / os.fsdecode(b"\xff\xfe.img")
    image.write_bytes(b"abc")
    assert source(image).identity.endswith(b"/\xff\xfe.img")
    assert read_all(image) == b"abc"


def test_the_machine_must_be_a_hash(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="machine"):
        FileSource(tmp_path, "host:1")


def test_only_the_parts_with_data_are_named(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", 64 * MIB + 5, {8 * MIB: b"x" * MIB, 64 * MIB: b"tail!"})
    with source(image).freeze() as volume:
        extents = list(volume.allocated())
        assert sum(extent.length for extent in extents) < 4 * MIB
        assert extents[-1].end == volume.size == 64 * MIB + 5
        assert content_by_extents(volume, extents) == image.read_bytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(0, 300_000),
    pieces=st.dictionaries(st.integers(0, 299_999), st.binary(min_size=1, max_size=9000), max_size=6),
)
def test_what_is_not_named_is_zero(size: int, pieces: dict[int, bytes], tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", size, {at: piece[: size - at] for at, piece in pieces.items() if at < size})
    assert read_all(image) == image.read_bytes()


def test_an_empty_file_has_nothing(tmp_path: Path) -> None:
    with source(sparse_file(tmp_path / "a", 0, {})).freeze() as volume:
        assert (volume.size, list(volume.allocated())) == (0, [])


def test_a_file_of_nothing_but_a_hole(tmp_path: Path) -> None:
    with source(sparse_file(tmp_path / "a", MIB, {})).freeze() as volume:
        assert (volume.size, list(volume.allocated())) == (MIB, [])


def test_data_written_into_holes_just_before_is_seen(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", 4 * MIB, {})
    expected = bytearray(4 * MIB)
    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        for turn in range(60):
            offset = (turn * 2654435761) % (4 * MIB - 16)
            text = b"%016d" % turn
            if turn % 2:
                mapped[offset : offset + 16] = text
            else:
                os.pwrite(file.fileno(), text, offset)
            expected[offset : offset + 16] = text
            assert read_all(image) == expected, f"write {turn} at {offset} was not seen"


class NoHoleMap(FrozenFile):
    """A file on a file system that cannot flush, so that its hole map means nothing."""

    def _flush(self) -> bool:
        return False


def test_without_a_flush_holes_are_not_believed(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", 3 * MIB, {MIB: b"x"})
    with image.open("rb") as file:
        assert list(NoHoleMap(image, file.fileno(), now_ms()).allocated()) == [Extent(0, 3 * MIB)]


def test_a_file_that_did_not_change_shows_one_moment(tmp_path: Path) -> None:
    with source(sparse_file(tmp_path / "a", MIB, {5: b"x"})).freeze() as volume:
        volume.read_into(0, memoryview(bytearray(MIB)))
        assert volume.consistency() is Consistency.LIVE


def test_a_file_changed_just_before_is_of_unknown_consistency(tmp_path: Path) -> None:
    with FileSource(sparse_file(tmp_path / "a", MIB, {5: b"x"}), MACHINE).freeze() as volume:
        assert volume.consistency() is Consistency.UNKNOWN


def age(path: Path) -> None:
    os.utime(path, (1_000_000_000, 1_000_000_000))


def test_a_write_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", MIB, {})
    age(image)
    with source(image).freeze() as volume:
        with image.open("r+b") as file:
            file.write(b"new")
        assert volume.consistency() is Consistency.CHANGED


def test_a_store_through_an_old_dirty_mapping_is_noticed(tmp_path: Path) -> None:
    if run(["stat", "--file-system", "--format=%T", str(tmp_path)], timeout_seconds=20) == b"tmpfs\n":
        pytest.skip("tmpfs keeps no stamp of stores through a mapping")
    image = sparse_file(tmp_path / "a", MIB, {0: b"x" * MIB})
    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = 1  # the page is writable and dirty from here on
        age(image)
        with source(image).freeze() as volume:
            mapped[1] = 2
            assert volume.consistency() is Consistency.CHANGED


def test_a_longer_file_is_refused_at_the_end(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", MIB, {})
    with source(image).freeze() as volume:
        os.truncate(image, MIB + 1)
        volume.read_into(0, memoryview(bytearray(MIB)))
        with pytest.raises(SourceError, match=r"became .* longer"):
            volume.consistency()


def test_what_was_added_after_opening_is_no_part_of_the_volume(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", MIB + 10, {MIB: b"x" * 10})
    with source(image).freeze() as volume:
        with image.open("ab") as file:
            file.write(b"y" * MIB)
            os.fsync(file.fileno())
        assert list(volume.allocated()) == [Extent(MIB, MIB + 10)]


def test_a_shorter_file_fails_the_read_and_the_end(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", MIB, {0: b"x" * MIB})
    with source(image).freeze() as volume:
        os.truncate(image, 1000)
        volume.read_into(0, memoryview(bytearray(1000)))
        with pytest.raises(SourceError, match=r"became shorter .* offset 1000"):
            volume.read_into(500, memoryview(bytearray(1000)))
        assert all(extent.end <= MIB for extent in volume.allocated())
        with pytest.raises(SourceError, match=r"became .* shorter"):
            volume.consistency()


def test_a_removed_file_vanished(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", MIB, {})
    with source(image).freeze() as volume:
        image.unlink()
        with pytest.raises(SourceError, match="vanished"):
            volume.consistency()


def test_a_replaced_file_is_told(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", MIB, {})
    with source(image).freeze() as volume:
        sparse_file(tmp_path / "b", MIB, {}).replace(image)
        with pytest.raises(SourceError, match="replaced"):
            volume.consistency()


class BadSector(FrozenFile):
    """A volume whose bytes from `bad` on cannot be read; no real device here can be made to fail."""

    bad = 10_000

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        if offset >= self.bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super()._read_some(offset, buffer[: self.bad - offset])


def test_a_read_error_names_where(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", 20_000, {0: b"x" * 20_000})
    with image.open("rb") as file:
        volume = BadSector(image, file.fileno(), now_ms())
        volume.read_into(0, memoryview(bytearray(10_000)))
        with pytest.raises(SourceError, match=r"offset 10000: Input/output error"):
            volume.read_into(4096, memoryview(bytearray(8192)))


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (9, 2), (10, 1), (11, 0)])
def test_nothing_is_read_beyond_the_frozen_size(offset: int, length: int, tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", 10, {})
    with source(image).freeze() as volume:
        os.truncate(image, 100)
        with pytest.raises(SourceError, match="beyond"):
            volume.read_into(offset, memoryview(bytearray(length)))


def test_after_the_end_a_read_fails_although_the_descriptor_number_is_in_use_again(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", 10, {})
    with source(image).freeze() as volume:
        pass
    with image.open("rb"), pytest.raises(SourceError):
        volume.read_into(0, memoryview(bytearray(10)))


@pytest.fixture
def odd_things(tmp_path: Path) -> Iterator[dict[str, Path]]:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dir").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        yield {
            "named pipe": tmp_path / "pipe",
            "directory": tmp_path / "dir",
            "socket": tmp_path / "socket",
            "character device": Path("/dev/null"),
        }


@pytest.mark.parametrize("kind", ["named pipe", "directory", "socket", "character device"])
def test_what_holds_no_volume_is_refused(kind: str, odd_things: dict[str, Path]) -> None:
    with pytest.raises(SourceError, match=f"is a {kind}"), source(odd_things[kind]).freeze():
        pass


@pytest.mark.parametrize("piece", [4 * MIB, MIB, 65536])
@pytest.mark.parametrize("reader", ["one place", "in order", "here and there"])
def test_reading_leaves_the_page_cache_as_it_was(tmp_path: Path, reader: str, piece: int) -> None:
    """Readers that are not advised leave marks of readahead, which would take the kernel through all of the file."""
    if run(["stat", "--file-system", "--format=%T", str(tmp_path)], timeout_seconds=20) == b"tmpfs\n":
        pytest.skip("files on tmpfs are nowhere but in memory")
    size = 64 * MIB
    image = sparse_file(tmp_path / "a", size, {0: os.urandom(size)})
    with image.open("rb") as file:
        fd = file.fileno()
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        match reader:
            case "one place":
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
                os.pread(fd, MIB, 5 * MIB)
            case "in order":
                for offset in range(0, 8 * MIB, 128 * 1024):
                    os.pread(fd, 128 * 1024, offset)
            case _:
                for offset in range(0, size, 16 * MIB):
                    for place in range(offset, offset + 65536, 16384):
                        os.pread(fd, 16384, place)
        cache = PageCache(fd, size)
        before = _quiet(cache, size)
        assert 0 < before.count(1) < size // 4096
        with source(image).freeze() as volume:
            for offset in range(0, size, piece):
                volume.read_into(offset, memoryview(bytearray(piece)))
            volume.read_into(size - 5000, memoryview(bytearray(5000)))
        assert cache.resident(0, size) == before
        cache.close()


def _quiet(cache: PageCache, size: int) -> bytes:
    """The pages in memory, when nothing is being read any more."""
    seen, now = b"", cache.resident(0, size)
    while now != seen:
        time.sleep(0.2)
        seen, now = now, cache.resident(0, size)
    return now


def test_looking_at_what_a_file_is_leaves_the_page_cache_as_it_was(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", MIB, {0: b"QFI\xfb" + os.urandom(MIB - 4)})
    with image.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        cache = PageCache(file.fileno(), MIB)
        before = cache.resident(0, MIB)
        assert holds_image(image) and not holds_image(tmp_path)
        assert cache.resident(0, MIB) == before
        cache.close()


@pytest.mark.parametrize("changed", [0, 40, 100])
def test_pieces_are_read_twice(changed: int) -> None:
    content = bytearray(os.urandom(200 * PIECE))

    def read_into(offset: int, buffer: memoryview) -> None:
        buffer[:] = content[offset : offset + len(buffer)]

    twice = ReadTwice()
    for offset in range(0, len(content), 2 * PIECE):
        twice.saw(offset, memoryview(content)[offset : offset + 2 * PIECE])
    for chunk in range(changed):
        content[chunk * 2 * PIECE : (chunk + 1) * 2 * PIECE : 1000] = bytes(-(-2 * PIECE // 1000))
    assert twice.differs(read_into) is bool(changed)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"), source(tmp_path / "a").freeze():
        pass


def test_freezing_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", 10, {})
    before = sorted(Path("/proc/self/fd").iterdir())
    for _ in range(3):
        read_all(image)
        with pytest.raises(SourceError), source(tmp_path).freeze():
            pass
        with pytest.raises(KeyboardInterrupt), source(image).freeze():
            raise KeyboardInterrupt
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_a_device_is_read_whole(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", 2 * MIB, {4096: b"x" * 5000})
    with need_devices(), loop_device(image) as device, source(device).freeze() as volume:
        assert volume.size == 2 * MIB
        assert list(volume.allocated()) == [Extent(0, 2 * MIB)]
        assert content_by_extents(volume, [Extent(0, 2 * MIB)]) == image.read_bytes()
        assert volume.consistency() is Consistency.UNKNOWN


def test_a_device_is_known_by_the_name_it_was_given(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", MIB, {})
    link = tmp_path / "by-name"
    with need_devices(), loop_device(image) as device:
        link.symlink_to(device)
        assert source(link).identity.endswith(os.fsencode(tmp_path.resolve()) + b"/by-name")


def test_a_disk_shows_what_was_written_through_its_partition(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "a", 8 * MIB, {})
    with (
        need_devices(),
        loop_device(image) as disk,
        partition(disk, MIB, 4 * MIB) as part,
        disk.open("rb") as earlier_reader,
    ):
        assert earlier_reader.read() == bytes(8 * MIB)  # the disk's pages are in memory, and stay while it is open
        with part.open("r+b", buffering=0) as file:
            file.write(b"new" * 1000)
            os.fsync(file.fileno())
        assert read_all(disk)[MIB : MIB + 3000] == b"new" * 1000
