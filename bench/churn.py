"""Two years of one volume, with and without differences: `python -m bench.churn [--days N] [--mib N] [--writes N]`.

A backup and a prune by policy every day, time being a number. Half of the writes hit a hot tenth of the volume, and
once a week half a mebibyte is new. Only the volume's bytes are invented: repository, prune and grace are the real ones.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import MIB, BenchError
from lamella.crypto.slots import key_file
from lamella.memory.host import Host, machine_name
from lamella.operations.backup.story import BackupOptions, Request, plan_backup
from lamella.operations.prune.prune import run_prune
from lamella.operations.prune.retaining import Policy, plan_retention
from lamella.operations.prune.retention import Retention
from lamella.repository.create import SlotWanted, create_repository
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from lamella_kit.tracked_source import TrackedDisk

RULES = Retention(daily=7, weekly=4, monthly=12)
DAY_MS = 86_400_000
BLOCK = 4096
SECRET = key_file(bytes(range(64)))


@dataclass
class Years:
    """A host, a repository in memory and a volume; the figures are bytes and CPU seconds."""

    place: Path
    mib: int
    writes: int
    seed: int
    deltas: bool
    now: int = 1_800_000_000_000
    stored: int = 0
    rewritten: int = 0
    most: int = 0
    cpu: float = 0.0
    store: MemoryStore = field(default_factory=MemoryStore)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.disk = TrackedDisk("disk", bytearray(self.chance.randbytes(self.mib * MIB)))
        self.host = Host(machine_name("bench"), "bench", self.place / "state", self.place / "cache")
        create_repository(self.store, self.host, [SlotWanted(SECRET, admin=True)], self.clock)

    def clock(self) -> int:
        """A moment later than the last one."""
        self.now += 1
        return self.now

    def live(self, days: int) -> None:
        """So many days."""
        for day in range(days):
            self.now += DAY_MS
            self._change(day)
            started = time.process_time()
            self._save()
            self._prune()
            self.cpu += time.process_time() - started
            self.most = max(self.most, self.size)

    @property
    def size(self) -> int:
        """Bytes of the repository."""
        return sum(entry.size for entry in self.store.list(""))

    def _change(self, day: int) -> None:
        blocks = len(self.disk.content) // BLOCK
        for _ in range(self.writes):
            block = self.chance.randrange(blocks // 10 if self.chance.random() < 0.5 else blocks)
            self.disk.content[block * BLOCK : (block + 1) * BLOCK] = self.chance.randbytes(BLOCK)
        if day % 7 == 0:
            start = self.chance.randrange(self.mib * 2 - 1) * MIB // 2
            self.disk.content[start : start + MIB // 2] = self.chance.randbytes(MIB // 2)

    def _save(self) -> None:
        with Repository.open(self.store.connect(), SECRET, self.host, clock=self.clock) as repo:
            options = BackupOptions(deltas=self.deltas)
            result = plan_backup(repo, [Request("disk", self.disk.source())], options).execute()
        if not result.complete:
            raise BenchError(f"a backup failed: {result}")
        self.stored += sum(row.stored_bytes for row in result.volumes) + result.metadata_bytes

    def _prune(self) -> None:
        with Repository.open(self.store.connect(), SECRET, self.host, clock=self.clock, exclusive=True) as repo:
            result = run_prune(repo, plan_retention(repo, Policy(RULES)).refs)
        if result.blocked or result.damaged:
            raise BenchError(f"a prune was stopped: {[*result.blocked, *result.damaged]}")
        self.rewritten += result.repacked_bytes


def main() -> int:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(prog="python -m bench.churn", description=__doc__)
    for name, default in (("days", 730), ("mib", 64), ("writes", 60), ("seed", 17)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    print(f"{'MiB':<14}{'stored':>10}{'rewritten':>11}{'largest':>10}{'at the end':>12}{'CPU s':>8}")
    for deltas in (False, True):
        with tempfile.TemporaryDirectory(prefix="lamella-bench-") as folder:
            years = Years(Path(folder), args.mib, args.writes, args.seed, deltas)
            years.live(args.days)
        sizes = (years.stored, years.rewritten, years.most, years.size)
        text = "".join(f"{one / MIB:>{width}.1f}" for one, width in zip(sizes, (10, 11, 10, 12), strict=True))
        print(f"{'differences' if deltas else 'whole chunks':<14}{text}{years.cpu:>8.1f}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
