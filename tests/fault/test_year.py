"""A life: a backup every hour, a prune by policy every night, the power going now and then. What is kept restores.

    python -m tests.fault.test_year DAYS [SEED]

runs it for longer. Time is a number here, so a year takes minutes.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from lamella.memory.host import Host
from lamella.operations.backup.story import BackupOptions, Request, plan_backup
from lamella.operations.prune.health import Health
from lamella.operations.prune.plan import PruneOptions, PruneResult, plan_prune
from lamella.operations.prune.prune import run_prune
from lamella.operations.prune.retaining import Policy, plan_retention
from lamella.operations.prune.retention import Retention
from lamella.repository.repository import Repository
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore
from lamella_kit.crash_store import CrashPoint, CrashStore, PowerCut
from lamella_kit.scripted_source import ScriptedSource
from tests.fault.world import CHUNK, SECRET, Truth, check_rescue, check_sound, fresh_host, host_at, init

T = TypeVar("T")
HOUR_MS = 3_600_000
CHUNKS = 24
HOT = 3
RULES = Retention(hourly=24, daily=7, weekly=4, monthly=12)
OPTIONS = BackupOptions(chunk_log2=16, workers=1)


@dataclass
class Life:
    """One host, one repository in memory, two volumes that change."""

    place: Path
    seed: int
    now: int = 1_800_000_000_000
    objects: dict[str, bytes] = field(default_factory=dict)
    truth: Truth = field(default_factory=Truth)
    counts: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.volumes = {name: bytearray(self.chance.randbytes(CHUNKS * CHUNK)) for name in ("root", "private")}
        store = MemoryStore()
        init(store, self.host)
        self.objects = store.objects()

    @property
    def host(self) -> Host:
        return host_at(self.place / "host")

    def clock(self) -> int:
        self.now += 1
        return self.now

    def change(self) -> None:
        """Half of the writes hit a hot part."""
        for content in self.volumes.values():
            for _ in range(self.chance.randrange(3)):
                most = HOT if self.chance.random() < 0.5 else CHUNKS
                chunk = self.chance.randrange(most)
                content[chunk * CHUNK : chunk * CHUNK + 512] = self.chance.randbytes(512)

    def powered(self, work: Callable[[Store], T], calls: int, risk: float) -> T | None:
        """Do it on a machine that may lose power at one of its first calls; None if it did."""
        point = None
        if self.chance.random() < risk:
            point = CrashPoint(self.chance.randrange(1, calls), after_effect=self.chance.random() < 0.5)
        store = CrashStore(self.objects, point)
        try:
            result = work(store)
        except PowerCut:
            kept = [number for number in range(len(store.unsynced)) if self.chance.random() < 0.5]
            self.objects = store.after_crash(kept).objects()
            self.counts["power cuts"] += 1
            return None
        self.objects = store.after_crash(()).objects()
        return result

    def backup(self) -> None:
        contents = {name: bytes(content) for name, content in self.volumes.items()}
        requests = [Request(name, ScriptedSource(name, content)) for name, content in contents.items()]

        def work(store: Store) -> None:
            with Repository.open(store, SECRET, self.host, clock=self.clock) as repo:
                self.truth.learn(plan_backup(repo, requests, OPTIONS).execute(), contents)

        self.powered(work, 9, 0.03)
        self.counts["backups"] += 1

    def prune(self, options: PruneOptions | None = None, risk: float = 0.2) -> PruneResult | None:
        def work(store: Store) -> PruneResult:
            with Repository.open(store, SECRET, self.host, clock=self.clock, exclusive=True) as repo:
                plan = plan_retention(repo, Policy(RULES))
                for row in plan.removed:
                    self.truth.volumes.pop(row.selected.text, None)
                return run_prune(repo, plan.refs, options)

        result = self.powered(work, 25, risk)
        self.counts["prunes"] += 1
        if result is not None:
            assert not result.blocked, result.blocked
            self.counts["removed"] += len(result.removed)
            self.counts["rewritten"] += result.repacked_bytes
            self.worst = max(self.worst, result.dead_bytes / max(1, result.live_bytes))
        return result

    def live(self, days: int) -> None:
        for day in range(days):
            for _ in range(24):
                self.now += HOUR_MS
                self.change()
                self.backup()
            self.prune()
            if day % 30 == 7:
                self.check()

    def check(self) -> None:
        """Everything that should be there is, and restores; a snapshot whose power cut came late may be there, too."""
        store = MemoryStore(self.objects)
        with Repository.open(store, SECRET, self.host, clock=self.clock) as repo:
            listed = {
                f"{volume.name}@{one.name}" for volume in repo.catalogue.volumes.values() for one in volume.snapshots
            }
            assert set(self.truth.volumes) <= listed
            assert len(listed - set(self.truth.volumes)) <= 2 * self.counts["power cuts"]
        for text in listed - set(self.truth.volumes):
            self.counts["late"] += bool(text)

    def end(self) -> None:
        """No kills any more, nothing is waited for: only what is needed is left."""
        self.now += 8 * 24 * HOUR_MS
        assert self.prune(PruneOptions(max_unused=0), risk=0) is not None
        store = MemoryStore(self.objects)
        opened = Repository.open(store, SECRET, self.host, clock=self.clock, exclusive=True, whole=True)
        with opened as repo, Health(repo) as health:
            plan = plan_prune(repo, [], PruneOptions(max_unused=0), health)
            assert not plan.packs and not plan.undecided and not plan.unused_bytes
            known = {use.pack.hex() for use in health.usage().packs()}
            listed = {
                f"{volume.name}@{one.name}" for volume in repo.catalogue.volumes.values() for one in volume.snapshots
            }
        assert {name.rsplit("/", 1)[1] for name in self.objects if name.startswith("p/")} == known
        # Of a commit whose answer the power took away the test does not know; its snapshot restores to something.
        kept = Truth({text: content for text, content in self.truth.volumes.items() if text in listed})
        assert kept.volumes == self.truth.volumes
        self.judge(kept, listed)

    def judge(self, kept: Truth, listed: set[str]) -> None:
        late = listed - set(kept.volumes)
        assert len(late) <= self.counts["power cuts"] * 2
        (self.place / "out").mkdir()
        with_late = Truth(dict(kept.volumes))
        check_rescue(self.objects, with_late, self.place / "out")
        check_sound(MemoryStore(self.objects), fresh_host(self.place / "fresh"), kept, self.place, others=Anything())


class Anything(tuple[bytes, ...]):
    """What a snapshot may hold of which the test lost sight."""

    def __contains__(self, content: object) -> bool:
        return isinstance(content, bytes) and len(content) == CHUNKS * CHUNK


@pytest.mark.timeout(1800)
def test_sixty_days(tmp_path: Path) -> None:
    life = Life(tmp_path, seed=1)
    life.live(60)
    life.end()
    assert life.counts["power cuts"] > 20 and life.counts["removed"] > 1000
    assert life.worst <= 0.3, "the stated bound of a default prune"


def main() -> None:
    days, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory(prefix="lamella-year-") as place:
        started = time.monotonic()
        life = Life(Path(place), seed)
        life.live(days)
        size = sum(len(content) for name, content in life.objects.items() if name.startswith("p/"))
        life.end()
        print(dict(life.counts), f"worst dead/live {life.worst:.3f}, packs {size} bytes at the end,")
        print(f"{len(life.objects)} objects, {len(life.truth.volumes)} snapshots restored by both readers,")
        print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
