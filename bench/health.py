"""What proving a repository costs: the listing for 1,000 packs; every byte beside a plain hash of the same files."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

from bench.measure import MIB, Sample, Series
from bench.report import Target
from lamella.base.clock import now_ms
from lamella.base.errors import SourceError
from lamella.base.extents import Extent
from lamella.crypto.slots import key_file
from lamella.memory.host import Host, machine_name
from lamella.operations.backup.story import BackupOptions, Request, plan_backup
from lamella.operations.shared.findings import VerifyResult
from lamella.operations.shared.selection import select
from lamella.operations.verify.verify import VerifyOptions, verify
from lamella.repository.create import SlotWanted, create_repository
from lamella.repository.repository import Repository
from lamella.sources.base import Consistency, FrozenVolume
from lamella.sources.driver import Untracked, UntrackedMoment
from lamella.stores.local.store import LocalStore

PACKS = 1000
CHUNKS_A_PACK = 64
DATA = 1024 * MIB
SECRET = key_file(b"a key file for the bench, 32 bytes or more")
_CHUNK = 1 << 16
_BOUND_STRUCTURE = 1.0
_BOUND_FULL = 4.0


@dataclass(slots=True)
class _Numbered(Untracked):
    """A volume whose chunks are their numbers over and over: all different, and small once compressed."""

    chunks: int
    driver: str = "bench"
    identity: bytes = b"bench:numbered"
    default_name: str = "numbered"

    @contextmanager
    def freeze(self) -> Iterator[FrozenVolume]:
        """Itself."""
        yield _NumberedMoment(self.chunks)


class _NumberedMoment(UntrackedMoment):
    def __init__(self, chunks: int) -> None:
        self._chunks = chunks

    @property
    def size(self) -> int:
        return self._chunks * _CHUNK

    def consistency(self) -> Consistency:
        return Consistency.HALTED

    def allocated(self) -> Iterator[Extent]:
        yield Extent(0, self.size)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset % _CHUNK:
            raise SourceError("not at a chunk")
        for start in range(0, len(buffer), _CHUNK):
            number = ((offset + start) // _CHUNK + 1).to_bytes(8, "little")
            buffer[start : start + _CHUNK] = number * (_CHUNK // 8)


class _Random(_Numbered):
    """A volume that nothing can compress."""

    @contextmanager
    def freeze(self) -> Iterator[FrozenVolume]:
        """Itself."""
        yield _RandomMoment(self.chunks)


class _RandomMoment(_NumberedMoment):
    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = os.urandom(len(buffer))


def measure(work: Path, repeats: int) -> dict[str, Series]:
    """Two repositories, each step as often as `repeats`."""
    many, full = work / "many", work / "full"
    # Packs of the usual number of blobs, far smaller: the cost looked for does not depend on their size.
    with (
        mock.patch("lamella.packs.packer.INCREMENTAL_TARGET", CHUNKS_A_PACK * 96),
        mock.patch("lamella.packs.packer.BULK_TARGET", CHUNKS_A_PACK * 96),
    ):
        _make(many, _Numbered(PACKS * CHUNKS_A_PACK))
    _make(full, _Random(DATA // _CHUNK))
    series: dict[str, Series] = {}
    for number in range(repeats):
        fresh = _host(work / f"fresh-{number}")
        _step(series, "structure, cache empty", partial(_verify, many, fresh, VerifyOptions("structure")))
        _step(series, "structure, cache warm", partial(_verify, many, fresh, VerifyOptions("structure")))
        _step(series, "full", lambda: _verify(full, _host(full / "host"), VerifyOptions("full")))
        _step(series, "restore", lambda: _verify(full, _host(full / "host"), VerifyOptions("restore")))
        _step(series, "SHA-256 of the packs", lambda: _hash(full / "repository"))
    count = sum(1 for path in (many / "repository" / "p").rglob("*") if path.is_file())
    series["structure, cache empty"].facts = series["structure, cache warm"].facts = {"packs": count}
    return series


def targets(series: Mapping[str, Series]) -> Iterator[Target]:
    """Ratios within this run, and the listing's seconds a thousand packs."""
    warm = series["structure, cache warm"]
    spent = warm.cpu * 1000 / warm.facts["packs"]
    yield Target(
        "structure, warm, 1,000 packs", f"{spent:.2f} CPU s", f"{_BOUND_STRUCTURE:g} CPU s", spent < _BOUND_STRUCTURE
    )
    ratio = series["full"].cpu / series["SHA-256 of the packs"].cpu
    yield Target("full / plain SHA-256", f"{ratio:.1f} x CPU", f"{_BOUND_FULL:g} x CPU", ratio < _BOUND_FULL)


def _host(place: Path) -> Host:
    return Host(machine_name("bench"), "bench", place / "state", place / "cache")


def _make(place: Path, source: _Numbered) -> None:
    place.mkdir()
    store = LocalStore.open(place / "repository", create=True)
    host = _host(place / "host")
    create_repository(store, host, [SlotWanted(SECRET, True)], now_ms)
    with Repository.open(store, SECRET, host) as repo:
        options = BackupOptions(chunk_log2=16, compression="auto")
        assert plan_backup(repo, [Request(None, source)], options).execute().complete
    store.close()


def _verify(place: Path, host: Host, options: VerifyOptions) -> VerifyResult:
    store = LocalStore.open(place / "repository", read_only=True)
    with Repository.open(store, SECRET, host) as repo:
        result = verify(repo, select(repo, []), options)
    store.close()
    assert not result.findings, result.findings
    return result


def _hash(place: Path) -> int:
    total = 0
    for path in sorted((place / "p").rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            assert hashlib.sha256(content).hexdigest() == path.name
            total += len(content)
    return total


def _step(series: dict[str, Series], name: str, work: Callable[[], object]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    sample = Sample(time.perf_counter() - wall, time.process_time() - cpu, 0)
    series.setdefault(name, Series()).samples.append(sample)
