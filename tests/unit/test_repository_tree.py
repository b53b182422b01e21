"""Trees: what they refuse, and what a change costs in a very large volume."""

from __future__ import annotations

import pytest

from lamella.base.errors import IntegrityError
from lamella.base.ids import ChunkId, VolumeId
from lamella.format import node
from lamella.format.container import Kind
from lamella.format.node import FAN_OUT, Node, Shape, Slot, SlotValue
from lamella.packs.tree import SlotRun, Tree, TreeReader
from lamella.packs.tree_changes import changes
from lamella.packs.tree_writer import TreeWriter
from tests.property.test_tree import LOG2, SIZE, VOLUME, Nodes, ids

TIB = 1 << 40


def built(nodes: Nodes, shape: Shape, runs: list[SlotRun], base: Tree | None = None) -> Tree:
    return Tree(shape, TreeWriter(TreeReader(nodes.fetch), nodes.put).update(shape, base, runs))


def shape(chunks: int) -> Shape:
    return Shape(VOLUME, chunks * SIZE, LOG2)


def data(*chunks: int) -> list[SlotRun]:
    return [SlotRun(chunk, chunk + 1, ids(chunk + 1)) for chunk in chunks]


@pytest.mark.parametrize("log2", [16, 21])
def test_one_chunk_of_sixteen_tebibytes_costs_one_path(log2: int) -> None:
    nodes = Nodes()
    big = Shape(VOLUME, 16 * TIB, log2)
    base = built(nodes, big, [SlotRun(0, big.chunks, Slot.ZERO)])
    assert nodes.put_count == 1
    base = built(nodes, big, [SlotRun(12345, 12346, ids(1))], base)
    nodes.fetched = nodes.put_count = 0
    tree = built(nodes, big, [SlotRun(big.chunks - 1, big.chunks, ids(2))], base)
    assert nodes.put_count == big.depth
    assert nodes.fetched <= big.depth
    nodes.fetched = 0
    assert [run.first for run, _ in changes(TreeReader(nodes.fetch), base, tree)] == [big.chunks - 1]
    assert nodes.fetched <= 2 * big.depth
    nodes.fetched = 0
    assert list(TreeReader(nodes.fetch).runs(tree, 12345, 12346)) == [SlotRun(12345, 12346, ids(1))]
    assert nodes.fetched <= big.depth


def test_nothing_changed_costs_nothing_but_a_look_at_the_root() -> None:
    nodes = Nodes()
    base = built(nodes, shape(5000), data(0, 100, 4999))
    nodes.put_count = nodes.fetched = 0
    assert built(nodes, shape(5000), [], base) == base
    assert nodes.put_count == 0
    assert nodes.fetched <= 1
    assert list(changes(TreeReader(nodes.fetch), base, base)) == []


def test_reading_in_pieces_costs_as_much_as_reading_at_once() -> None:
    nodes = Nodes()
    tree = built(nodes, shape(64 * 64), data(*range(0, 64 * 64, 7)))
    reader = TreeReader(nodes.fetch)
    nodes.fetched = 0
    pieces = [run for start in range(0, 64 * 64, 16) for run in reader.runs(tree, start, start + 16)]
    assert sum(run.end - run.first for run in pieces) == 64 * 64
    assert nodes.fetched == 65


def test_shared_subtrees_are_not_read_when_comparing() -> None:
    nodes = Nodes()
    old = built(nodes, shape(64 * 64), data(*range(0, 64 * 64, 64)))
    new = built(nodes, shape(64 * 64), data(5), old)
    nodes.fetched = 0
    assert list(changes(TreeReader(nodes.fetch), old, new)) == [(SlotRun(5, 6, ids(6)), Slot.HOLE)]
    assert nodes.fetched == 4


@pytest.mark.parametrize(
    "runs",
    [
        [SlotRun(1, 2, Slot.ZERO), SlotRun(1, 3, Slot.ZERO)],
        [SlotRun(5, 6, Slot.ZERO), SlotRun(2, 3, Slot.ZERO)],
        [SlotRun(2, 2, Slot.ZERO)],
        [SlotRun(3, 2, Slot.ZERO)],
        [SlotRun(100, 101, Slot.ZERO)],
        [SlotRun(99, 101, Slot.ZERO)],
        [SlotRun(0, 101, Slot.HOLE)],
    ],
)
def test_bad_changes_are_refused(runs: list[SlotRun]) -> None:
    with pytest.raises(ValueError, match="changes"):
        built(Nodes(), shape(100), runs)


