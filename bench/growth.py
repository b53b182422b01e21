"""What a repository costs as it grows: `python -m bench.growth [--most-packs N] [--most-volumes N] [--plots DIR]`.

Histories without data, and packs of 16 MiB that are only listed, with real index segments. Counted are requests (a page
of 1,000 names is one), bytes, CPU seconds and memory, each size in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.fleet import NOW, host_repository, memory
from lamella.base.ids import ChunkId, DomainId
from lamella.base.names import PACKS, pack_name
from lamella.crypto.slots import key_file
from lamella.format import segment
from lamella.format.container import HEADER_SIZE, Blob, Kind, aligned, directory_length, object_length
from lamella.format.segment import Covered, segment_name
from lamella.memory.host import Host, machine_name
from lamella.operations.look.listing import snapshots, volumes
from lamella.operations.shared.auditing import compact_log
from lamella.packs.building import build_single
from lamella.repository.create import SlotWanted, create_repository
from lamella.repository.repository import Repository
from lamella.stores.base import Entry, Store
from lamella.stores.url import open_store
from lamella.stores.wrap.wrapper import Wrapper

KEY = key_file(b"k" * 32)
PAGE = 1000
BLOBS = 16
SEALED = 1 << 20
Facts = dict[str, Any]


class Counted(Wrapper):
    """Counts what is asked for; with `packs`, lists so many that are not there."""

    def __init__(self, store: Store, packs: int = 0) -> None:
        super().__init__(store)
        self.requests = self.bytes = 0
        self._packs = packs

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        content = super().get(name, offset, length)
        self.requests += 1
        self.bytes += len(content)
        return content

    def stat(self, name: str) -> int:
        self.requests += 1
        return super().stat(name)

    def list(self, prefix: str) -> Iterator[Entry]:
        self.requests += 1
        found = hollow(self._packs) if prefix == PACKS and self._packs else super().list(prefix)
        for number, entry in enumerate(found, 1):
            self.requests += number % PAGE == 0
            self.bytes += len(entry.name) + 16
            yield entry


def name_hash(number: int, packs: int) -> bytes:
    """The hash in the name of a pack that is not there: spread evenly, in ascending order."""
    return (number * ((1 << 256) // packs)).to_bytes(32, "big")


def blobs_of(number: int) -> list[Blob]:
    """What a pack holds: chunks of a mebibyte that do not compress."""
    seed = hashlib.shake_128(number.to_bytes(8, "big")).digest(24 * BLOBS)
    place, found = aligned(HEADER_SIZE + directory_length(BLOBS)), []
    for start in range(0, len(seed), 24):
        found.append(Blob(Kind.CHUNK, ChunkId(seed[start : start + 24]), place, SEALED, SEALED))
        place += SEALED
    return found


def hollow(packs: int) -> Iterator[Entry]:
    """The listing."""
    size = object_length(blobs_of(0))
    for number in range(packs):
        yield Entry(pack_name(name_hash(number, packs)), size)


def host(place: Path, name: str) -> Host:
    """One of the machines."""
    return Host(machine_name(name), name, place / name / "state", place / name / "cache")


def measured(store: Counted, work: Callable[[], object]) -> Facts:
    """Requests, bytes and CPU seconds of some work."""
    store.requests = store.bytes = 0
    cpu = time.process_time()
    work()
    return {"requests": store.requests, "bytes": store.bytes, "cpu_s": time.process_time() - cpu}


def make_packs(place: Path, packs: int) -> None:
    """A repository without data, whose segments name so many packs."""
    plain = open_store(str(place / "repo"), create=True)
    create_repository(plain, host(place, "first"), [SlotWanted(KEY, admin=True)], lambda: NOW)
    with Repository.open(plain, KEY, host(place, "first")) as repo:
        write_segments(repo, packs)


def ask_packs(place: Path, packs: int) -> Facts:
    """The map of a new machine, out of segments; and once more when nothing is new."""
    store = Counted(open_store(str(place / "repo")), packs)
    facts: Facts = {}
    with Repository.open(store, KEY, host(place, "new")) as repo:
        facts["map, new machine"] = measured(store, repo.refresh_map)
    facts["map, new machine"] |= {"memory_bytes": memory(), "cache_bytes": cached_bytes(place)}
    with Repository.open(store, KEY, host(place, "new")) as repo:
        facts["map, nothing new"] = measured(store, repo.refresh_map)
    return facts


def cached_bytes(place: Path) -> int:
    """The size of the new machine's cache."""
    return sum(path.stat().st_size for path in (place / "new" / "cache").rglob("*"))


def write_segments(repo: Repository, packs: int) -> None:
    """Segments that name all packs, as full as they may be."""
    domain, rows, size = DomainId(b"d" * 16), list[Covered](), 0
    row = segment.row_size(BLOBS)
    for number in range(packs):
        if not segment.fits(size + row, len(rows) + 1):
            _put(repo, domain, rows)
            rows, size = [], 0
        rows.append(Covered(name_hash(number, packs), blobs_of(number)))
        size += row
    _put(repo, domain, rows)


def _put(repo: Repository, domain: DomainId, rows: list[Covered]) -> None:
    sealed, _ = build_single(repo.keys, domain, [(Kind.INDEX, segment.encode(rows))])
    repo.store.put(segment_name(hashlib.sha256(sealed).digest()), sealed)


def make_volumes(place: Path, count: int) -> None:
    """Ten snapshots of each volume, and the log compacted as prune does."""
    host_repository(place, 10, count)
    owner = Host(machine_name("bench"), "bench", place / "host-state", place / "host-cache")
    with Repository.open(open_store(str(place / "repo")), KEY, owner) as repo:
        repo.reload(whole=True)
        compact_log(repo, 0, delete=True)


