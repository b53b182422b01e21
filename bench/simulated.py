"""Volumes that exist only while they are read: `python -m bench.simulated SCENARIO DIR GIB` backs one up in itself.

A program of its own, so that its memory is that of one scenario. Prints one JSON document: for each step the seconds,
the CPU seconds without those spent on inventing data, and what was stored.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamella.base.clock import now_ms
from lamella.base.extents import Extent
from lamella.base.ids import CATALOGUE, ChunkId, DomainId, SnapId, VolumeId
from lamella.crypto.slots import Secret, key_file
from lamella.format.node import FAN_OUT, Shape
from lamella.format.records import NO_REF, AddSnap, RawRecord, raw
from lamella.memory.host import Host, machine_name
from lamella.operations.backup.story import BackupOptions, Request, plan_backup
from lamella.operations.look.diff import compare
from lamella.operations.shared.selection import select
from lamella.operations.writing.session import WritingSession
from lamella.packs.tree import SlotRun, Tree
from lamella.packs.tree_writer import TreeWriter
from lamella.repository.create import SlotWanted, create_repository
from lamella.repository.repository import Repository
from lamella.sources.base import Consistency
from lamella.sources.driver import Untracked, UntrackedMoment
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore
from lamella.stores.url import open_store

TIB = 1 << 40
GIB = 1 << 30
_PIECE = 1 << 16
_STAMP = struct.Struct("<QQ")


@dataclass
class Invented(Untracked, UntrackedMoment):
    """A volume whose bytes follow from their place; each 64 KiB differs from every other.

    `changed` holds the pieces of 64 KiB that were written once more.
    """

    size: int
    extents: list[Extent]
    pattern: bytes
    changed: set[int] = field(default_factory=set)
    driver: str = "simulated"
    identity: bytes = b"simulated:volume"
    default_name: str = "volume"
    inventing: list[float] = field(default_factory=list)
    """CPU seconds of every read: not the work that is measured."""

    @contextmanager
    def freeze(self) -> Iterator[Invented]:
        """It never changes while it is read."""
        yield self

    def consistency(self) -> Consistency:
        """As if nobody had it open."""
        return Consistency.HALTED

    def allocated(self) -> Iterator[Extent]:
        """Where it has data."""
        yield from self.extents

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Invent the bytes of a range that begins at a piece."""
        started = time.thread_time()
        for position in range(0, len(buffer), _PIECE):
            piece = (offset + position) // _PIECE
            length = min(_PIECE, len(buffer) - position)
            buffer[position : position + length] = self.pattern[:length]
            _STAMP.pack_into(buffer, position, piece, piece in self.changed)
        self.inventing.append(time.thread_time() - started)


@dataclass
class Place:
    """A repository for one scenario."""

    store: Callable[[], Store]
    host: Host
    secret: Secret
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def make(cls, work: Path, *, in_memory: bool) -> Place:
        """A new repository, in memory or below `work`."""
        host = Host(machine_name("bench"), "bench", work / "state", work / "cache")
        secret = key_file(bytes(range(64)))
        memory = MemoryStore()
        if in_memory:
            first: Store = memory
        else:
            first = open_store(str(work / "repo"), create=True)
        create_repository(first, host, [SlotWanted(secret, admin=True)], now_ms)
        if in_memory:
            return cls(memory.connect, host, secret)
        return cls(lambda: open_store(str(work / "repo")), host, secret)

    def backup(self, step: str, volume: Invented, options: BackupOptions | None = None) -> None:
        """One run, its figures kept as `step`."""
        volume.inventing.clear()

        def work() -> dict[str, Any]:
            with Repository.open(self.store(), self.secret, self.host) as repo:
                result = plan_backup(repo, [Request(None, volume)], options).execute()
            row = result.volumes[0]
            facts = {"mode": row.mode, "read_bytes": row.read_bytes, "stored_bytes": row.stored_bytes}
            facts |= {"metadata_bytes": result.metadata_bytes, "new_chunks": row.new_chunks}
            return facts | {"source_bytes": row.source_bytes, "objects": self.objects()}

        self.timed(step, work, lambda: sum(volume.inventing))

    def timed(self, step: str, work: Callable[[], dict[str, Any]], apart: Callable[[], float] = lambda: 0.0) -> None:
        """Do `work` and keep its cost and its facts; `apart` says which CPU seconds are not counted."""
        wall, cpu = time.perf_counter(), time.process_time()
        facts = work()
        spent = time.process_time() - cpu - apart()
        self.steps[step] = {"wall": time.perf_counter() - wall, "cpu": spent, "facts": facts}

    def objects(self) -> int:
        """Objects in the store."""
        return sum(1 for _ in self.store().list(""))


