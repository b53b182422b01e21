"""A soak of the whole path: random changes, backups, monitors, restores, on real copy-on-write file systems.

    python -m tests.system.soak --seconds 3600 [--seed N] [--fs btrfs --options compress-force=zstd]

Each round changes an image, sometimes runs `monitor`, loses the cache or the state, backs up to one of two
repositories, and now and then restores: every restored snapshot must equal the bytes that were there when it was made.
Root only.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from lamella.base.clock import now_ms
from lamella.crypto.slots import key_file
from lamella.memory.host import Host
from lamella.operations.backup.story import BackupOptions, Request, plan_backup
from lamella.operations.moments.monitor import monitor
from lamella.operations.restore.restore import RestoreOptions, plan_restore
from lamella.operations.shared.selection import select
from lamella.repository.create import SlotWanted, create_repository
from lamella.repository.repository import Repository
from lamella.sources.base import Source
from lamella.sources.registry import open_source
from lamella.stores.url import open_store
from lamella_kit.image_changes import ImageChanges
from tests.system import loop_fs

SECRET = key_file(b"soak" * 8)
MOST = 24 << 20


class Soak:
    """One image on one file system, two repositories, and what every snapshot must restore to."""

    def __init__(self, mount: Path, work: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.work = work
        self.image = mount / "images" / "vm.img"
        self.image.parent.mkdir()
        self.image.write_bytes(self.chance.randbytes(4 << 20))
        self.host = Host("5" * 16, "soak", work / "state", work / "cache")
        self.expected: dict[tuple[int, str], str] = {}
        self.counts: Counter[str] = Counter()
        self.earlier = mount / "earlier.img"
        self.changes = ImageChanges(self.image, self.chance, MOST)
        for number in (0, 1):
            store = open_store(str(work / f"repo{number}"), create=True)
            create_repository(store, self.host, [SlotWanted(SECRET, admin=True)], now_ms)

    def source(self) -> Source:
        return open_source(str(self.image), machine=self.host.machine, owner=self.host.owner)

    @contextmanager
    def open(self, number: int) -> Iterator[Repository]:
        place = str(self.work / f"repo{number}")
        with closing(open_store(place)) as store, Repository.open(store, SECRET, self.host) as repo:
            yield repo

    def round(self) -> None:
        if self.chance.random() < 0.2:
            self.earlier.unlink(missing_ok=True)
            self.changes.copy(self.earlier)
        self.changes.change(self.chance.randrange(1, 12), self.earlier if self.earlier.exists() else None)
        event = self.chance.random()
        if event < 0.3:
            self.counts["monitor"] += monitor(self.host, self.source()).intervals
        elif event < 0.34:
            shutil.rmtree(self.host.cache_dir, ignore_errors=True)
            self.counts["cache lost"] += 1
        elif event < 0.36:
            shutil.rmtree(self.host.state_dir, ignore_errors=True)
            self.counts["state lost"] += 1
        if self.chance.random() < 0.7:
            self.backup(self.chance.randrange(2))
        if self.expected and self.chance.random() < 0.15:
            self.restore(*self.chance.choice(sorted(self.expected)))

    def backup(self, number: int) -> None:
        digest = _digest(self.image)
        with self.open(number) as repo:
            options = BackupOptions(chunk_log2=16)
            result = plan_backup(repo, [Request("vm", self.source())], options).execute()
        row = result.volumes[0]
        if row.result != "complete" or any("change map" in warning for warning in result.warnings):
            raise AssertionError(f"{row} {result.warnings}")
        self.counts[row.mode] += 1
        self.expected[number, result.snapshot] = digest
        self.restore(number, result.snapshot)

    def restore(self, number: int, snapshot: str) -> None:
        target = self.work / "restored.img"
        with self.open(number) as repo:
            selected = select(repo, [f"vm@{snapshot}"])[0]
            plan_restore(repo, selected, target, RestoreOptions(overwrite=True)).execute()
        if _digest(target) != self.expected[number, snapshot]:
            raise AssertionError(f"repository {number}, snapshot {snapshot}: restored bytes differ")
        self.counts["restored"] += 1


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def soak(kind: str, options: str, seed: int, seconds: float) -> Counter[str]:
    """Run rounds for that long. Raises AssertionError at the first wrong byte."""
    with loop_fs.make(kind, options) as mount, tempfile.TemporaryDirectory() as work:
        running = Soak(mount, Path(work), seed)
        end = time.monotonic() + seconds
        with running.changes:
            while time.monotonic() < end:
                running.round()
                running.counts["rounds"] += 1
        return running.counts


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=858)
    parser.add_argument("--fs", default="")
    parser.add_argument("--options", default="")
    args = parser.parse_args()
    kinds = [(args.fs, args.options)] if args.fs else [("btrfs", "compress-force=zstd"), ("xfs", ""), ("btrfs", "")]
    end = time.monotonic() + args.seconds
    seed = args.seed
    while time.monotonic() < end:
        kind, options = kinds[(seed - args.seed) % len(kinds)]
        counts = soak(kind, options, seed, min(120.0, max(1.0, end - time.monotonic())))
        print(f"seed {seed} {kind} {options}: {dict(counts)}", flush=True)
        seed += 1
    print("no miss", flush=True)


if __name__ == "__main__":
    main()
