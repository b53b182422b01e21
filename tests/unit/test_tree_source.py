"""What happens to a tree between the moment when it was looked at and the moment when it is read."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamella.base.errors import SourceError
from lamella.sources.tree import planning
from lamella.sources.tree.image import TreeImage
from lamella.sources.tree.known import KnownFile, KnownFolder, KnownTree
from lamella.sources.tree.patterns import Patterns, lines_of
from lamella.sources.tree.reader import FileTree
from lamella.sources.tree.source import FrozenTree, TreeSource
from lamella.sources.tree.space import Allocator, Space
from tests.features import require

LOG2 = 16
SECRET = b"what nobody may see " * 1000


@contextmanager
def looked_at(top: Path) -> Iterator[FrozenTree]:
    with TreeSource(top, "0" * 16).freeze() as frozen:
        yield frozen


def whole(image: TreeImage) -> bytes:
    """All that is new in a volume."""
    content = bytearray(image.size)
    for extent in image.allocated():
        with memoryview(content) as view:
            image.read_into(extent.start, view[extent.start : extent.end])
    for first, end in image.stale().runs():
        with memoryview(content) as view:
            image.read_into(first << LOG2, view[first << LOG2 : end << LOG2])
    return bytes(content)


def whole_after(before: bytes | bytearray, image: TreeImage) -> bytes:
    """A volume whose last snapshot had the bytes before."""
    content = bytearray(before[: image.size].ljust(image.size, b"\0"))
    new = whole(image)
    for extent in image.allocated():
        content[extent.start : extent.end] = new[extent.start : extent.end]
    return bytes(content)


def notes_mapped_writes(probe: Path) -> bool:
    """Whether every write through a mapping to a clean page changes the ctime, not only the one that maps the page."""
    with probe.open("w+b") as file:
        file.write(b"x")
        file.flush()
        seen = []
        with mmap.mmap(file.fileno(), 1) as mapped:
            for number in range(3):
                os.fsync(file.fileno())
                seen.append(os.fstat(file.fileno()).st_ctime_ns)
                time.sleep(0.05)
                mapped[0] = number
        seen.append(os.fstat(file.fileno()).st_ctime_ns)
        return len(set(seen)) == len(seen)


def files(image: TreeImage) -> list[bytes]:
    """The names of the files that are to be read."""
    plan = image.plan
    found = zip(plan.extents.folders, plan.extents.entries, strict=True)
    return [plan.scan.folders[folder].names.split(b"\0")[entry] for folder, entry in found if entry >= 0]


def known(image: TreeImage) -> KnownTree:
    found = image.known()
    found.folders = {folder.path: folder for folder in image.known_folders()}
    return found


@pytest.fixture
def top(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(SECRET)
    folder = tmp_path / "top" / "folder"
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"y" * len(SECRET))
    (tmp_path / "top" / "other").write_bytes(b"z" * len(SECRET))
    return tmp_path / "top"


def test_a_link_in_the_place_of_a_file_is_not_followed(top: Path) -> None:
    with looked_at(top) as frozen:
        (top / "other").unlink()
        (top / "other").symlink_to("../outside/file")
        image = frozen.image(None, LOG2)
        assert SECRET[:40] not in whole(image)
    assert image.gone.lines == ["other: it went away meanwhile"]


def test_a_link_in_the_place_of_a_directory_is_not_followed(top: Path) -> None:
    with looked_at(top) as frozen:
        (top / "folder").rename(top / "moved")
        (top / "folder").symlink_to("../outside")
        image = frozen.image(None, LOG2)
        assert SECRET[:40] not in whole(image)
    assert image.gone.lines == ["folder/file: it went away meanwhile"]


def test_a_directory_that_became_a_link_while_it_is_read(top: Path) -> None:
    """The directory was open before; what has its name now is not opened again through it."""
    with looked_at(top) as frozen:
        image = frozen.image(None, LOG2)
        whole(image)
        (top / "folder").rename(top / "moved")
        (top / "folder").symlink_to("../outside")
        assert SECRET[:40] not in whole(image)


@pytest.mark.timeout(20)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(top: Path) -> None:
    with looked_at(top) as frozen:
        (top / "other").unlink()
        os.mkfifo(top / "other")
        image = frozen.image(None, LOG2)
        whole(image)
    assert image.gone.lines == ["other: something else has its name now"]


def test_another_file_of_the_same_size_and_time_is_noticed(top: Path) -> None:
    before = (top / "other").stat()
    with looked_at(top) as frozen:
        (top / "new").write_bytes(b"w" * before.st_size)
        os.utime(top / "new", ns=(before.st_mtime_ns, before.st_mtime_ns))
        (top / "new").rename(top / "other")
        image = frozen.image(None, LOG2)
        whole(image)
    assert image.changed.lines == ["other: it was written to"]


def test_a_listing_that_was_read_too_early_is_read_again(top: Path) -> None:
    """Several workers read at once: a listing may be read before a file in it turns out to have changed."""
    with looked_at(top) as frozen:
        image = frozen.image(None, LOG2)
        content = whole(image)
        with (top / "folder" / "file").open("ab") as file:
            file.write(b"more")
        place = next(place for place in image.plan.listings[2].all_places())
        part = bytearray(100)
        image.read_into(place.address, memoryview(part))
        again = image.stale()
        assert again
        assert not image.stale()
        for first, end in again.runs():
            fresh = bytearray((end - first) << LOG2)
            image.read_into(first << LOG2, memoryview(fresh))
            assert fresh != content[first << LOG2 : end << LOG2]
    assert image.changed.lines == ["folder/file: it was written to"]


def test_details_that_could_not_be_read_are_read_next_time(top: Path) -> None:
    """A renaming changes no status of what is below: only what this run says of it makes the next run look again."""
    (top / "folder" / "link").symlink_to("file")
    os.setxattr(top / "folder" / "file", "user.note", b"kept")
    (top / "folder" / "below").mkdir()
    os.setxattr(top / "folder" / "below", "user.note", b"kept, too")
    time.sleep(0.15)
    with looked_at(top) as frozen:
        (top / "folder").rename(top / "renamed")
        first = frozen.image(None, LOG2)
        content = whole(first)
    assert first.gone.lines == ["folder/link: it went away meanwhile", "folder/file: it went away meanwhile"]
    with looked_at(top) as frozen:
        second = frozen.image(known(first), LOG2)
        content = whole_after(content, second)
    tree = FileTree(lambda offset, length: content[offset : offset + length], len(content))
    found = {entry.path: entry for entry in tree.walk(tree.top())}
    assert found[b"renamed/link"].target == b"file"
    assert [value for _, value in found[b"renamed/file"].details] == [b"user.note\0kept"]
    assert [value for _, value in found[b"renamed/below"].details] == [b"user.note\0kept, too"]
    assert not any(entry.place.flags for entry in found.values())


def test_names_of_a_file_that_was_cut_between_the_looks_at_them(tmp_path: Path) -> None:
    """They have one inode and two sizes: each counts its own, so that no chunk of others becomes free too soon."""
    top = tmp_path / "top"
    for name in ("one", "two", "keep"):
        (top / name).mkdir(parents=True)
    (top / "keep" / "file").write_bytes(b"k" * 3000)
    (top / "one" / "log").write_bytes(b"l" * 15000)
    os.link(top / "one" / "log", top / "two" / "log")
    time.sleep(0.15)
    with looked_at(top) as frozen:
        early = {folder.path: folder.rows for folder in frozen.scan.folders}
    os.truncate(top / "one" / "log", 10)
    last, content = None, bytearray()
    for number in range(3):
        with looked_at(top) as frozen:
            if last is None:  # the first directory was looked at before, the second after the cut
                (folder,) = (folder for folder in frozen.scan.folders if folder.path == b"one")
                folder.rows = early[b"one"]
            image = frozen.image(last, LOG2)
            content = bytearray(whole_after(content, image))
            last = known(image)
        (top / f"new{number}").write_bytes(b"n" * 15000)
        time.sleep(0.06)
    tree = FileTree(lambda offset, length: bytes(content[offset : offset + length]), len(content))
    kept = tree.find(b"keep/file")
    assert kept is not None
    assert content[kept.place.address :][:3000] == b"k" * 3000


def test_a_directory_that_is_gone_is_no_moment(tmp_path: Path) -> None:
    with pytest.raises(SourceError), looked_at(tmp_path / "nothing"):
        pass


def test_what_changed_just_now_is_read_again(top: Path) -> None:
    """A second change within one tick of the clock leaves no trace but the content."""
    time.sleep(0.15)
    (top / "other").write_bytes(b"1" * 100)
    reads = []
    last = None
    for _ in range(3):
        with looked_at(top) as frozen:
            image = frozen.image(last, LOG2)
            reads.append(sorted(files(image)))
            whole(image)
            last = known(image)
        time.sleep(0.15)
    assert reads == [[b"file", b"other"], [b"other"], []], "it was recent when it was read first"


def test_what_is_written_through_a_mapping_is_read_again(top: Path) -> None:
    """The first write to a clean page changes the ctime; the next one would not, while the page is dirty."""
    require("mapped", notes_mapped_writes(top.parent / "probe"), "this file system (tmpfs?) never notes such writes")
    with (top / "other").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = 1
        time.sleep(0.15)
        with looked_at(top) as frozen:
            image = frozen.image(None, LOG2)
            whole(image)
        mapped[0] = 2
        with looked_at(top) as frozen:
            again = frozen.image(known(image), LOG2)
            assert files(again) == [b"other"]
            assert b"\2zzz" in whole(again)


def test_a_clock_that_was_set_back_makes_no_file_old(top: Path) -> None:
    """Then the files have times in the future, and order says nothing: they are read again until it does."""
    time.sleep(0.15)
    last = None
    for _ in range(3):
        with looked_at(top) as frozen:
            frozen.scan.started_ns -= 3600 * 10**9  # as the clock would say
            image = frozen.image(last, LOG2)
            assert sorted(files(image)) == [b"file", b"other"]
            whole(image)
            last = known(image)
    with looked_at(top) as frozen:
        frozen.scan.started_ns += 3600 * 10**9
        image = frozen.image(last, LOG2)
        whole(image)
        last = known(image)
    with looked_at(top) as frozen:
        assert not frozen.image(last, LOG2).plan.extents.starts


def test_times_without_fractions_are_coarse(top: Path) -> None:
    with looked_at(top) as frozen:
        image = frozen.image(None, LOG2)
        started = image.plan.scan.started_ns
        for age, fraction, recent in ((1, 0, True), (3, 0, False), (1, 1, False), (0, 1, True)):
            second = 10**9
            ctime = (started // second - age) * second + fraction
            status = next(iter(image.plan.listings[1].statuses()))._replace(ctime_ns=ctime if age else started)
            assert image.plan._is_recent(status) is recent, (age, fraction)


def test_thin_chunks_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run for each small file leaves each in a chunk of its own: eight of these are worth reading again."""
    top, last, used = tmp_path / "top", None, []
    top.mkdir()
    for number in range(20):
        (top / f"file{number}").write_bytes(random.Random(number).randbytes(3000))
        time.sleep(0.06)
        with looked_at(top) as frozen:
            image = frozen.image(last, LOG2)
            whole(image)
            last = known(image)
            used.append(len(last.space.shared))
    assert max(used) <= planning._THIN_LEAST + 4
    assert used[-1] < used[8] or max(used) < 12


