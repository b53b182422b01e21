"""Histories of trees with differences, marked and pruned by the code that deletes: no base that is needed ever goes.

Trees are made, copies of chunks appear, trees go, packs are deleted and rewritten by what the mark says; after each
prune every chunk of every tree that is left must open. `LAMELLA_DELTA_HISTORIES` says how many histories there are.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.base.errors import IntegrityError
from lamella.base.ids import ChunkId, DomainId, VolumeId
from lamella.base.names import pack_hash, pack_name
from lamella.base.trust import Opened
from lamella.crypto.derive import Keys
from lamella.format.container import Kind
from lamella.format.difference import make
from lamella.format.node import DeltaChunk, Shape, Slot
from lamella.operations.shared.marking import LiveWalk, Roots
from lamella.packs import deltas
from lamella.packs.blobmap import BlobMap
from lamella.packs.building import raw_body
from lamella.packs.cache import Cache
from lamella.packs.contents import Contents
from lamella.packs.packer import Packer
from lamella.packs.tree import SlotRun, Tree, TreeReader
from lamella.packs.tree_writer import TreeWriter
from lamella.packs.usage import LiveIds
from lamella.run.pipeline import Outbox
from lamella.stores.memory import MemoryStore
from tests.unit.small_repository import Small

HISTORIES = int(os.environ.get("LAMELLA_DELTA_HISTORIES", "60"))
CHUNK, CHUNKS = 1 << 16, 4
DOMAIN = DomainId(b"d" * 16)
SHAPE = Shape(VolumeId(b"v" * 16), CHUNKS * CHUNK, 16)


class History:
    """One domain's packs, and the trees that stand with what they must give."""

    def __init__(self, keys: Keys, outbox: Outbox, seed: int) -> None:
        self.chance = random.Random(seed)
        self.keys, self.outbox, self.store = keys, outbox, MemoryStore()
        self.map = BlobMap(Cache.open(None), keys, self.store)
        self.contents = Contents(self.store, keys, self.map)
        self.trees: dict[ChunkId, list[bytes]] = {}
        self.bases = 0

    def packer(self) -> Packer:
        return Packer(self.keys, DOMAIN, self.store, self.map, self.outbox)

    def reader(self) -> TreeReader:
        return TreeReader(lambda kind, id_: self.contents.get(DOMAIN, kind, id_))

    def store_chunk(self, packer: Packer, content: bytes) -> ChunkId:
        id_ = packer.identify(Kind.CHUNK)(content)
        if not self.map.has(Kind.CHUNK, id_):
            packer.store_blob(Kind.CHUNK, id_, len(content), lambda: raw_body(content))
        return id_

    def save(self) -> None:
        """A tree from one that stands, or from nothing: some chunks whole, some as differences from full ones."""
        packer = self.packer()
        root = self.chance.choice([None, *self.trees, *self.trees])
        base = None if root is None else Tree(SHAPE, root)
        old = dict(enumerate(self.trees[root])) if root is not None else {}
        slots = {run.first: run.slot for run in self.reader().runs(base)} if base is not None else {}
        changes, content = [], []
        for chunk in range(CHUNKS):
            before = old.get(chunk)
            if before is not None and self.chance.random() < 0.4:
                content.append(before)
                continue
            now = bytearray(before or bytes([self.chance.randrange(1, 4)]) * CHUNK)
            at = self.chance.randrange(3) * 20000
            now[at : at + 3] = bytes(self.chance.randrange(4) for _ in range(3))
            content.append(bytes(now))
            changes.append(SlotRun(chunk, chunk + 1, self.slot(packer, bytes(now), before, slots.get(chunk))))
        made = TreeWriter(self.reader(), packer.store_node).update(SHAPE, base, changes)
        packer.finish()
        self.outbox.drain()
        self.trees[made] = content

    def slot(self, packer: Packer, now: bytes, before: bytes | None, slot: Slot | ChunkId | None) -> ChunkId:
        plain = isinstance(slot, bytes) and not isinstance(slot, DeltaChunk)
        if before is not None and isinstance(slot, bytes) and plain and self.chance.random() < 0.8:
            difference = make(memoryview(before), memoryview(now), raw_body)
            assert difference is not None
            self.bases += 1
            return DeltaChunk.slot(packer.identify(Kind.CHUNK)(now), slot, self.store_chunk(packer, difference))
        return self.store_chunk(packer, now)

    def copy_a_chunk(self) -> None:
        """A copy of some chunk appears, as a repair or another run leaves one."""
        packer = self.packer()
        self.store_chunk(packer, self.chance.choice(self.chance.choice(list(self.trees.values()))))
        packer.finish()
        self.outbox.drain()

    def remove(self) -> None:
        del self.trees[self.chance.choice(list(self.trees))]

    def prune(self) -> None:
        """Delete what the mark does not name: whole packs, and parts of others by rewriting these."""
        roots = Roots([Tree(SHAPE, root) for root in self.trees])
        with LiveIds() as live:
            for _, ids in LiveWalk(self.contents, DOMAIN).referenced(roots):
                live.add(ids)
            packs = [pack_hash(entry.name) for entry in list(self.store.list("p/"))]
            for pack in packs:
                assert pack is not None
                self.rewrite(pack, live)
        self.map.refresh()

    def rewrite(self, pack: bytes, live: LiveIds) -> None:
        directory = self.map.directory(pack)
        assert directory is not None
        needed = live.among(blob.id for blob in directory.blobs)
        if len(needed) == len(directory.blobs) and self.chance.random() < 0.7:
            return
        kept = [(blob.kind, blob.id, self.contents.get(DOMAIN, blob.kind, blob.id)) for blob in directory.blobs
                if blob.id in needed]  # fmt: skip
        self.store.delete(pack_name(pack))
        self.map.refresh()
        packer = self.packer()
        for kind, id_, content in kept:
            if not self.map.has(kind, id_):
                packer.store_blob(kind, id_, len(content), lambda content=content: raw_body(content))  # type: ignore[misc]
        packer.finish()
        self.outbox.drain()

    def check(self) -> None:
        for root, content in self.trees.items():
            runs = list(self.reader().runs(Tree(SHAPE, root)))
            wanted: list[tuple[ChunkId, int | None]] = [
                (run.slot, CHUNK) for run in runs if isinstance(run.slot, bytes)
            ]
            assert all(deltas.present(self.map, DOMAIN, wanted))
            found: dict[ChunkId, Opened] = self.contents.get_many(DOMAIN, Kind.CHUNK, wanted)
            assert [found[id_] for id_, _ in wanted] == content

    def run(self) -> None:
        self.save()
        for _ in range(self.chance.randrange(3, 9)):
            step = self.chance.random()
            if step < 0.45:
                self.save()
            elif step < 0.55:
                self.copy_a_chunk()
            elif step < 0.75 and len(self.trees) > 1:
                self.remove()
            else:
                self.prune()
                self.check()
        self.prune()
        self.check()


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    with tempfile.TemporaryDirectory() as place, Small.make(Path(place)).opened() as repo:
        yield repo.keys


@pytest.fixture(scope="module")
def outbox() -> Iterator[Outbox]:
    """One thread for all histories."""
    with Outbox(1) as outbox:
        yield outbox


@pytest.mark.timeout(0 if HISTORIES > 1000 else 300)
def test_no_base_that_is_needed_goes(keys: Keys, outbox: Outbox) -> None:
    bases = 0
    for seed in range(HISTORIES):
        history = History(keys, outbox, seed)
        try:
            history.run()
        except (AssertionError, IntegrityError) as error:
            raise AssertionError(f"history {seed}: {error}") from error
        bases += history.bases
    assert bases > HISTORIES, "most histories have differences"


def test_a_mark_that_forgets_bases_is_found(keys: Keys, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deliberate fault: differences are needed, what they are from is not."""
    monkeypatch.setattr(
        deltas,
        "blobs_of",
        lambda blobs, domain_id, ids: [id_.difference if isinstance(id_, DeltaChunk) else id_ for id_ in ids],
    )
    with pytest.raises((AssertionError, IntegrityError)):
        for seed in range(60):
            History(keys, outbox, seed).run()
