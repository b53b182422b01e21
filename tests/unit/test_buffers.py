"""Memory for what is received is used again, never while somebody looks at it."""

from __future__ import annotations

from lamella.stores.pipe.server import Buffers

MIB = 1 << 20


def test_what_was_given_back_is_taken_again() -> None:
    buffers = Buffers()
    first = buffers.take(4 * MIB)
    memory = first.obj
    buffers.give(first)
    again = buffers.take(3 * MIB)
    assert again.obj is memory
    assert len(again) == 3 * MIB


def test_two_at_a_time_never_share() -> None:
    buffers = Buffers()
    buffers.give(buffers.take(2 * MIB))
    one, other = buffers.take(2 * MIB), buffers.take(2 * MIB)
    assert one.obj is not other.obj


def test_memory_beyond_a_packs_is_not_kept() -> None:
    buffers = Buffers()
    large = buffers.take(72 * MIB)
    memory = large.obj
    buffers.give(large)
    assert buffers.take(MIB).obj is not memory


def test_small_ones_do_not_take_large_memory_away_and_few_are_kept() -> None:
    buffers = Buffers()
    many = [buffers.take(MIB) for _ in range(20)]
    memories = [view.obj for view in many]
    for view in many:
        buffers.give(view)
    small = buffers.take(100)
    assert len(small) == 100
    assert not any(small.obj is memory for memory in memories)
    again = [buffers.take(MIB).obj for _ in range(20)]
    assert sum(any(one is memory for memory in memories) for one in again) == 4
