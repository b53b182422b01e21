"""The difference between any snapshot and a live source is what their bytes say, whichever moment is kept."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamella.operations.look.diff_source import COMPARE, INCREMENTAL, SourceDiff, compare_source
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.sources.base import Source
from lamella.stores.memory import MemoryStore
from lamella_kit.tracked_source import TrackedDisk
from tests.fault.world import CHUNK, SECRET, backup, host_at, init, volume
from tests.property.test_state_machine import expected_ranges

sizes = st.one_of(st.sampled_from([0, 1, CHUNK - 1, CHUNK, 65 * CHUNK, 65 * CHUNK + 7]), st.integers(0, 12 * CHUNK))
edit = st.tuples(st.integers(0, 66), st.sampled_from(["noise", "zero", "same"]), st.integers(0, 9))
State = tuple[int, list[tuple[int, str, int]]]
"""The size a volume gets, and which chunks are written."""
states = st.lists(st.tuples(sizes, st.lists(edit, max_size=5)), min_size=2, max_size=4)


def changed(content: bytearray, size: int, edits: list[tuple[int, str, int]]) -> bytearray:
    """The content after a resize and some chunks written anew."""
    new = bytearray(content[:size]) + bytearray(max(0, size - len(content)))
    for chunk, how, seed in edits:
        start, end = chunk * CHUNK, min((chunk + 1) * CHUNK, size)
        if start < end and how != "same":
            new[start:end] = bytes(end - start) if how == "zero" else random.Random(seed).randbytes(end - start)
    return new


def difference(store: MemoryStore, place: Path, snapshot: str, source: Source) -> SourceDiff:
    with Repository.open(store, SECRET, host_at(place)) as repo:
        return compare_source(repo, select(repo, [f"disk@{snapshot}"])[0], source, workers=2)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=40)
@given(states=states, tracked=st.booleans())
def test_any_snapshot_and_the_source_as_it_is(
    states: list[tuple[int, list[tuple[int, str, int]]]], tracked: bool
) -> None:
    place = Path(tempfile.mkdtemp(prefix="lamella-diff-"))
    try:
        store, host = MemoryStore(), host_at(place)
        init(store, host)
        disk = TrackedDisk("disk", bytearray())
        made: list[tuple[str, bytes]] = []
        for left, (size, edits) in zip(range(len(states))[::-1], states, strict=True):
            disk.content = changed(disk.content, size, edits)
            if left:
                source: Source = disk.source() if tracked else volume(bytes(disk.content))
                made.append((backup(store, host, source).snapshot, bytes(disk.content)))
        live = bytes(disk.content)
        for snapshot, then in made:
            found = difference(store, place, snapshot, disk.source() if tracked else volume(live))
            assert found.result.ranges == expected_ranges(then, live)
            assert (found.result.size_a, found.result.size_b) == (len(then), len(live))
            assert found.mode == (INCREMENTAL if tracked else COMPARE)
    finally:
        shutil.rmtree(place)


def test_only_what_may_have_changed_is_read(tmp_path: Path) -> None:
    store, host = MemoryStore(), host_at(tmp_path)
    init(store, host)
    disk = TrackedDisk("disk", bytearray(random.Random(1).randbytes(40 * CHUNK)))
    first = backup(store, host, disk.source()).snapshot
    disk.content[3 * CHUNK] ^= 1
    disk.content[7 * CHUNK] ^= 1
    backup(store, host, disk.source())
    disk.content[9 * CHUNK] ^= 1
    disk.content[5 * CHUNK] ^= 1
    disk.content[3 * CHUNK + 1] ^= 1
    moments = dict(disk.moments)
    found = difference(store, tmp_path, first, disk.source())
    # The chunk 7 that the second snapshot has already is known without reading.
    assert [row[0] // CHUNK for row in found.result.ranges] == [3, 5, 7, 9]
    assert found.read_bytes == 3 * CHUNK
    assert disk.moments == moments, "comparing keeps no checkpoint and drops none"
    disk.faults.lost = True
    again = difference(store, tmp_path, first, disk.source())
    assert (again.result, again.mode, again.read_bytes) == (found.result, COMPARE, 40 * CHUNK)
    assert again.reason


@pytest.mark.parametrize("grown", [0, 1, CHUNK, 3 * CHUNK + 5])
def test_holes_are_not_read(tmp_path: Path, grown: int) -> None:
    store, host = MemoryStore(), host_at(tmp_path)
    init(store, host)
    source = volume(b"x" * CHUNK * 3)
    name = backup(store, host, source).snapshot
    source.content = b"x" * CHUNK + bytes(2 * CHUNK + grown)
    source.extents = []
    found = difference(store, tmp_path, name, source)
    assert (found.read_bytes, found.result.ranges) == (0, [(0, 3 * CHUNK, "zero")])
