"""What a mounted repository costs: `python -m bench.mounting [--snapshots N]`.

A repository of so many snapshots of one volume is mounted. Timed are the mount, the list of the snapshots, the size and
time of each, and the volume read through it; beside the last three the same with plain files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.programs import lamella_command, module_path
from lamella.base.ids import SnapId
from lamella.crypto.slots import key_file
from lamella.format.records import raw
from lamella.memory.host import Host, machine_name
from lamella.repository.repository import Repository
from lamella.stores.url import open_store

_MIB = 1 << 20
_TARGET_SECONDS = 0.3
"""To list 1,000 snapshots."""


def run(environment: dict[str, str], *words: str) -> str:
    """Run Lamella's command."""
    env = {**os.environ, **module_path(), **environment}
    return subprocess.run([*lamella_command(), *words], env=env, check=True, capture_output=True, text=True).stdout


def grow(place: Path, key: bytes, count: int) -> None:
    """Publish the one snapshot again and again, as runs without any change would."""
    host = Host(machine_name("bench"), "bench", place / "grown", place / "grown-cache")
    with Repository.open(open_store(str(place / "repository")), key_file(key), host) as repo:
        first = repo.catalogue.snapshots[0].added
        for number in range(1, count):
            title, id_ = f"20261122T184501Z-{number:06}", SnapId(number.to_bytes(16, "big"))
            repo.publish([raw(replace(first, snap_id=id_, name=title, time_ms=first.time_ms + number * 1000))])


def timed(work: Callable[[], object]) -> float:
    """Seconds by the clock."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def read(path: Path) -> None:
    """Read all of a file."""
    with path.open("rb", buffering=0) as file:
        while file.read(_MIB):
            pass


def measure(place: Path, count: int, mib: int) -> None:
    """Print the figures."""
    key = os.urandom(32)
    (place / "key").write_bytes(key)
    (place / "key").chmod(0o600)
    environment = {
        "LAMELLA_REPO": str(place / "repository"),
        "LAMELLA_STATE_DIR": str(place / "state"),
        "LAMELLA_CACHE_DIR": str(place / "cache"),
        "LAMELLA_CONFIG": str(place / "none"),
    }
    options = ("--keyfile", str(place / "key"))
    image, mounted, plain = place / "disk.img", place / "mounted", place / "plain"
    image.write_bytes(os.urandom(mib * _MIB))
    run(environment, *options, "init", "-q")
    run(environment, *options, "backup", "-q", str(image))
    grow(place, key, count)
    mounted.mkdir()
    mount = timed(lambda: run(environment, *options, "mount", "-q", str(mounted)))
    try:
        volume = mounted / "disk"
        listed = timed(lambda: os.listdir(volume))  # noqa: PTH208 - as `ls` does
        names = sorted(os.listdir(volume))  # noqa: PTH208
        status = timed(lambda: [(volume / name / "disk.img").stat() for name in names])
        for name in names:
            (plain / name).mkdir(parents=True)
            (plain / name / "disk.img").touch()
        plain_status = timed(lambda: [(plain / name / "disk.img").stat() for name in names])
        seconds = timed(lambda: read(volume / "latest" / "disk.img"))
        plain_seconds = timed(lambda: read(image))
    finally:
        subprocess.run(["umount", mounted], check=True)
    figures = {
        "snapshots": len(names) - 1,
        "mount_seconds": round(mount, 2),
        "list_seconds": round(listed, 3),
        "status_of_each_seconds": round(status, 3),
        "status_ratio_to_files": round(status / plain_status, 1),
        "read_mb_per_second": round(mib * _MIB / seconds / 1e6),
        "read_ratio_to_file": round(seconds / plain_seconds, 1),
    }
    print(json.dumps(figures, indent=2))
    print(f"list of {count} snapshots: {listed:.3f} s, target {_TARGET_SECONDS} s for 1,000")


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.mounting", description=__doc__)
    parser.add_argument("--snapshots", type=int, default=1000, help="how many there are (default 1000)")
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="size of the volume (default 256)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamella-bench-") as folder:
        measure(Path(folder), args.snapshots, args.size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
