"""A fleet that does not exist: `python -m bench.fleet [--hosts N] [--days N] [--volumes N] [--dir DIR]`.

The catalogue is filled by the function that fills it after a look, from answers as looks print them; inventing these is
not counted. Then one repository of one such host is made, without data, and looked at by the command, as a first look
and as one that finds nothing new.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lamella.base.clock import iso
from lamella.base.ids import ChunkId, DomainId, SnapId, VolumeId, WriterId
from lamella.cli.fleet.catalogue import DAY_MS, FleetCatalogue, Wanted
from lamella.cli.fleet.health import host_rows
from lamella.cli.fleet.hosts import FleetHost, read_host
from lamella.cli.fleet.page import fleet_page
from lamella.crypto.slots import key_file
from lamella.format.records import NO_REF, AddSnap, Figures, Run, RunVolume, Volume, raw, volume_id
from lamella.memory.host import Host, machine_name
from lamella.repository.create import SlotWanted, create_repository
from lamella.repository.repository import Repository
from lamella.stores.url import open_store

MIB = 1 << 20
BATCH = 100
"""Volumes in one run."""
NOW = 1_795_737_600_000
Facts = dict[str, Any]


def name_of(time_ms: int, number: int) -> str:
    """The name of a snapshot."""
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y%m%dT%H%M%SZ}-{number:04x}"


def answer(host: int, days: int, volumes: int) -> str:
    """What a look at a host prints: a run a day, each of all volumes."""
    runs = [(name_of(NOW - day * DAY_MS, host), iso(NOW - day * DAY_MS)) for day in range(days, 0, -1)]
    rows = []
    for number in range(volumes):
        history = [
            {"snapshot": name, "time": time, "stored_bytes": MIB * (day * 7 + number) % 997, "good": True,
             "consistency": "live", "tags": []}
            for day, (name, time) in enumerate(runs)
        ]  # fmt: skip
        rows.append(
            {"name": f"vm{number:02}:private", "consistency": "live", "size": 20 << 30, "snapshots": days,
             "trouble": "", "verdict": "ok", "level": "sample", "verified_ms": NOW - DAY_MS, "drill": "",
             "drilled_ms": 0, "history": history, "failed": []}
        )  # fmt: skip
    facts = {"keys": True, "never": {}, "problems": [], "packs": 40_000, "stored_bytes": 600 << 30}
    return json.dumps({**facts, "volumes": rows})


def memory() -> int:
    """The most memory that this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def timed(work: Callable[[], object], tries: int = 3) -> float:
    """The CPU seconds of the fastest of several tries: who else uses the machine does not matter."""
    best = float("inf")
    for _ in range(tries):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def filled(path: Path, hosts: int, days: int, volumes: int) -> Facts:
    """Fill a catalogue; the CPU seconds of taking all answers in, and of one that comes again, a day longer or not."""
    spent = again = more = 0.0
    with FleetCatalogue.open(path) as catalogue:
        first = answer(0, days, volumes)
        for number in range(hosts):
            text = first.replace('-0000"', f'-{number:04x}"')  # the names of another host's snapshots
            started = time.process_time()
            catalogue.take_in(f"host{number:04}", NOW, json.loads(text))
            spent += time.process_time() - started
        text, longer = answer(0, days, volumes), answer(0, days + 1, volumes)
        again = timed(lambda: catalogue.take_in("host0000", NOW, json.loads(text)))
        more = timed(lambda: catalogue.take_in("host0000", NOW, json.loads(longer)), 1)
        rows = catalogue.count()
    size = sum(one.stat().st_size for one in path.parent.glob(f"{path.name}*"))
    return {"rows": rows, "build_s": spent, "again_s": again, "more_s": more, "file_bytes": size}


