"""Overlays: what was written is read back, kept for its own snapshot alone, and survives what it promises to."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamella.base.errors import IntegrityError, Locked, UsageError
from lamella.operations.access.bitmap import Bitmap
from lamella.operations.access.kept_file import Owner
from lamella.operations.access.overlay import Overlay, block_size, kept_overlay, thrown_away
from lamella.operations.access.view import Reading, SnapshotView
from lamella.operations.shared.selection import select
from tests.unit.small_repository import CHUNK, Small, image

LETTERS = "ab..c0d" + "." * 9
TAIL = 1000
BOOT = "0" * 36
OTHER_BOOT = "1" * 36
OWNER = Owner(b"r" * 16, b"v" * 16, b"s" * 16, "disk@now")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    small = Small.make(tmp_path_factory.mktemp("overlay"))
    small.backup(image(small.place / "disk.img", LETTERS, tail=TAIL))
    return small


@pytest.fixture(scope="module")
def view(small: Small) -> Iterator[SnapshotView]:
    with small.opened() as repo:
        reading = Reading(repo)
        yield reading.view(select(repo, ["disk"])[0])
        reading.close()


@pytest.fixture(scope="module")
def content(small: Small) -> bytes:
    return (small.place / "disk.img").read_bytes()


def everything(overlay: Overlay) -> bytes:
    return overlay.read(0, overlay.size)


def change(overlay: Overlay, model: bytearray, moves: random.Random) -> None:
    """One change of any kind, in the overlay and in the model."""
    offset = moves.randrange(len(model))
    length = min(moves.choice([1, 511, 4096, 8192, 5000, CHUNK + 3, 4 * CHUNK]), len(model) - offset)
    kind = moves.randrange(4)
    if kind == 0:
        overlay.zero(offset, length, allocate=moves.random() < 0.5)
        model[offset : offset + length] = bytes(length)
    elif kind == 1:
        overlay.trim(offset, length)
        block = block_size(len(model))
        low, high = -(-offset // block) * block, (offset + length) // block * block
        model[low : max(low, high)] = bytes(max(0, high - low))
    else:
        data = moves.randbytes(length)
        overlay.write(offset, memoryview(data))
        model[offset : offset + length] = data


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1 << 32))
def test_every_sequence_of_changes_reads_like_a_plain_disk(
    view: SnapshotView, content: bytes, tmp_path: Path, seed: int
) -> None:
    moves, model = random.Random(seed), bytearray(content)
    path = tmp_path / f"kept-{seed}"
    overlay = kept_overlay(view, path, OWNER, BOOT)
    for _ in range(25):
        change(overlay, model, moves)
        if moves.random() < 0.1:
            overlay.close()
            overlay = kept_overlay(view, path, OWNER, moves.choice([BOOT, OTHER_BOOT]))
        offset = moves.randrange(len(model))
        length = moves.randrange(2 * CHUNK)
        assert overlay.read(offset, min(length, len(model) - offset)) == model[offset : offset + length]
        at = 0
        for stretch in overlay.extents(0, len(model)):
            assert not stretch.zero or not any(model[at : at + stretch.length])
            at += stretch.length
        assert at == len(model)
    assert everything(overlay) == model
    overlay.close()
    path.unlink()
    assert view.read(0, view.size) == content, "the snapshot itself never changes"


def test_what_is_thrown_away_leaves_no_file(view: SnapshotView, content: bytes, tmp_path: Path) -> None:
    overlay = thrown_away(view, tmp_path)
    overlay.write(5, memoryview(b"hello"))
    assert overlay.read(0, 20) == content[:5] + b"hello" + content[10:20]
    assert not list(tmp_path.iterdir())
    overlay.close()
    assert everything(thrown_away(view, tmp_path)) == content


def copied(path: Path, place: Path) -> Path:
    """The file as a killed process, or a power cut, leaves it."""
    shutil.copy(path, place)
    return place


def test_after_a_kill_every_write_is_there_and_after_a_power_cut_every_flushed_one(
    view: SnapshotView, content: bytes, tmp_path: Path
) -> None:
    overlay = kept_overlay(view, tmp_path / "kept", OWNER, BOOT)
    moves, model = random.Random(8), bytearray(content)
    for number in range(8):
        for _ in range(5):
            change(overlay, model, moves)
        overlay.flush()
        flushed = bytes(model)
        # Of blocks that no flush has covered: what is in flushed blocks may change at any time, as in every disk.
        fresh = moves.sample([b for b in range(len(LETTERS) * CHUNK // 4096) if not overlay._bitmap.has(b)], 3)
        for block in fresh:
            data = moves.randbytes(100)
            overlay.write(block * 4096 + 7, memoryview(data))
            model[block * 4096 + 7 : block * 4096 + 107] = data
        killed = kept_overlay(view, copied(tmp_path / "kept", tmp_path / f"killed{number}"), OWNER, BOOT)
        assert everything(killed) == model
        cut = kept_overlay(view, copied(tmp_path / "kept", tmp_path / f"cut{number}"), OWNER, OTHER_BOOT)
        assert everything(cut) == flushed
        # What the power cut made invalid must not come back.
        block = fresh[0]
        cut.zero(block * 4096, 4096, allocate=False)
        assert cut.read(block * 4096, 4096) == bytes(4096)
        cut.write(fresh[1] * 4096 + 50, memoryview(b"x"))
        expected = flushed[fresh[1] * 4096 :][:50] + b"x" + flushed[fresh[1] * 4096 + 51 :][:4045]
        assert cut.read(fresh[1] * 4096, 4096) == expected
        killed.close()
        cut.close()
    overlay.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("reopened", [False, True])
def test_what_a_failed_flush_lost_is_not_believed(
    view: SnapshotView, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reopened: bool
) -> None:
    """The kernel drops what it could not write, and says so once: to the next that synchronises the file."""
    path, error = tmp_path / "kept", OSError(number, os.strerror(number))
    overlay = kept_overlay(view, path, OWNER, BOOT)
    overlay.write(0, memoryview(b"flushed" * 1000))
    overlay.flush()
    durable = path.read_bytes()
    overlay.write(4 * CHUNK + 100, memoryview(b"lost" * 1000))
    if reopened:
        os.close(overlay._fd)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", _raising(error))
        with pytest.raises(OSError, match=os.strerror(number)):
            kept_overlay(view, path, OWNER, BOOT) if reopened else overlay.flush()
    if not reopened:
        with pytest.raises(OSError, match=os.strerror(number)):
            overlay.flush()
        with pytest.raises(OSError, match=os.strerror(number)):
            overlay.close()
    with path.open("r+b") as file:  # the blocks are what they were; the bitmaps are read from the page cache
        file.seek(len(durable) - len(content))
        file.write(durable[len(durable) - len(content) :])
    overlay = kept_overlay(view, path, OWNER, BOOT)
    assert everything(overlay) == b"flushed" * 1000 + content[7000:]
    overlay.close()


def _raising(error: OSError) -> Callable[[int], None]:
    def raising(fd: int) -> None:
        raise error

    return raising


def test_an_overlay_is_for_its_own_snapshot_alone(view: SnapshotView, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    kept_overlay(view, path, OWNER, BOOT).close()
    before = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    for other in (
        Owner(b"R" * 16, b"v" * 16, b"s" * 16, "x"),
        Owner(b"r" * 16, b"V" * 16, b"s" * 16, "x"),
        Owner(b"r" * 16, b"v" * 16, b"S" * 16, "x"),
    ):
        with pytest.raises(UsageError, match="another snapshot"):
            kept_overlay(view, path, other, BOOT)
    assert path.read_bytes() == before


@pytest.mark.parametrize("found", [b"an image", bytes(10_000), bytes(4096) + b"data behind zeros"])
def test_a_file_that_is_no_overlay_is_left_as_it_is(view: SnapshotView, tmp_path: Path, found: bytes) -> None:
    path = tmp_path / "kept"
    path.write_bytes(found)
    with pytest.raises(UsageError, match="not an overlay"):
        kept_overlay(view, path, OWNER, BOOT)
    assert path.read_bytes() == found


def test_what_is_no_file_is_refused_at_once(view: SnapshotView, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a file"):
        kept_overlay(view, tmp_path / "pipe", OWNER, BOOT)


def test_an_overlay_that_another_export_uses_is_locked(view: SnapshotView, tmp_path: Path) -> None:
    overlay = kept_overlay(view, tmp_path / "kept", OWNER, BOOT)
    with pytest.raises(Locked):
        kept_overlay(view, tmp_path / "kept", OWNER, BOOT)
    overlay.write(0, memoryview(b"still mine"))
    overlay.close()
    overlay = kept_overlay(view, tmp_path / "kept", OWNER, BOOT)
    assert overlay.read(0, 10) == b"still mine"
    overlay.close()


def test_a_damaged_head_is_damage(view: SnapshotView, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    kept_overlay(view, path, OWNER, BOOT).close()
    with path.open("r+b") as file:
        file.seek(20)
        file.write(b"X")
    with pytest.raises(IntegrityError):
        kept_overlay(view, path, OWNER, BOOT)


def test_a_half_made_overlay_is_completed(view: SnapshotView, content: bytes, tmp_path: Path) -> None:
    kept_overlay(view, tmp_path / "kept", OWNER, BOOT).close()
    whole = (tmp_path / "kept").read_bytes()
    for length in (0, 4096, 5000, len(whole) - 1):
        (tmp_path / "half").write_bytes(whole[:length])
        overlay = kept_overlay(view, tmp_path / "half", OWNER, BOOT)
        assert everything(overlay) == content
        overlay.close()


def test_a_write_after_the_end_of_the_overlay_reaches_no_other_file(view: SnapshotView, tmp_path: Path) -> None:
    overlay = kept_overlay(view, tmp_path / "kept", OWNER, BOOT)
    overlay.close()
    others = [(tmp_path / f"other{number}").open("w+b") for number in range(5)]
    with pytest.raises(OSError) as caught:
        overlay.write(0, memoryview(b"late"))
    assert caught.value.errno == errno.EBADF
    assert not any(Path(file.name).stat().st_size for file in others)
    for file in others:
        file.close()


@given(st.integers(1, 300), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=8))
def test_the_bitmap_holds_what_was_added(count: int, added: list[tuple[int, int]]) -> None:
    bitmap, model = Bitmap(count), set[int]()
    for low, high in added:
        first, end = sorted((min(low, count), min(high, count)))
        bitmap.add(first, end)
        model.update(range(first, end))
        assert bitmap.covers(first, end)
    runs = list(bitmap.runs(0, count))
    assert [number for first, end, inside in runs for number in range(first, end) if inside] == sorted(model)
    assert [first for first, _, _ in runs] == [0, *(end for _, end, _ in runs)][:-1]
    assert all(one[2] != other[2] for one, other in pairwise(runs))
    assert all(bitmap.covers(low, low + 1) == (low in model) for low in range(count))


def test_blocks_grow_so_that_the_bitmap_stays_small() -> None:
    for log2 in range(10, 63):
        block = block_size(1 << log2)
        assert block >= 4096 and (1 << log2) <= block * 8 * (8 << 20)