def ask_volumes(place: Path, count: int) -> Facts:
    """Opening and listing by a new machine, and by one that knows the history."""
    store = Counted(open_store(str(place / "repo")))
    facts: Facts = {}

    def opened() -> None:
        with Repository.open(store, KEY, host(place, "new")) as repo:
            assert len(repo.catalogue.volumes) == count

    facts["open, new machine"] = measured(store, opened) | {"memory_bytes": memory()}
    facts["open, nothing new"] = measured(store, opened)
    with Repository.open(store, KEY, host(place, "new")) as repo:
        facts["list, opened"] = measured(store, lambda: (volumes(repo), snapshots(repo)))
    facts["list, opened"]["memory_bytes"] = memory()
    return facts


SUBJECTS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path, int], Facts], int]] = {
    "packs": (make_packs, ask_packs, 1000),
    "volumes": (make_volumes, ask_volumes, 100),
}


def grown(subject: str, most: int) -> dict[int, Facts]:
    """The figures at tenfold sizes."""
    found, size = {}, SUBJECTS[subject][2]
    while size <= most:
        with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir=os.environ.get("LAMELLA_BENCH_DIR")) as folder:
            command = [sys.executable, "-m", "bench.growth"]
            subprocess.run([*command, "--make", subject, str(size), folder], check=True)
            asked = subprocess.run([*command, "--ask", subject, str(size), folder], check=True, stdout=subprocess.PIPE)
            found[size] = json.loads(asked.stdout)
        print(f"{subject} {size:,}: {json.dumps(found[size])}", file=sys.stderr, flush=True)
        size *= 10
    return found


def table(subject: str, found: dict[int, Facts]) -> Iterator[str]:
    """The figures for people; a power is how a figure grew with the last tenfold size."""
    yield f"| {subject} | what | requests | MB | CPU s | memory | CPU grows as |"
    yield "|---|---|---|---|---|---|---|"
    sizes = sorted(found)
    for size in sizes:
        for what, one in found[size].items():
            before = found.get(size // 10, {}).get(what)
            power = (
                "" if before is None else f"n^{math.log10(max(one['cpu_s'], 1e-4) / max(before['cpu_s'], 1e-4)):.2f}"
            )
            memory = f"{one['memory_bytes'] >> 20} MiB" if "memory_bytes" in one else ""
            figures = f"{one['requests']:,} | {one['bytes'] / 1e6:,.2f} | {one['cpu_s']:.2f} | {memory} | {power}"
            yield f"| {size:,} | {what} | {figures} |"


COLOURS = ("#1f6fc4", "#00755a", "#b8321a", "#a35c00")


def plot(subject: str, found: dict[int, Facts], figure: str, label: str) -> str:
    """A drawing with two logarithmic scales; a dotted line grows as the size does."""
    sizes, names = sorted(found), list(found[min(found)])
    values = [max(found[size][name][figure], 1e-3) for size in sizes for name in names]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    left, right = math.log10(sizes[0]), math.log10(sizes[-1])

    def at(size: float, value: float) -> tuple[float, float]:
        x = 70 + 470 * (math.log10(size) - left) / ((right - left) or 1)
        return round(x, 1), round(250 - 220 * (math.log10(max(value, 1e-3)) - low) / ((high - low) or 1), 1)

    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 300" font-family="sans-serif" font-size="12">',
        '<rect width="760" height="300" fill="#fff"/>',
        f'<text x="70" y="18" font-weight="bold">{label} by number of {subject}</text>',
    ]
    for power in range(low, high + 1):
        _, y = at(sizes[0], 10.0**power)
        lines.append(
            f'<path d="M70 {y}H540" stroke="#dde1e7"/><text x="62" y="{y + 4}" text-anchor="end">{10.0**power:g}</text>'
        )
    for size in sizes:
        x, _ = at(size, 1)
        lines.append(
            f'<path d="M{x} 30V250" stroke="#dde1e7"/><text x="{x}" y="268" text-anchor="middle">{size:,}</text>'
        )
    for number, name in enumerate(names):
        points = [at(size, found[size][name][figure]) for size in sizes]
        path = "M" + "L".join(f"{x} {y}" for x, y in points)
        colour = COLOURS[number % len(COLOURS)]
        lines.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines += (f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in points)
        lines.append(f'<text x="556" y="{50 + 20 * number}" fill="{colour}">{name}</text>')
        if number == 0:
            x1, y1 = points[0]
            _, y2 = at(sizes[-1], max(found[sizes[0]][name][figure], 1e-3) * sizes[-1] / sizes[0])
            lines.append(f'<path d="M{x1} {y1}L540 {y2}" stroke="#5a6472" stroke-dasharray="3 4"/>')
    return "\n".join([*lines, "</svg>", ""])


def main() -> int:
    """Print tables, write drawings."""
    if sys.argv[1:2] in (["--make"], ["--ask"]):
        make, ask, _ = SUBJECTS[sys.argv[2]]
        size, place = int(sys.argv[3]), Path(sys.argv[4])
        print(json.dumps(ask(place, size))) if sys.argv[1] == "--ask" else make(place, size)
        return 0
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--most-packs", type=int, default=1_000_000)
    parser.add_argument("--most-volumes", type=int, default=10_000)
    parser.add_argument("--plots", type=Path, help="write drawings here")
    args = parser.parse_args()
    for subject, most in (("volumes", args.most_volumes), ("packs", args.most_packs)):
        found = grown(subject, most)
        print("\n".join(table(subject, found)), end="\n\n")
        if args.plots is not None and found:
            for figure, label in (("requests", "Requests"), ("cpu_s", "CPU seconds")):
                (args.plots / f"{subject}-{figure.partition('_')[0]}.svg").write_text(
                    plot(subject, found, figure, label)
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