def asked(path: Path, hosts: int) -> dict[str, float]:
    """The seconds of questions, each with the catalogue opened as a command does."""
    bare = read_host(Path("/nowhere.toml")).settings
    fleet = [FleetHost(f"host{number:04}", Path("/x"), bare) for number in range(hosts)]
    middle = NOW - 100 * DAY_MS
    wanted = {
        "search, everything": Wanted(),
        "search, one host": Wanted(host=f"host{hosts // 2:04}"),
        "search, one host, one day": Wanted(host=f"host{hosts // 2:04}", since_ms=middle, before_ms=middle + DAY_MS),
        "search, ten hosts by pattern": Wanted(host="host000?"),
        "search, a volume of all hosts": Wanted(volume="vm07:private"),
        "search, a volume of all hosts, one day": Wanted("*", "vm07:private", middle, middle + DAY_MS),
        "search, a pattern of volumes, one day": Wanted("*", "vm1*", middle, middle + DAY_MS),
        "search, a pattern of volumes": Wanted("*", "vm1*"),
        "search, a pattern of volumes of ten hosts": Wanted("host000?", "vm1*"),
        "search, a day, 20,000 found": Wanted(since_ms=middle, before_ms=middle + DAY_MS, most=20_000),
        "search, nothing fits": Wanted(volume="vm99*"),
        "search, no such host": Wanted(host="nobody"),
    }

    def opened(question: Callable[[FleetCatalogue], object]) -> Callable[[], object]:
        def work() -> None:
            with FleetCatalogue.open(path) as catalogue:
                question(catalogue)

        return work

    found = {name: timed(opened(lambda one, want=want: one.search(want))) for name, want in wanted.items()}  # type: ignore[misc]
    found["status of all hosts"] = timed(opened(lambda one: host_rows(fleet, one, NOW)))
    found["the page"] = timed(opened(lambda one: fleet_page(host_rows(fleet, one, NOW), one.days(0), NOW)))
    return found


def host_repository(place: Path, days: int, volumes: int) -> None:
    """The repository of one host after so many days: its history, without data."""
    store, key = open_store(str(place / "repo"), create=True), key_file(b"k" * 32)
    (place / "key").write_bytes(b"k" * 32)
    (place / "key").chmod(0o600)
    host = Host(machine_name("bench"), "bench", place / "host-state", place / "host-cache")
    create_repository(store, host, [SlotWanted(key, admin=True)], lambda: NOW - days * DAY_MS)
    moment = NOW - days * DAY_MS
    with Repository.open(store, key, host, clock=lambda: moment) as repo:
        writer = repo.memory.creator().id
        records = [_volume(writer, number) for number in range(volumes)]
        ids = [one.volume_id for one in records]
        for start in range(0, volumes, BATCH):
            repo.publish([raw(one) for one in records[start : start + BATCH]])
        for day in range(days):
            for start in range(0, volumes, BATCH):
                moment = NOW - (days - day) * DAY_MS + start
                title = name_of(moment, day * 1000 + start // BATCH)
                added = list(_added(ids[start : start + BATCH], start, day, moment, title))
                saved = [RunVolume(one.volume_id, one.name, False, "") for one in records[start : start + BATCH]]
                repo.publish([*map(raw, added), raw(Run(title, True, tuple(saved)))])


def _volume(writer: WriterId, number: int) -> Volume:
    nonce, name = number.to_bytes(16, "big"), f"vm{number:02}:private"
    return Volume(
        volume_id(writer, nonce), DomainId(volume_id(writer, nonce)), 17, name, "", name.encode(), writer, nonce
    )


def _added(ids: list[VolumeId], start: int, day: int, moment: int, title: str) -> Iterator[AddSnap]:
    for place, volume in enumerate(ids, start + 1):
        number, domain = (day * 1_000_000 + place).to_bytes(16, "big"), DomainId(volume)
        yield AddSnap(
            SnapId(number), volume, domain, 17, 1, 20 << 30, ChunkId(number + number[8:]), moment, NO_REF,
            title, packs=(number * 2,), inner=(Figures(2, 1, 2, 3, 4).encode(),),
        )  # fmt: skip


def looked(place: Path) -> Facts:
    """A look by the command: seconds and CPU seconds of a first one, and of one that finds nothing new."""
    env = {
        "LAMELLA_STATE_DIR": f"{place}/state",
        "LAMELLA_CACHE_DIR": f"{place}/cache",
        "LAMELLA_CONFIG": f"{place}/none",
    }
    words = ["fleet", "refresh", "--one", "-r", f"{place}/repo", "--keyfile", f"{place}/key", "--json"]
    found: Facts = {}
    for name in ("first", "again"):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "lamella", *words], env={"PATH": "/usr/bin:/bin", "PYTHONPATH": "src", **env},
            capture_output=True, check=True,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found[name] = {"cpu_s": cpu, "bytes": len(done.stdout)}
    found["memory_bytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    return found


def main() -> int:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    for name, default in (("hosts", 1000), ("days", 365), ("volumes", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dir", type=Path, help="where to work (default: the directory for temporary files)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir=args.dir) as folder:
        path = Path(folder) / "fleet" / "catalogue.sqlite"
        facts = filled(path, args.hosts, args.days, args.volumes)
        facts["questions_s"] = asked(path, args.hosts)
        facts["memory_bytes"] = memory()
        host_repository(Path(folder), args.days, args.volumes)
        facts["look"] = looked(Path(folder))
    print(json.dumps(facts, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
