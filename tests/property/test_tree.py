"""The law of the manifest tree: whatever changed and however it was resized, updating equals rebuilding (FORMAT 6)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from lamella.base.errors import ObjectNotFound
from lamella.base.ids import ChunkId, VolumeId
from lamella.base.trust import Opened
from lamella.format import node
from lamella.format.container import Kind
from lamella.format.node import FAN_OUT, Shape, Slot, SlotValue
from lamella.packs.tree import SlotRun, Tree, TreeReader
from lamella.packs.tree_changes import changes
from lamella.packs.tree_writer import Partial, TreeWriter

VOLUME = VolumeId(b"v" * 16)
LOG2 = 16
SIZE = 1 << LOG2
EDGES = (0, 1, 2, 3, 63, 64, 65, 128, 200, 4095, 4096, 4097, 5000, 8192)


class Nodes:
    """A place for nodes, by kind and id, as a domain of a repository is."""

    def __init__(self) -> None:
        self.contents: dict[tuple[Kind, ChunkId], bytes] = {}
        self.fetched = 0
        self.put_count = 0

    def put(self, kind: Kind, content: bytes) -> ChunkId:
        self.put_count += 1
        id_ = ChunkId(hashlib.blake2b(bytes([kind]) + content, digest_size=24).digest())
        self.contents[kind, id_] = content
        return id_

    def fetch(self, kind: Kind, id_: ChunkId) -> Opened:
        self.fetched += 1
        if (kind, id_) not in self.contents:
            raise ObjectNotFound("no such node", obj=id_.hex())
        return Opened(self.contents[kind, id_])


def runs_of(slots: Sequence[SlotValue], first: int = 0) -> list[SlotRun]:
    """Slots as runs: equal neighbours merged unless they are data."""
    runs: list[SlotRun] = []
    for chunk, slot in enumerate(slots, first):
        if runs and runs[-1].slot == slot and not isinstance(slot, bytes):
            runs[-1] = runs[-1]._replace(end=chunk + 1)
        else:
            runs.append(SlotRun(chunk, chunk + 1, slot))
    return runs


class Step(NamedTuple):
    """One snapshot: the new number of chunks, bytes missing from the last one, and what is written."""

    chunks: int
    short: int
    writes: list[tuple[int, int, SlotValue]]


def ids(number: int) -> ChunkId:
    return ChunkId(number.to_bytes(24, "big"))


sizes = st.one_of(st.sampled_from(EDGES), st.integers(0, 300), st.integers(0, 9000))
values = st.one_of(st.sampled_from([Slot.HOLE, Slot.ZERO]), st.integers(1, 5).map(ids))
lengths = st.one_of(st.just(1), st.integers(1, 70), st.sampled_from([64, 128, 4096, 9000]))
writes = st.lists(st.tuples(st.integers(0, 9000), lengths, values), max_size=6)
steps = st.builds(Step, sizes, st.sampled_from([0, 1, 5000]), writes)


class Model:
    """The slots as a list, and what a backup would say about a step."""

    def __init__(self) -> None:
        self.slots: list[SlotValue] = []

    def apply(self, step: Step, tail: list[SlotValue]) -> list[SlotRun]:
        """Move on; returns the changes, as the backup would report them: everything from the smaller end on."""
        changed: dict[int, SlotValue] = {}
        before, after = len(self.slots), step.chunks
        for number, chunk in enumerate(range(max(0, min(before, after) - 1), after)):
            changed[chunk] = tail[number % len(tail)] if tail else Slot.HOLE
        for first, length, value in step.writes:
            start = first % after if after else 0
            changed |= {chunk: value for chunk in range(start, min(start + length, after))}
        self.slots = (self.slots + [Slot.HOLE] * after)[:after]
        for chunk, value in changed.items():
            self.slots[chunk] = value
        return [SlotRun(chunk, chunk + 1, changed[chunk]) for chunk in sorted(changed)]


def merged(runs: list[SlotRun]) -> list[SlotRun]:
    """Neighbours joined where the slot is not data, as runs of holes come from a source."""
    joined: list[SlotRun] = []
    for run in runs:
        last = joined[-1] if joined else None
        if last is not None and last.end == run.first and last.slot == run.slot and not isinstance(run.slot, bytes):
            joined[-1] = last._replace(end=run.end)
        else:
            joined.append(run)
    return joined


def shape_of(step: Step) -> Shape:
    return Shape(VOLUME, max(0, step.chunks * SIZE - (step.short if step.chunks else 0)), LOG2)


def nodes_of(nodes: Nodes, tree: Tree) -> list[tuple[node.Node, bool]]:
    """All stored nodes of a tree, each read and checked at its place, with whether it is the root."""
    reader = TreeReader(nodes.fetch)
    found: list[tuple[node.Node, bool]] = []

    def below(id_: ChunkId, level: int, first: int) -> None:
        one = reader.node(tree.shape, id_, level, first)
        found.append((one, level == tree.shape.depth - 1))
        for position, slot in enumerate(one.slots):
            if level and isinstance(slot, bytes):
                below(slot, level - 1, first + position * FAN_OUT**level)

    below(tree.root, tree.shape.depth - 1, 0)
    return found


def check_counts(nodes: Nodes, tree: Tree, slots: list[SlotValue]) -> None:
    """Every node counts its data, and none but the root is without any difference inside."""
    for one, is_root in nodes_of(nodes, tree):
        end = min(one.first_chunk + FAN_OUT ** (one.level + 1), len(slots))
        covered = slots[one.first_chunk : end]
        assert one.data_below == sum(isinstance(slot, bytes) for slot in covered)
        assert is_root or isinstance(covered[0], bytes) or len(set(covered)) > 1


def check_changes(reader: TreeReader, old: Tree, new: Tree, before: list[SlotValue], after: list[SlotValue]) -> None:
    """`changes` tells exactly the differing chunks, each once and in order, with both slots."""
    seen: dict[int, tuple[SlotValue, SlotValue]] = {}
    end = 0
    for run, was in changes(reader, old, new):
        assert end <= run.first < run.end
        end = run.end
        seen |= {chunk: (was, run.slot) for chunk in range(run.first, run.end)}
    earlier = (before + [Slot.HOLE] * len(after))[: len(after)]
    assert seen == {
        chunk: (one, other) for chunk, (one, other) in enumerate(zip(earlier, after, strict=True)) if one != other
    }


@given(st.lists(st.tuples(steps, st.lists(values, max_size=3)), min_size=1, max_size=5), st.data())
def test_updating_equals_rebuilding(history: list[tuple[Step, list[SlotValue]]], data: st.DataObject) -> None:
    nodes = Nodes()
    reader = TreeReader(nodes.fetch)
    writer = TreeWriter(reader, nodes.put)
    model = Model()
    base: Tree | None = None
    for step, tail in history:
        before = list(model.slots)
        changes = merged(model.apply(step, tail))
        shape = shape_of(step)
        tree = Tree(shape, writer.update(shape, base, changes))
        # The canonical form: the same slots give the same root, by whatever way they came about.
        assert tree.root == TreeWriter(reader, nodes.put).update(shape, None, runs_of(model.slots))
        assert list(reader.runs(tree)) == runs_of(model.slots)
        first = data.draw(st.integers(0, step.chunks), "first")
        end = data.draw(st.integers(first, step.chunks + 70), "end")
        assert list(reader.runs(tree, first, end)) == runs_of(model.slots[first:end], first)
        check_counts(nodes, tree, model.slots)
        if base is not None:
            check_changes(reader, base, tree, before, model.slots)
        base = tree


def half_done(before: Sequence[SlotValue], after: Sequence[SlotValue], done: int, smaller: int) -> list[SlotValue]:
    """The new slots up to `done`, then the old ones; nothing of them from where the sizes differ."""
    rest = [*before[done:], *([Slot.HOLE] * len(after))][: len(after) - done]
    return [*after[:done], *(slot if done + place < smaller else Slot.HOLE for place, slot in enumerate(rest))]


@given(steps, st.lists(st.tuples(steps, st.lists(values, max_size=3)), max_size=1), st.sets(st.integers(0, 40)))
def test_a_tree_is_half_done_at_any_change(
    first: Step, second: list[tuple[Step, list[SlotValue]]], stops: set[int]
) -> None:
    """What is done by then is new, the rest as it was; the tree is canonical, and the writing goes on undisturbed."""
    nodes, model = Nodes(), Model()
    writer = TreeWriter(TreeReader(nodes.fetch), nodes.put)
    seen: list[tuple[Partial, int]] = []
    base: Tree | None = None
    before: list[SlotValue] = []
    all_steps: list[tuple[Step, list[SlotValue]]] = [(first, [ids(1)]), *second]
    for number, (step, tail) in enumerate(all_steps, start=1):
        shape, before = shape_of(step), list(model.slots)
        changes: Iterable[SlotRun] = merged(model.apply(step, tail))
        if number == len(all_steps):
            changes = stopping(writer, changes, stops, seen)
        tree = Tree(shape, writer.update(shape, base, changes))
        assert writer.partial() is None
        assert tree.root == TreeWriter(TreeReader(nodes.fetch), nodes.put).update(shape, None, runs_of(model.slots))
        base, earlier = tree, base
    same = earlier is None or earlier.shape.size == shape.size
    smaller = len(model.slots) if same else min(0 if earlier is None else earlier.shape.size, shape.size) >> LOG2
    for partial, end in seen:
        assert partial.done == end
        slots = half_done(before, model.slots, end, smaller)
        whole = TreeWriter(TreeReader(nodes.fetch), nodes.put).update(shape, None, runs_of(slots))
        assert partial.root == whole
        check_counts(nodes, Tree(shape, partial.root), slots)


def stopping(
    writer: TreeWriter, runs: Iterable[SlotRun], stops: set[int], seen: list[tuple[Partial, int]]
) -> Iterator[SlotRun]:
    """The changes; before some of them it is looked how far the tree has come."""
    end = 0
    for number, run in enumerate(runs):
        if number in stops:
            partial = writer.partial()
            assert (partial is None) == (number == 0), "nothing is open before the first change is known"
            if partial is not None:
                seen.append((partial, end))
        yield run
        end = run.end


def test_looking_how_far_a_large_tree_has_come_costs_one_path() -> None:
    nodes = Nodes()
    shape = Shape(VOLUME, (64**3) * SIZE, LOG2)
    plain = TreeWriter(TreeReader(nodes.fetch), nodes.put)
    everywhere = [SlotRun(chunk, chunk + 1, ids(1)) for chunk in range(0, 64**3, 4096)]
    base = Tree(shape, plain.update(shape, None, everywhere))
    writer = TreeWriter(TreeReader(nodes.fetch), nodes.put)

    def changes() -> Iterator[SlotRun]:
        for chunk in (0, 5000, 100_000):
            yield SlotRun(chunk, chunk + 1, ids(2))
        nodes.fetched = nodes.put_count = 0
        partial = writer.partial()
        assert partial is not None and partial.done == 100_001
        assert nodes.put_count == shape.depth and nodes.fetched == 0
        yield SlotRun(200_000, 200_001, ids(3))

    writer.update(shape, base, changes())


@given(steps, st.integers(0, 8999), values)
def test_one_changed_chunk_costs_at_most_one_path(step: Step, chunk: int, value: SlotValue) -> None:
    if not step.chunks:
        return
    nodes, model = Nodes(), Model()
    shape = shape_of(step)
    base = Tree(shape, TreeWriter(TreeReader(nodes.fetch), nodes.put).update(shape, None, model.apply(step, [])))
    nodes.fetched = nodes.put_count = 0
    place = chunk % step.chunks
    root = TreeWriter(TreeReader(nodes.fetch), nodes.put).update(shape, base, [SlotRun(place, place + 1, value)])
    assert nodes.fetched <= shape.depth
    assert nodes.put_count <= shape.depth
    if model.slots[place] == value:
        assert root == base.root
        assert nodes.put_count <= 1  # a root without data is made again to be told that it is the same
    else:
        nodes.fetched = 0
        assert len(list(changes(TreeReader(nodes.fetch), base, Tree(shape, root)))) == 1
        assert nodes.fetched <= 2 * shape.depth
