"""Pruning at scale, each scenario in a process of its own: invented tiny chunks, in as many packs as there would be.

python -m bench.pruning mark|prune|churned|many|wide FOLDER
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from bench.simulated import GIB, TIB, Place
from lamella.base.ids import ChunkId, DomainId, SnapId, VolumeId
from lamella.base.trust import Clear, Sealed
from lamella.format.container import Kind
from lamella.format.node import Shape, default_chunk_log2
from lamella.format.records import NO_REF, AddSnap, Ref, raw
from lamella.operations.prune.health import Health
from lamella.operations.prune.plan import HOUR_MS, PruneOptions
from lamella.operations.prune.prune import run_prune
from lamella.operations.prune.retaining import Policy, plan_retention
from lamella.operations.prune.retention import Retention
from lamella.operations.shared.marking import LiveWalk, Roots, roots_by_domain
from lamella.operations.writing.session import WritingSession
from lamella.packs.tree import SlotRun, Tree
from lamella.packs.tree_writer import TreeWriter
from lamella.packs.usage import LiveIds, Usage
from lamella.repository.repository import Repository
from lamella.stores.base import Entry
from lamella_kit.fault_store import FaultStore

DOMAIN = DomainId(b"bench-prune-bulk")
CHUNKS_A_PACK = 64
_BODY = b"\x00\x10\x00\x00\x00" + bytes(16)
_RUN = 16
_HELD = 24 << 20


class Counting(FaultStore):
    """Counts requests, and the bytes that are read of packs."""

    requests = 0
    read_bytes = 0

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes asked for."""
        content = super().get(name, offset, length)
        self.requests += 1
        self.read_bytes += len(content) if name.startswith("p/") else 0
        return content

    def stat(self, name: str) -> int:
        """Return the length."""
        self.requests += 1
        return super().stat(name)

    def list(self, prefix: str) -> Iterator[Entry]:
        """What there is; a page has a thousand names."""
        found = [*super().list(prefix)]
        self.requests += 1 + len(found) // 1000
        return iter(found)

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object."""
        self.requests += 1
        super().put(name, content)

    def delete(self, name: str) -> None:
        """Remove an object."""
        self.requests += 1
        super().delete(name)


Ranges = list[tuple[int, int]]


def grow(place: Place, shape: Shape, snapshots: int, first: Ranges, changes: Callable[[random.Random], Ranges]) -> None:
    """A volume with data in the ranges of chunks of `first`, then snapshots that each write some ranges anew."""
    chance = random.Random(5)
    with closing(place.store()) as store, Repository.open(store, place.secret, place.host) as repo:
        repo.refresh_map()
        root: ChunkId | None = None
        for number in range(snapshots):
            ranges = first if root is None else changes(chance)
            with WritingSession(repo) as session:
                writer = TreeWriter(repo.tree_reader(DOMAIN), session.packer(DOMAIN).store_node)
                base = None if root is None else Tree(shape, root)
                root = writer.update(shape, base, _stored(session, ranges, chance))
                session.settle()
                packs, name = session.packs(DOMAIN), f"s{number:03}"
                moment = 1_700_000_000_000 + number * HOUR_MS
                head = (SnapId(os.urandom(16)), shape.volume_id, DOMAIN, shape.chunk_log2, 1, shape.size)
                added = AddSnap(*head, root, moment, NO_REF, name, (), packs)
                session.publish([raw(added)], [added.snap_id])
            repo.reload()


def _stored(session: WritingSession, ranges: Ranges, chance: random.Random) -> Iterator[SlotRun]:
    packer = session.packer(DOMAIN)
    for start, end in ranges:
        for chunk in range(start, end):
            id_ = ChunkId(chance.randbytes(24))
            packer.store_blob(Kind.CHUNK, id_, 16, lambda: _BODY)
            if chunk % CHUNKS_A_PACK == CHUNKS_A_PACK - 1:
                packer.finish()
            yield SlotRun(chunk, chunk + 1, id_)


def prune(work: Path) -> Place:
    """30 of 60 snapshots of a 200 GiB volume that holds 24 MiB, each of ten scattered writes: no pack is rewritten."""
    shape = Shape(VolumeId(bytes(16)), 200 * GIB, default_chunk_log2(200 * GIB))
    step = shape.chunks * shape.chunk_size // _HELD
    first = [(chunk, chunk + 1) for chunk in range(0, shape.chunks, step)]

    def changes(chance: random.Random) -> Ranges:
        return [(chunk, chunk + 1) for chunk in sorted(chance.sample(range(shape.chunks), 10))]

    return _pruned(work, shape, first, changes)


def churned(work: Path) -> Place:
    """The same of 200 GiB without a hole in chunks of 256 KiB, 1 % of them written anew by each, in runs of 16."""
    shape = Shape(VolumeId(bytes(16)), 200 * GIB, 18)

    def changes(chance: random.Random) -> Ranges:
        starts = sorted(chance.sample(range(0, shape.chunks - _RUN, _RUN), shape.chunks // 100 // _RUN))
        return [(start, start + _RUN) for start in starts]

    return _pruned(work, shape, [(0, shape.chunks)], changes)


def many(work: Path) -> Place:
    """The rules of a year on 500 hourly snapshots of a 200 GiB volume that holds 24 MiB: retention, walk and deletion.

    The first prune finds 1,000 commits that no checkpoint was audited of; the second one what it left.
    """
    shape = Shape(VolumeId(bytes(16)), 200 * GIB, default_chunk_log2(200 * GIB))
    step = shape.chunks * shape.chunk_size // _HELD
    first = [(chunk, chunk + 1) for chunk in range(0, shape.chunks, step)]
    place = Place.make(work, in_memory=True)
    grow(
        place, shape, 500, first, lambda chance: [(at, at + 1) for at in sorted(chance.sample(range(shape.chunks), 10))]
    )

    def work_() -> dict[str, Any]:
        store = Counting(place.store())
        opened = Repository.open(store, place.secret, place.host, whole=True, stored=True, exclusive=True)
        with opened as repo, Health(repo) as health:
            plan = plan_retention(repo, Policy(Retention(last=24, daily=7)), health=health)
            result = run_prune(repo, plan.refs, PruneOptions(repack=False), health)
        return {"requests": store.requests, "read_bytes": store.read_bytes, "removed": len(result.removed)}

    place.timed("prune 500", work_)
    place.timed("prune again", work_)
    return place


def _pruned(work: Path, shape: Shape, first: Ranges, changes: Callable[[random.Random], Ranges]) -> Place:
    place = Place.make(work, in_memory=True)
    grow(place, shape, 60, first, changes)
    with closing(place.store()) as store, Repository.open(store, place.secret, place.host) as repo:
        names = sorted(repo.catalogue.snapshots, key=lambda snapshot: snapshot.name)
        refs: list[Ref] = [snapshot.ref for snapshot in names[::2]]

    def work_() -> dict[str, Any]:
        store = Counting(place.store())
        with Repository.open(store, place.secret, place.host, exclusive=True) as repo:
            result = run_prune(repo, refs, PruneOptions(repack=False))
        facts = {"deleted_packs": result.deleted_packs, "read_bytes": store.read_bytes}
        return facts | {"freed_bytes": result.freed_bytes, "removed": len(result.removed)}

    place.timed("prune 30 of 60", work_)
    return place


def mark(work: Path) -> Place:
    """1 TiB without a hole in chunks of 1 MiB: the mark, and the count of every pack against it."""
    place = Place.make(work, in_memory=True)
    shape = Shape(VolumeId(bytes(16)), TIB, 20)
    grow(place, shape, 1, [(0, shape.chunks)], lambda chance: [])
    with closing(place.store()) as store, Repository.open(store, place.secret, place.host) as repo:
        repo.refresh_map()
        with LiveIds(place.host.cache_dir) as live:
            (roots,) = roots_by_domain(repo.catalogue).values()
            place.timed("mark", lambda: _marked(repo, roots, live))
            place.timed("count", lambda: {"missing": Usage(repo.cache, live).absent})
    return place


def wide(work: Path) -> Place:
    """16 TiB without a hole in chunks of 1 MiB, their ids invented, no packs of data: what memory the mark needs."""
    place = Place.make(work, in_memory=False)
    shape = Shape(VolumeId(bytes(16)), 16 * TIB, 20)
    chance = random.Random(5)
    with closing(place.store()) as store, Repository.open(store, place.secret, place.host) as repo:
        repo.refresh_map()
        with WritingSession(repo) as session:
            every = (SlotRun(number, number + 1, ChunkId(chance.randbytes(24))) for number in range(shape.chunks))
            writer = TreeWriter(repo.tree_reader(DOMAIN), session.packer(DOMAIN).store_node)
            root = writer.update(shape, None, every)
            session.settle()
        with LiveIds(place.host.cache_dir) as live:
            place.timed("mark", lambda: _marked(repo, Roots([Tree(shape, root)]), live))
            place.timed("count", lambda: {"missing": Usage(repo.cache, live).absent})
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    place.steps["mark"]["facts"]["memory_bytes"] = most
    return place


def _marked(repo: Repository, roots: Roots, live: LiveIds) -> dict[str, Any]:
    for _, ids in LiveWalk(repo.contents, DOMAIN).referenced(roots):
        live.add(ids)
    return {"ids": live.added}


SCENARIOS: dict[str, Callable[[Path], Place]] = {
    "prune": prune,
    "churned": churned,
    "many": many,
    "mark": mark,
    "wide": wide,
}


if __name__ == "__main__":
    print(json.dumps(SCENARIOS[sys.argv[1]](Path(sys.argv[2])).steps))
