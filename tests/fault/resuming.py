"""What the tests of broken-off runs share: a tracked disk, a store that counts and breaks, runs with close points."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lamella.base.trust import Clear, Sealed
from lamella.history.open_sessions import OpenSession
from lamella.memory.host import Host
from lamella.operations.backup.story import BackupOptions, BackupResult, Pace, Request, VolumeResult, plan_backup
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore
from lamella_kit.fault_store import FaultStore
from lamella_kit.tracked_source import TrackedDisk
from tests.fault.world import CHUNK, SECRET, host_at, init, restored, verified

RANGE = 4 * CHUNK
PACK = 6 * CHUNK
PACE = Pace(bytes=2 * RANGE, seconds=1e9, least_bytes=1)
OPTIONS = BackupOptions(chunk_log2=16, workers=1, pace=PACE)


@contextmanager
def small_steps() -> Iterator[None]:
    """Ranges of 4 chunks and packs of 6, so that small disks have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lamella.operations.shared.reading.RANGE", RANGE)
        for name in ("INCREMENTAL_TARGET", "BULK_TARGET", "RESUMED_TARGET"):
            patch.setattr(f"lamella.packs.packer.{name}", PACK)
        yield


class CountingStore(FaultStore):
    """Counts the bytes of packs that are put, those of a put that fails included."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.sent = 0
        self.packs = 0

    def put(self, name: str, content: Sealed | Clear) -> None:
        if name.startswith("p/"):
            self.sent += len(content)
            self.packs += 1
        super().put(name, content)


@dataclass
class World:
    """One host, one repository, disks that outlive its processes."""

    place: Path
    memory: MemoryStore = field(default_factory=MemoryStore)
    disks: dict[str, TrackedDisk] = field(default_factory=dict)
    truth: dict[str, bytes] = field(default_factory=dict)
    sent: int = 0

    @classmethod
    def make(cls, place: Path, chunks: int = 40, name: str = "disk") -> World:
        world = cls(place)
        init(world.memory, world.host)
        world.add(name, chunks)
        return world

    @property
    def host(self) -> Host:
        return host_at(self.place)

    @property
    def disk(self) -> TrackedDisk:
        return next(iter(self.disks.values()))

    def add(self, name: str, chunks: int) -> TrackedDisk:
        self.disks[name] = TrackedDisk(name, bytearray(random.Random(name).randbytes(chunks * CHUNK)))
        return self.disks[name]

    def write(self, chunk: int, seed: int = 1, name: str = "") -> None:
        disk = self.disks[name] if name else self.disk
        disk.content[chunk * CHUNK : (chunk + 1) * CHUNK] = random.Random(seed).randbytes(CHUNK)

    def store(self) -> CountingStore:
        return CountingStore(self.memory.connect())

    def run(
        self, store: Store | None = None, *names: str, options: BackupOptions = OPTIONS, host: Host | None = None
    ) -> BackupResult:
        """One run over the disks named, or all."""
        made = store or self.store()
        disks = [self.disks[name] for name in names] if names else list(self.disks.values())
        try:
            with Repository.open(made, SECRET, host or self.host) as repo:
                requests = [Request(None, disk.source()) for disk in disks]
                result = plan_backup(repo, requests, options).execute()
        finally:
            self.sent += made.sent if isinstance(made, CountingStore) else 0
        for row in result.volumes:
            if row.result == "complete":
                self.truth[f"{row.volume}@{result.snapshot}"] = bytes(self.disks[row.volume].content)
        return result

    def row(self, *, host: Host | None = None) -> VolumeResult:
        """One run over the one disk, which must succeed; what became of it."""
        result = self.run(host=host)
        assert result.complete, result
        return result.volumes[0]

    def sessions(self) -> list[OpenSession]:
        with Repository.open(self.memory.connect(), SECRET, self.host) as repo:
            return repo.catalogue.sessions

    def copied(self, place: Path) -> World:
        """The same world at another place; nothing is shared."""
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.place, place)
        other = World(place, MemoryStore(self.memory.objects()), {}, dict(self.truth))
        for name, disk in self.disks.items():
            other.disks[name] = TrackedDisk(name, bytearray(disk.content), moments=dict(disk.moments))
            other.disks[name]._made = disk._made
        return other

    def check(self, *, only_known: bool = True) -> int:
        """Every snapshot restores to the bytes of its moment, and the repository verifies; returns their number."""
        with Repository.open(self.memory.connect(), SECRET, self.host) as repo:
            found = {f"{one.volume.name}@{one.snapshot.name}": one for one in select(repo, [])}
            assert set(self.truth) <= set(found)
            if only_known:
                assert set(self.truth) == set(found)
            for name, one in found.items():
                # What a killed run had committed is of the present moment.
                expected = self.truth.setdefault(name, bytes(self.disks[one.volume.name].content))
                assert restored(repo, one, self.place / "out.img") == expected, name
            result = verified(repo)
            assert not result.damaged and not result.unrestorable, result.findings
        return len(found)

    def check_nothing_left(self) -> None:
        """After a success: one moment, no session, no memory of one."""
        assert self.sessions() == []
        for path in self.host.state_dir.glob("repo/*/unfinished.json"):
            assert '"entry"' not in path.read_text()
        for disk in self.disks.values():
            assert len(disk.moments) == 1, disk.moments.keys()
