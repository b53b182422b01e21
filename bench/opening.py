"""What it costs a new machine to open a repository after years: `python -m bench.opening [--snapshots N]`.

Three hosts back up in turn; a collector audits checkpoints and deletes the commits they repeat, with --remove also nine
of ten snapshots. Counted are requests and bytes, so the figures are the same on every machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lamella.base.ids import ChunkId, DomainId, SnapId, VolumeId
from lamella.crypto.slots import key_file
from lamella.format.deletion import Remove
from lamella.format.records import NO_REF, AddSnap, Confirm, Figures, RawRecord, Ref, Run, RunVolume, raw
from lamella.memory.host import Host, machine_name
from lamella.operations.shared.auditing import compact_log
from lamella.repository.create import SlotWanted, create_repository
from lamella.repository.repository import Repository
from lamella.stores.base import Entry
from lamella.stores.memory import MemoryStore

KEY = key_file(b"k" * 32)
HOSTS = ("one", "two", "three")
REMOVED_AT_ONCE = 90
PAGE = 1000
"""Names in one answer of an S3 listing."""


class CountedStore(MemoryStore):
    """Counts what is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0
        self.read_bytes = 0

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        content = super().get(name, offset, length)
        self.requests += 1
        self.read_bytes += len(content)
        return content

    def stat(self, name: str) -> int:
        self.requests += 1
        return super().stat(name)

    def list(self, prefix: str) -> Iterator[Entry]:
        found = [*super().list(prefix)]
        self.requests += 1 + len(found) // PAGE
        self.read_bytes += sum(len(entry.name) + 16 for entry in found)
        return iter(found)


@dataclass(frozen=True)
class Cost:
    """Of opening by a host that knows nothing."""

    snapshots: int
    commits: int
    published: int
    requests: int
    read_bytes: int


class Years:
    """A repository that gets old."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.store = CountedStore()
        self.now_ms = 1_800_000_000_000
        self.published = 0
        self.live: list[Ref] = []
        create_repository(self.store, self.host("one"), [SlotWanted(KEY, True)], self.clock, id_alg=1)
        self.repositories = {name: self.open(name) for name in HOSTS}
        self.waiting: dict[str, Ref] = {}

    def clock(self) -> int:
        self.now_ms += 1000
        return self.now_ms

    def host(self, name: str) -> Host:
        return Host(machine_name(name), name, self.place / name / "state", self.place / name / "cache")

    def open(self, name: str) -> Repository:
        return Repository.open(self.store, KEY, self.host(name), clock=self.clock)

    def backup(self, name: str) -> None:
        """One run: a snapshot, its RUN, and the CONFIRM of the one before."""
        repo = self.repositories[name]
        self.now_ms += 20 * 60 * 1000
        self.published += 1
        number = self.published.to_bytes(16, "big")
        volume, title = VolumeId(HOSTS.index(name).to_bytes(16, "big")), f"20261122T184501Z-{self.published:08}"
        parent = self.waiting.get(name, NO_REF)
        added = AddSnap(
            SnapId(number), volume, DomainId(b"d" * 16), 17, 1, 1 << 40, ChunkId(number + number[8:]), self.now_ms,
            parent, title, packs=(number * 2,), inner=(Figures(2, 1, 2, 3, 4).encode(),),
        )  # fmt: skip
        run = Run(title, True, (RunVolume(volume, "vm:private", False, ""),))
        news: list[RawRecord] = [raw(Confirm((parent,)))] if parent != NO_REF else []
        head = repo.publish([*news, raw(added), raw(run)]).head
        self.waiting[name] = Ref(head.writer, head.seq, added.snap_id)
        self.live.append(self.waiting[name])

    def prune(self, *, removes: bool) -> None:
        """The log is compacted; nine of each ten of the last ones go before."""
        repo = self.repositories["one"]
        repo.reload(whole=True)
        if removes:
            gone = {ref for position, ref in enumerate(self.live[-REMOVED_AT_ONCE:]) if position % 10}
            repo.publish([Remove(tuple(sorted(gone)))])
            self.live = [ref for ref in self.live if ref not in gone]
            repo.reload(whole=True)
        _, problems = compact_log(repo, 0, delete=True)
        assert not problems, problems
        for one in self.repositories.values():
            one.reload()

    def cost(self) -> Cost:
        """Open it as a new machine."""
        self.store.requests = self.store.read_bytes = 0
        with self.open(f"new{self.published}") as repo:
            assert len(repo.catalogue.snapshots) == len(self.live)
            assert repo.problems == []
            commits = sum(1 for name in self.store.objects() if name.startswith("w/"))
            return Cost(len(self.live), commits, self.published, self.store.requests, self.store.read_bytes)

    def close(self) -> None:
        for repo in self.repositories.values():
            repo.close()


def grow(place: Path, snapshots: int, *, removes: bool) -> Cost:
    """Run until so many snapshots are left; the cost of opening then, at the worst moment before a checkpoint."""
    years = Years(place)
    try:
        while len(years.live) < snapshots:
            for name in HOSTS:
                years.backup(name)
            if years.published % REMOVED_AT_ONCE == 0:
                years.prune(removes=removes)
        worst = years.cost()
        for _ in range(24):
            for name in HOSTS:
                years.backup(name)
            cost = years.cost()
            worst = max(worst, cost, key=lambda one: one.requests)
        return worst
    finally:
        years.close()


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.opening", description=__doc__)
    parser.add_argument("--snapshots", type=int, default=2000, help="how many are left in the end (default 2000)")
    parser.add_argument("--remove", action="store_true", help="nine of ten snapshots are removed again")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamella-bench-") as folder:
        cost = grow(Path(folder), args.snapshots, removes=args.remove)
    each = cost.read_bytes / cost.snapshots
    print(f"{cost.published} published, {cost.snapshots} left, {cost.commits} commits in the store")
    print(f"opening: {cost.requests} requests, {cost.read_bytes / 1e6:.2f} MB, {each:.0f} bytes a snapshot")
    print(f"for 10,000 snapshots: {each * 10_000 / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
