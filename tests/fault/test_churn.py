"""Two years of a volume that changes by one percent a day, pruned every week: how much space and traffic it takes.

The model of the design said 26 % of unneeded bytes and 19 % of traffic for packs of 16 chunks and a threshold of one
half. Here the real program does it, with chunks whose contents are invented and small.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from lamella.format.container import Kind
from lamella.format.node import Shape
from lamella.format.records import NO_REF, AddSnap, raw
from lamella.ids import ChunkId, DomainId, SnapId, VolumeId
from lamella.operations.prune import PruneOptions, plan_prune
from lamella.operations.retaining import Policy, plan_retention
from lamella.operations.session import Session
from lamella.repository.containers import raw_body
from lamella.repository.repository import Repository
from lamella.repository.tree import Run, Tree
from lamella.repository.tree_writer import TreeWriter
from lamella.retention import Retention
from lamella.stores.memory import MemoryStore
from tests.fault.world import SECRET, host_at, init

DAY_MS = 86_400_000
CHUNKS = 1600
CHANGED = CHUNKS // 100
HOT = CHUNKS // 50
A_PACK = 16
STORED = 2000
"""Bytes of a stored chunk: enough to outweigh the nodes, as real chunks do."""
RULES = Policy(Retention(daily=7, weekly=4, monthly=12))
DOMAIN = DomainId(b"domain of churn!")
SHAPE = Shape(VolumeId(b"volume of churn!"), CHUNKS << 16, 16)


@dataclass
class Churn:
    """The volume, and what became of its bytes."""

    place: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    now: int = 1_800_000_000_000
    root: ChunkId | None = None
    written: int = 0
    rewritten: int = 0
    worst: float = 0.0

    def opened(self, *, exclusive: bool = False) -> Repository:
        return Repository.open(self.store, SECRET, host_at(self.place), clock=lambda: self.now, exclusive=exclusive)

    def day(self) -> None:
        """Half of the changes hit the hot two percent."""
        self.now += DAY_MS
        chosen = list(range(CHUNKS))
        if self.root is not None:
            hot = {self.chance.randrange(HOT) for _ in range(CHANGED // 2)}
            chosen = sorted(hot | {self.chance.randrange(CHUNKS) for _ in range(CHANGED // 2)})
        with self.opened() as repo:
            repo.refresh_map()
            with Session(repo) as session:
                writer = TreeWriter(repo.tree_reader(DOMAIN), session.packer(DOMAIN).store_node)
                base = None if self.root is None else Tree(SHAPE, self.root)
                self.root = writer.update(SHAPE, base, self._stored(session, chosen))
                session.settle()
                name = f"day{self.now // DAY_MS}"
                head = (SnapId(os.urandom(16)), SHAPE.volume_id, DOMAIN, 16, 1, SHAPE.size, self.root, self.now)
                added = AddSnap(*head, NO_REF, name, (), session.packs(DOMAIN))
                session.publish([raw(added)], [added.snap_id])
                self.written += session.data_bytes

    def _stored(self, session: Session, chunks: list[int]) -> Iterator[Run]:
        packer = session.packer(DOMAIN)
        for number, chunk in enumerate(chunks):
            content = self.chance.randbytes(STORED)
            id_ = packer.identify(Kind.CHUNK)(content)
            packer.store_blob(Kind.CHUNK, id_, STORED, partial(raw_body, content))
            if number % A_PACK == A_PACK - 1:
                packer.finish()
            yield Run(chunk, chunk + 1, id_)

    def prune(self, options: PruneOptions) -> None:
        with self.opened(exclusive=True) as repo:
            result = plan_prune(repo, plan_retention(repo, RULES).refs, options).execute()
        assert not result.blocked
        self.rewritten += result.repacked_bytes
        self.worst = max(self.worst, result.dead_bytes / result.live_bytes)


def lived(place: Path, days: int, options: PruneOptions) -> Churn:
    """So many days, a prune after each seventh."""
    churn = Churn(place)
    init(churn.store, host_at(place))
    for day in range(days):
        churn.day()
        if day % 7 == 6:
            churn.prune(options)
    print(f"worst unused/needed {churn.worst:.3f}, rewritten/written {churn.rewritten / churn.written:.3f}")
    return churn


def test_sixty_days_keep_the_bounds(tmp_path: Path) -> None:
    churn = lived(tmp_path / "default", 60, PruneOptions())
    assert churn.worst <= 0.30 and churn.rewritten <= 0.30 * churn.written
    churn = lived(tmp_path / "tight", 30, PruneOptions(max_unused=5))
    assert churn.worst <= 0.05


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "most_unused", "most_traffic"),
    [(PruneOptions(), 0.30, 0.30), (PruneOptions(max_unused=5), 0.05, 1.5)],
    ids=["default", "at most 5 % unused"],
)
def test_two_years(tmp_path: Path, options: PruneOptions, most_unused: float, most_traffic: float) -> None:
    churn = lived(tmp_path, 730, options)
    assert churn.worst <= most_unused
    assert churn.rewritten <= most_traffic * churn.written
