"""A first backup over a link that is cut twenty times at random: less than a twentieth of it is sent twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, StoreUnavailable
from lamella.base.extents import Extent
from lamella.base.trust import Clear, Sealed
from lamella.operations.backup.story import BackupOptions, BackupResult, Pace, Request, plan_backup
from lamella.operations.shared.selection import select
from lamella.operations.verify.verify import VerifyOptions, verify
from lamella.repository.repository import Repository
from lamella.sources.base import Consistency, FrozenVolume
from lamella.stores.base import Entry
from lamella.stores.local.store import LocalStore
from lamella_kit.fault_store import FaultStore
from tests.fault.world import SECRET, host_at, init

MIB = 1 << 20
CUTS = 20


class Killed(BaseException):
    """The process is gone with its link."""


class CutStore(FaultStore):
    """A link to a store on disk that carries so many bytes of packs and is cut then, mostly within a pack."""

    def __init__(self, inner: LocalStore, carries: int, error: BaseException) -> None:
        super().__init__(inner)
        self._left = carries
        self._error = error
        self.carried = 0

    def put(self, name: str, content: Sealed | Clear) -> None:
        if name.startswith("p/"):
            self.carried += min(len(content), self._left)
            self._left -= len(content)
        self._check()
        super().put(name, content)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self._check()
        return super().get(name, offset, length)

    def stat(self, name: str) -> int:
        self._check()
        return super().stat(name)

    def list(self, prefix: str) -> Iterator[Entry]:
        self._check()
        return super().list(prefix)

    def sync(self) -> None:
        self._check()
        super().sync()

    def _check(self) -> None:
        if self._left < 0:
            self._left = -1
            raise self._error


@dataclass
class Noise:
    """A volume of invented noise that never changes; its moments can be kept."""

    size: int
    driver: str = "noise"
    tracks: bool = True
    read_bytes: int = 0
    moments: set[str] = field(default_factory=set)
    _made: int = 0

    identity = b"noise"
    default_name = "noise"
    checkpoint = ""

    @contextmanager
    def freeze(self) -> Iterator[FrozenVolume]:
        self._made += 1
        self.checkpoint = f"moment {self._made}" if self.tracks else ""
        yield self

    def keep(self, checkpoint: str) -> None:
        self.moments.add(checkpoint)

    def drop(self, checkpoint: str) -> None:
        self.moments.discard(checkpoint)

    def kept(self) -> list[str]:
        return sorted(self.moments)

    def consistency(self) -> Consistency:
        return Consistency.HALTED

    def allocated(self) -> Iterator[Extent]:
        yield Extent(0, self.size)

    def delta_since(self, base: str, grain: int) -> Delta:
        if base not in self.moments:
            raise CheckpointLost("the moment is gone")
        return Delta(grain, self.size, self.size, ChunkSet(), ChunkSet())

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.read_bytes += len(buffer)
        for start in range(0, len(buffer), 65536):
            number = offset + start
            buffer[start : start + 65536] = random.Random(number).randbytes(min(65536, len(buffer) - start))


def gaps(total: int, chance: random.Random) -> list[int]:
    """What is carried between twenty cuts at random places."""
    places = sorted(chance.randrange(total) for _ in range(CUTS))
    return [after - before for before, after in zip([0, *places], places, strict=False)]


@pytest.mark.parametrize("tracks", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["tracked", "read again"])
@pytest.mark.parametrize(
    ("size", "shrink"), [(64 * MIB, 32), pytest.param(2048 * MIB, 1, marks=pytest.mark.long)], ids=["64 MiB", "2 GiB"]
)
def test_twenty_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, shrink: int, tracks: bool) -> None:
    """Every other time the process is killed, else the link reports an error."""
    for name, target in (("INCREMENTAL_TARGET", 8), ("BULK_TARGET", 16), ("RESUMED_TARGET", 4)):
        monkeypatch.setattr(f"lamella.packs.packer.{name}", target * MIB // shrink)
    monkeypatch.setattr("lamella.operations.shared.reading.RANGE", max(65536, 4 * MIB // shrink))
    monkeypatch.setattr("lamella.operations.backup.sampling.LEAST_CHUNKS", 64 // shrink)
    init(LocalStore.open(tmp_path / "R", create=True), host_at(tmp_path / "host"))
    disk, chance = Noise(size, tracks=tracks), random.Random(size)
    options = BackupOptions(chunk_log2=16, workers=2, pace=Pace(bytes=size // 64, seconds=1e9, least_bytes=1))
    carried, result = 0, None

    def run(carries: int, error: BaseException) -> BackupResult | None:
        nonlocal carried
        store = CutStore(LocalStore.open(tmp_path / "R"), carries, error)
        try:
            with Repository.open(store, SECRET, host_at(tmp_path / "host")) as repo:
                return plan_backup(repo, [Request(None, disk)], options).execute()
        except (Killed, StoreUnavailable):
            return None
        finally:
            carried += store.carried
            store.close()

    for number, carries in enumerate(gaps(size, chance)):
        assert run(carries, Killed() if number % 2 else StoreUnavailable("the link is down")) is None
    result = run(1 << 60, Killed())
    assert result is not None and result.complete
    unique = sum(path.stat().st_size for path in (tmp_path / "R" / "p").rglob("*") if path.is_file())
    twice = carried / unique - 1
    print(f"{size >> 20} MiB, {CUTS} cuts: {carried / MIB:.1f} MiB carried for {unique / MIB:.1f} stored,", end=" ")
    print(f"{twice:.1%} twice; {disk.read_bytes / size:.2f} times read")
    assert twice < 0.05
    if tracks:
        assert disk.read_bytes < size * 1.5
    with Repository.open(LocalStore.open(tmp_path / "R"), SECRET, host_at(tmp_path / "fresh")) as repo:
        assert repo.catalogue.sessions == []
        found = verify(repo, select(repo, []), VerifyOptions("full", percent=100, workers=2))
        assert not found.damaged and found.checked_bytes >= size