def test_patterns() -> None:
    patterns = Patterns.of(["*.o", "a/b", "/top/c*", "dir/", "x/y/", "[!]", "\udcff"], "/top")
    out = [("", "m.o", 0), ("deep", "m.o", 0), ("a", "b", 0), ("", "cx", 0), ("p", "dir", 1), ("x", "y", 1)]
    out += [("", "\udcff", 0), ("", "[!]", 0)]
    stay = [
        ("", "m.c", 0),
        ("b", "b", 0),
        ("p/a", "b", 0),
        ("d", "cx", 0),
        ("p", "dir", 0),
        ("x", "y", 0),
        ("", "!", 0),
    ]
    assert [one for one in out if not patterns.leave_out(*one[:2], bool(one[2]))] == []
    assert [one for one in stay if patterns.leave_out(*one[:2], bool(one[2]))] == []
    assert lines_of(b"# no\n\n #yes\nb\r\n\xff") == [" #yes", "b", "\udcff"]


@pytest.mark.parametrize("seed", range(20))
def test_space_is_given_once(seed: int) -> None:
    """Whatever is placed, given up and placed again: no two contents ever share a byte."""
    chance, space = random.Random(seed), Space(LOG2)
    held: list[tuple[int, int]] = []
    for _ in range(30):
        chance.shuffle(held)
        for address, length in held[: chance.randrange(len(held) + 1)]:
            space.release(address, length)
            held.remove((address, length))
        allocation = Allocator(space)
        for _ in range(chance.randrange(12)):
            length = chance.choice([1, 700, 1 << LOG2 >> 2, (1 << LOG2 >> 2) + 1, 1 << LOG2, 200_000])
            held.append((allocation.place(length), length))
        ends = 1 << LOG2
        for address, length in sorted(held):
            assert address >= ends
            ends = address + length
        assert ends <= space.end << LOG2


def test_a_list_that_was_made_without_the_key_is_as_good_as_lost(tmp_path: Path) -> None:
    """Who may write the cache could say of a changed file that it is saved: with a true hash of lies."""
    root, key, place = b"r" * 32, b"k" * 32, tmp_path / "kept"
    folder = KnownFolder(b"letters", 7, 4096, b"a listing")
    KnownFile(place, key).save(root, KnownTree(Space(16)), 1, [folder])
    found = KnownFile(place, key).load(root, 16)
    assert found is not None and bytes(found.folders[b"letters"].raw) == b"a listing"
    assert KnownFile(place, b"x" * 32).load(root, 16) is None
    assert KnownFile(place, key).load(b"s" * 32, 16) is None
    forged = place.read_bytes().replace(b"a listing", b"a lisTing")
    for digest in (forged[8:40], hashlib.sha256(forged[40:]).digest()):
        place.write_bytes(forged[:8] + digest + forged[40:])
        assert KnownFile(place, key).load(root, 16) is None
