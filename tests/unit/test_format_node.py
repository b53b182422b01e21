"""Rules of manifest nodes (FORMAT 6), one by one."""

from __future__ import annotations

import pytest

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.ids import ChunkId, VolumeId
from lamella.base.trust import Opened
from lamella.format import node
from lamella.format.node import Node, Shape, Slot

VOLUME = VolumeId(b"v" * 16)
SHAPE = Shape(VOLUME, 70 * 65536 - 1, 16)
"""70 chunks: a root of two slots over a full leaf and a leaf of 6 chunks."""
A, B = ChunkId(b"a" * 24), ChunkId(b"b" * 24)
HOLE, ZERO = Slot.HOLE, Slot.ZERO


def slots(*first: node.SlotValue, fill: node.SlotValue = HOLE) -> tuple[node.SlotValue, ...]:
    return (*first, *[fill] * (64 - len(first)))


def again(made: Node, shape: Shape = SHAPE) -> Node:
    return node.decode(Opened(node.encode(made, shape)), shape, made.level, made.first_chunk)


def changed(made: Node, at: int, value: bytes) -> Opened:
    encoded = node.encode(made, SHAPE)
    return Opened(encoded[:at] + value + encoded[at + len(value) :])


LEAF = Node(0, 0, 2, slots(A, ZERO, B))
LAST_LEAF = Node(0, 64, 1, slots(ZERO, ZERO, A, HOLE, HOLE, ZERO))
ROOT = Node(1, 0, 3, slots(A, B))


@pytest.mark.parametrize("made", [LEAF, LAST_LEAF, ROOT])
def test_good_nodes(made: Node) -> None:
    assert again(made) == made
    assert len(node.encode(made, SHAPE)) == 56 + 24 * sum(isinstance(slot, bytes) for slot in made.slots)


def test_kinds() -> None:
    assert (LEAF.kind, ROOT.kind) == (2, 3)


@pytest.mark.parametrize("root", [slots(HOLE, HOLE), slots(ZERO, ZERO), slots(HOLE, ZERO)])
def test_a_root_may_hold_no_data(root: tuple[node.SlotValue, ...]) -> None:
    assert again(Node(1, 0, 0, root)).slots == root


def test_a_volume_of_size_0_is_one_leaf_of_holes() -> None:
    empty = Shape(VOLUME, 0, 16)
    assert (empty.depth, empty.chunks) == (1, 0)
    assert again(Node(0, 0, 0, slots()), empty).slots == slots()
    with pytest.raises(IntegrityError):
        again(Node(0, 0, 0, slots(ZERO)), empty)


@pytest.mark.parametrize("inside", [[HOLE] * 6, [ZERO] * 6])
def test_uniform_nodes_below_the_root_are_not_canonical(inside: list[Slot]) -> None:
    with pytest.raises(IntegrityError):
        again(Node(0, 64, 0, slots(*inside)))


def test_uniform_full_leaves_are_not_canonical() -> None:
    for fill in (HOLE, ZERO):
        with pytest.raises(IntegrityError):
            again(Node(0, 0, 0, slots(fill=fill)))


def test_a_node_with_both_zero_and_hole_is_canonical_without_data() -> None:
    mixed = Node(0, 64, 0, slots(ZERO, HOLE, ZERO))
    assert again(mixed) == mixed


def test_a_node_at_the_roots_place_but_lower_is_no_root() -> None:
    with pytest.raises(IntegrityError):
        again(Node(0, 0, 0, slots(fill=ZERO)))


@pytest.mark.parametrize("past", [ZERO, A])
def test_slots_past_the_end_are_holes(past: node.SlotValue) -> None:
    with pytest.raises(IntegrityError):
        again(Node(0, 64, 1 + isinstance(past, bytes), slots(A, HOLE, HOLE, HOLE, HOLE, HOLE, past)))
    with pytest.raises(IntegrityError):
        again(Node(1, 0, 3, slots(A, HOLE, past)))


@pytest.mark.parametrize(
    ("made", "below"), [(LEAF, 1), (LEAF, 3), (LEAF, 0), (ROOT, 129), (ROOT, 2**64 - 1), (LAST_LEAF, 2)]
)
def test_wrong_counts_of_data_below(made: Node, below: int) -> None:
    with pytest.raises(IntegrityError):
        again(Node(made.level, made.first_chunk, below, made.slots))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"LMLM"),
        (5, b"\x01"),
        (6, b"\x01"),
        (6, b"\x03"),
        (7, b"\x11"),
        (8, b"w"),
        (24, b"\x40"),
        (31, b"\x01"),
    ],
)
def test_nodes_of_another_place_or_count(at: int, value: bytes) -> None:
    with pytest.raises(IntegrityError):
        node.decode(changed(LEAF, at, value), SHAPE, 0, 0)


@pytest.mark.parametrize("value", [b"\x00", b"\x02"])
def test_later_versions(value: bytes) -> None:
    with pytest.raises(UnknownFormat):
        node.decode(changed(LEAF, 4, value), SHAPE, 0, 0)


@pytest.mark.parametrize(("at", "value"), [(40, b"\x03"), (55, b"\xc0")])
def test_a_difference_without_its_ids(at: int, value: bytes) -> None:
    with pytest.raises(IntegrityError, match="ends too early"):
        node.decode(changed(LEAF, at, value), SHAPE, 0, 0)


def test_length_is_exact() -> None:
    encoded = node.encode(LEAF, SHAPE)
    for raw in (encoded + b"\0", encoded + bytes(24), encoded[:-1], encoded[:-24]):
        with pytest.raises(IntegrityError):
            node.decode(Opened(raw), SHAPE, 0, 0)


def test_default_chunk_sizes() -> None:
    gib, tib = 1 << 30, 1 << 40
    limits = [(0, 17), (64 * gib, 17), (64 * gib + 1, 18), (tib, 18), (tib + 1, 20), (8 * tib, 20), (8 * tib + 1, 21)]
    assert [(size, node.default_chunk_log2(size)) for size, _ in limits] == limits


def test_a_full_leaf_is_read_as_decode_reads_it() -> None:
    shape = Shape(VolumeId(bytes(range(16))), 100 << 16, 16)
    ids = [ChunkId(bytes([number]) * 24) for number in range(64)]
    content = Opened(node.encode(Node(0, 0, 64, tuple(ids)), shape))
    assert node.full_leaf(content, shape, 0) == list(node.decode(content, shape, 0, 0).slots) == ids
    for other in range(len(content) + 1):
        changed = content[:other] + bytes(b ^ 1 for b in content[other : other + 1]) + content[other + 1 :]
        if other < 56:
            assert node.full_leaf(Opened(changed), shape, 0) is None
        assert node.full_leaf(Opened(content[:other]), shape, 0) is None or other == len(content)
    assert node.full_leaf(content, shape, 64) is None, "another place"
    assert node.full_leaf(content, Shape(shape.volume_id, 63 << 16, 16), 0) is None, "past the end"