@pytest.mark.parametrize("other", [Shape(VolumeId(b"w" * 16), 100 * SIZE, LOG2), Shape(VOLUME, 100 * SIZE, LOG2 + 1)])
def test_a_base_of_another_volume_or_chunk_size_is_refused(other: Shape) -> None:
    nodes = Nodes()
    base = built(nodes, shape(100), data(1))
    with pytest.raises(ValueError, match="another volume"):
        built(nodes, other, [], base)


@pytest.mark.parametrize(
    "foreign",
    [
        Shape(VolumeId(b"w" * 16), 5000 * SIZE, LOG2),  # another volume
        Shape(VOLUME, 5000 * SIZE * 2, LOG2 + 1),  # another chunk size
        Shape(VOLUME, 4999 * SIZE, LOG2),  # data past the end
        Shape(VOLUME, 4096 * SIZE, LOG2),  # a lower tree
        Shape(VOLUME, 64**3 * SIZE + 1, LOG2),  # a higher tree
    ],
)
def test_nodes_of_another_tree_are_refused(foreign: Shape) -> None:
    nodes = Nodes()
    tree = built(nodes, shape(5000), data(0, 4999))
    with pytest.raises(IntegrityError):
        list(TreeReader(nodes.fetch).runs(Tree(foreign, tree.root)))
    with pytest.raises(IntegrityError):
        built(nodes, foreign, data(foreign.chunks - 1), Tree(foreign, tree.root))


def test_a_node_at_another_place_is_refused() -> None:
    nodes = Nodes()
    tree = built(nodes, shape(128), data(0, 64))
    reader = TreeReader(nodes.fetch)
    root = reader.node(tree.shape, tree.root, 1, 0)
    left, right = root.slots[:2]
    swapped: tuple[SlotValue, ...] = (right, left, *root.slots[2:])
    forged = nodes.put(Kind.INNER, node.encode(Node(1, 0, 2, swapped), tree.shape))
    with pytest.raises(IntegrityError, match="another place"):
        list(TreeReader(nodes.fetch).runs(Tree(tree.shape, forged)))
    assert isinstance(left, bytes)
    with pytest.raises(IntegrityError):
        reader.node(tree.shape, left, 0, 64)
    # A reader that just read a node at its place does not hand it out for another.
    assert reader.node(tree.shape, left, 0, 0).data_below == 1
    with pytest.raises(IntegrityError):
        reader.node(tree.shape, left, 0, 64)
    with pytest.raises(IntegrityError):
        reader.node(Shape(VolumeId(b"w" * 16), 128 * SIZE, LOG2), left, 0, 0)


@pytest.mark.parametrize(("level", "why"), [(0, "ends too early"), (1, "a difference where a node belongs")])
def test_a_delta_slot_names_three_ids_and_lies_in_leaves_alone(level: int, why: str) -> None:
    nodes, of = Nodes(), shape(64 ** (1 + level))
    content = bytearray(node.encode(Node(level, 0, 0, (Slot.HOLE,) * FAN_OUT), of))
    content[40] = 3
    root = nodes.put(Kind.INNER if level else Kind.LEAF, bytes(content))
    with pytest.raises(IntegrityError, match=why):
        list(TreeReader(nodes.fetch).runs(Tree(of, root)))


def test_volumes_without_a_byte_have_one_empty_leaf() -> None:
    nodes = Nodes()
    tree = built(nodes, shape(0), [])
    assert list(nodes.contents) == [(Kind.LEAF, tree.root)]
    assert list(TreeReader(nodes.fetch).runs(tree)) == []
    full = built(nodes, shape(100), data(1), None)
    assert built(nodes, shape(0), [], full) == tree


def test_a_volume_too_large_for_its_chunks_is_refused() -> None:
    too_large = Shape(VOLUME, 64**10 * SIZE + 1, LOG2)
    with pytest.raises(IntegrityError, match="too large"):
        built(Nodes(), too_large, [])
    assert built(Nodes(), Shape(VOLUME, 64**10 * SIZE, LOG2), []).shape.depth == 10


def test_equal_ids_in_a_row_stay_apart() -> None:
    nodes = Nodes()
    same = ChunkId(b"k" * 24)
    tree = built(nodes, shape(3), [SlotRun(chunk, chunk + 1, same) for chunk in range(3)])
    assert list(TreeReader(nodes.fetch).runs(tree)) == [SlotRun(chunk, chunk + 1, same) for chunk in range(3)]
