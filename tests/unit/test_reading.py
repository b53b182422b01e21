"""What a run is told to read: every chunk it must, none twice, in an order the tree can be written in."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.ids import VolumeId
from lamella.format.node import Shape, Slot
from lamella.operations.backup.mapped import changes
from lamella.operations.shared.ranges import RANGE
from lamella.operations.shared.reading import Act, Task, everything
from lamella_kit.tracked_source import TrackedDisk

LOG2 = 16
CHUNK = 1 << LOG2
CHUNKS = 70
some = st.frozensets(st.integers(0, CHUNKS - 1), max_size=40)


def chunk_set(numbers: frozenset[int] | set[int]) -> ChunkSet:
    return ChunkSet((number, number + 1) for number in numbers)


def disk_with(data: frozenset[int], tail: int) -> TrackedDisk:
    """Chunks in `data` hold data; the last chunk has `tail` bytes."""
    content = bytearray((CHUNKS - 1) * CHUNK + tail)
    for chunk in data:
        content[chunk * CHUNK] = 1
    return TrackedDisk("disk", content)


def shape_of(disk: TrackedDisk) -> Shape:
    return Shape(VolumeId(bytes(16)), len(disk.content), LOG2)


def chunks_of(tasks: list[Task], *acts: Act) -> Counter[int]:
    return Counter(chunk for task in tasks if task.act in acts for chunk in range(task.first, task.end))


def check_order(tasks: list[Task]) -> None:
    assert tasks == sorted(tasks)
    answers = [task for task in tasks if task.act in (Act.READ, Act.SET)]
    assert all(one.end <= other.first for one, other in pairwise(answers))
    for task in tasks:
        assert task.first < task.end
        assert task.act == Act.SET or (task.end - task.first) * CHUNK <= RANGE


@given(some, st.integers(1, CHUNK))
def test_everything_covers_everything_once(data: frozenset[int], tail: int) -> None:
    disk = disk_with(data, tail)
    with disk.source().freeze() as frozen:
        tasks = list(everything(frozen, shape_of(disk)))
    check_order(tasks)
    assert chunks_of(tasks, Act.READ) == Counter(data)
    assert chunks_of(tasks, Act.SET) == Counter(set(range(CHUNKS)) - data)
    assert all(task.slot == Slot.HOLE for task in tasks if task.act == Act.SET)


@given(some, some, some, some, st.integers(1, CHUNK))
def test_changes_are_read_and_zeros_are_set(
    data: frozenset[int], changed: frozenset[int], zeroed: frozenset[int], sample: frozenset[int], tail: int
) -> None:
    disk = disk_with(data, tail)
    size = len(disk.content)
    delta = Delta.bounded(CHUNK, size, size, chunk_set(changed), chunk_set(zeroed))
    with disk.source().freeze() as frozen:
        tasks = list(changes(frozen, shape_of(disk), delta, chunk_set(sample - changed)))
    check_order(tasks)
    zeroed = zeroed - changed
    assert chunks_of(tasks, Act.READ) == Counter(changed)
    assert chunks_of(tasks, Act.SET) == Counter(zeroed)
    assert chunks_of(tasks, Act.SAMPLE) == Counter(sample - changed - zeroed)
    assert chunks_of(tasks, Act.SAMPLE_ZERO) == Counter((sample - changed) & zeroed)
    for task in tasks:
        if task.act == Act.SET:
            for chunk in range(task.first, task.end):
                assert (task.slot == Slot.ZERO) is (chunk in data), "zeros are ZERO where there is space for them"


def test_an_empty_volume_needs_nothing() -> None:
    disk = TrackedDisk("disk", bytearray())
    nothing = Delta.bounded(CHUNK, 0, 0, ChunkSet(), ChunkSet())
    with disk.source().freeze() as frozen:
        assert list(everything(frozen, shape_of(disk))) == []
        assert list(changes(frozen, shape_of(disk), nothing, ChunkSet())) == []
