"""Two years of a volume that changes by one percent a day, pruned every week: how much space and traffic it takes.

The real program does it, with chunks of 0.5 MiB and packs of 8 and 16 MiB, all of them scaled down. What is written a
day has to fill several packs, and chunks have to outweigh the nodes, or other things are measured than in real volumes.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from lamella.base.ids import ChunkId, DomainId, SnapId, VolumeId
from lamella.format.container import Kind
from lamella.format.node import Shape
from lamella.format.records import NO_REF, AddSnap, raw
from lamella.operations.prune.plan import PruneOptions
from lamella.operations.prune.prune import run_prune
from lamella.operations.prune.retaining import Policy, plan_retention
from lamella.operations.prune.retention import Retention
from lamella.operations.writing.session import WritingSession
from lamella.packs import packer
from lamella.packs.building import raw_body
from lamella.packs.tree import SlotRun, Tree
from lamella.packs.tree_writer import TreeWriter
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from tests.fault.world import SECRET, host_at, init

DAY_MS = 86_400_000
REAL_STORED = 1 << 19
RULES = Policy(Retention(daily=7, weekly=4, monthly=12))
DOMAIN = DomainId(b"domain of churn!")


@dataclass
class Churn:
    """The volume, and what became of its bytes."""

    place: Path
    chunks: int
    stored: int
    """Bytes of a stored chunk."""
    store: MemoryStore = field(default_factory=MemoryStore)
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    now: int = 1_800_000_000_000
    root: ChunkId | None = None
    written: int = 0
    rewritten: int = 0
    worst: float = 0.0

    def opened(self, *, exclusive: bool = False) -> Repository:
        return Repository.open(self.store, SECRET, host_at(self.place), clock=lambda: self.now, exclusive=exclusive)

    @property
    def shape(self) -> Shape:
        return Shape(VolumeId(b"volume of churn!"), self.chunks << 16, 16)

    def day(self) -> None:
        """Half of the changes hit the hot two percent."""
        self.now += DAY_MS
        chosen = list(range(self.chunks))
        if self.root is not None:
            half = self.chunks // 200
            hot = {self.chance.randrange(self.chunks // 50) for _ in range(half)}
            chosen = sorted(hot | {self.chance.randrange(self.chunks) for _ in range(half)})
        with self.opened() as repo:
            repo.refresh_map()
            with WritingSession(repo) as session:
                writer = TreeWriter(repo.tree_reader(DOMAIN), session.packer(DOMAIN).store_node)
                base = None if self.root is None else Tree(self.shape, self.root)
                self.root = writer.update(self.shape, base, self._stored(session, chosen))
                session.settle()
                name = f"day{self.now // DAY_MS}"
                head = (SnapId(os.urandom(16)), self.shape.volume_id, DOMAIN, 16, 1, self.shape.size)
                packs = session.packs(DOMAIN)
                added = AddSnap(*head, self.root, self.now, NO_REF, name, (), packs)
                session.publish([raw(added)], [added.snap_id])
                self.written += session.data_bytes

    def _stored(self, session: WritingSession, chunks: list[int]) -> Iterator[SlotRun]:
        ours = session.packer(DOMAIN)
        for chunk in chunks:
            content = self.chance.randbytes(self.stored)
            id_ = ours.identify(Kind.CHUNK)(content)
            ours.store_blob(Kind.CHUNK, id_, self.stored, partial(raw_body, content))
            yield SlotRun(chunk, chunk + 1, id_)

    def prune(self, options: PruneOptions) -> None:
        with self.opened(exclusive=True) as repo:
            result = run_prune(repo, plan_retention(repo, RULES).refs, options)
        assert not result.blocked
        self.rewritten += result.repacked_bytes
        self.worst = max(self.worst, result.dead_bytes / result.live_bytes)


def lived(churn: Churn, days: int, options: PruneOptions) -> None:
    """So many days, a prune after each seventh; packs are as much smaller than real ones as the chunks are."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("INCREMENTAL_TARGET", "BULK_TARGET", "_NODES_AT_ONCE"):
            real = getattr(packer, name)
            patch.setattr(packer, name, real * churn.stored // REAL_STORED)
        init(churn.store, host_at(churn.place))
        for day in range(days):
            churn.day()
            if day % 7 == 6:
                churn.prune(options)
    print(f"worst unused/needed {churn.worst:.3f}, rewritten/written {churn.rewritten / churn.written:.3f}")


def test_sixty_days_keep_the_bounds(tmp_path: Path) -> None:
    churn = Churn(tmp_path / "default", 1600, 8000)
    lived(churn, 60, PruneOptions())
    assert churn.worst <= 0.30 and churn.rewritten <= 0.30 * churn.written
    churn = Churn(tmp_path / "tight", 1600, 8000)
    lived(churn, 30, PruneOptions(max_unused=5))
    assert churn.worst <= 0.05


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "most_unused", "most_traffic"),
    [(PruneOptions(), 0.30, 0.30), (PruneOptions(max_unused=5), 0.05, 1.5)],
    ids=["default", "at most 5 % unused"],
)
def test_two_years(tmp_path: Path, options: PruneOptions, most_unused: float, most_traffic: float) -> None:
    churn = Churn(tmp_path, 12_800, 32_000)
    lived(churn, 730, options)
    assert churn.worst <= most_unused
    assert churn.rewritten <= most_traffic * churn.written