def spine(work: Path, gib: int) -> Place:
    """16 TiB, nearly all hole; every node above the changed chunk is full: the most metadata one chunk can cost."""
    chunk = 2 << 20
    top = 16 * TIB // chunk
    chosen = set(range(FAN_OUT))
    for level in (1, 2, 3):
        chosen |= {number * FAN_OUT**level for number in range(FAN_OUT) if number * FAN_OUT**level < top}
    extents = [Extent(number * chunk, (number + 1) * chunk) for number in sorted(chosen)]
    place = Place.make(work, in_memory=True)
    volume = Invented(16 * TIB, extents, random.Random(4).randbytes(_PIECE))
    place.backup("full", volume)
    place.backup("unchanged", volume)
    volume.changed.add(17 * chunk // _PIECE)
    place.backup("one chunk", volume)
    return place


def manifest(work: Path, gib: int) -> Place:
    """The manifest of a 16 TiB volume without any hole: 8,388,608 chunks of 2 MiB, their ids invented, no data."""
    place = Place.make(work, in_memory=False)
    shape = Shape(VolumeId(bytes(16)), 16 * TIB, 21)
    domain = DomainId(b"bench-scale-bulk")
    assert domain != CATALOGUE
    root: list[ChunkId] = []

    def update(base: Tree | None, changes: Iterator[SlotRun]) -> dict[str, Any]:
        with Repository.open(place.store(), place.secret, place.host) as repo:
            repo.refresh_map()
            with WritingSession(repo) as session:
                writer = TreeWriter(repo.tree_reader(domain), session.packer(domain).store_node)
                root.append(writer.update(shape, base, changes))
                session.settle()
                return {"metadata_bytes": session.metadata_bytes, "objects": place.objects()}

    chance = random.Random(5)
    every = (SlotRun(number, number + 1, ChunkId(chance.randbytes(24))) for number in range(shape.chunks))
    place.timed("build", lambda: update(None, every))
    one = SlotRun(shape.chunks // 3, shape.chunks // 3 + 1, ChunkId(chance.randbytes(24)))
    place.timed("one chunk", lambda: update(Tree(shape, root[0]), iter([one])))
    places = sorted(chance.sample(range(shape.chunks), 100))
    hundred = (SlotRun(number, number + 1, ChunkId(chance.randbytes(24))) for number in places)
    update(Tree(shape, root[0]), hundred)
    with Repository.open(place.store(), place.secret, place.host) as repo:
        repo.publish([_snapshot(shape, domain, root[0], 1), _snapshot(shape, domain, root[-1], 2)])
    place.timed("difference of 100 chunks", lambda: _difference(place))
    return place


def _snapshot(shape: Shape, domain: DomainId, root: ChunkId, number: int) -> RawRecord:
    """A record that makes a snapshot of a tree."""
    name, snap_id = f"snapshot-{number}", SnapId(bytes(15) + bytes([number]))
    return raw(AddSnap(snap_id, shape.volume_id, domain, shape.chunk_log2, 1, shape.size, root, number, NO_REF, name))


def _difference(place: Place) -> dict[str, Any]:
    """`lamella diff`, from opening the repository on."""
    with Repository.open(place.store(), place.secret, place.host) as repo:
        one, other = select(repo, [])
        result = compare(repo, one, other)
    assert len(result.ranges) == 100
    return {"changed_bytes": result.changed_bytes}


def bulk(work: Path, gib: int) -> Place:
    """Many small chunks (64 KiB) without a hole, every one different and well compressible: what memory grows with."""
    place = Place.make(work, in_memory=False)
    pattern = b"".join(b"%015x\n" % number for number in range(_PIECE // 16))
    volume = Invented(gib * GIB, [Extent(0, gib * GIB)], pattern)
    options = BackupOptions(chunk_log2=16)
    place.backup("full", volume, options)
    place.backup("unchanged", volume, options)
    volume.changed.add(12345)
    place.backup("one chunk", volume, options)
    return place


SCENARIOS: dict[str, Callable[[Path, int], Place]] = {"spine": spine, "manifest": manifest, "bulk": bulk}


if __name__ == "__main__":
    print(json.dumps(SCENARIOS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3])).steps))
