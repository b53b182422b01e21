"""Many hosts on one bucket, killed again and again: ten writers and two pruners, by the real command.

    python -m tests.system.busy_bucket --minutes 60 [--seed N] [--service ceph|moto] [--writers N] [--pruners N]

Every writer is a host of its own with one volume, made of blocks that all volumes share: so what one prune condemns,
another host stores again. Commands are killed (SIGKILL) at random moments. At the end everybody runs once more without
being killed, then a new machine verifies everything in full, and restores every snapshot there is: its bytes must be
those of the volume at that run, and none of the newest may be missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamella.base.errors import NothingMatched
from tests.cli.program import COMMAND, environment
from tests.s3_services import CREDENTIALS, S3Service, moto

BLOCK = 64 << 10
BLOCKS = 48
POOL = 96
KEPT = 3
KILLED_SHARE = 0.3
_SECONDS = 1500
"""Patience with one command, on a machine that has other work."""
PAUSE = 5.0
"""Seconds between two runs of a writer, on the average."""
_TELL_SECONDS = 60.0
Counts = Counter[str]


@dataclass
class Bucket:
    """The repository, and what every host needs to reach it."""

    repo: str
    keyfile: Path
    env: dict[str, str]
    work: Path
    seed: int

    def command(self, host: str, *words: str | Path) -> tuple[list[str], dict[str, str]]:
        """A command of one of the hosts, and its environment."""
        places = {f"LAMELLA_{one}_DIR": str(self.work / host / one.lower()) for one in ("STATE", "CACHE")}
        command = [*COMMAND, "--keyfile", str(self.keyfile), "-r", self.repo, "--json", "--debug", *map(str, words)]
        return command, environment({**self.env, **places})

    def run(self, host: str, *words: str | Path, kill_after: float | None = None) -> tuple[int, dict[str, Any], str]:
        """Run a command; its exit code (-9: killed), its document and what it said."""
        command, env = self.command(host, *words)
        running = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            out, said = running.communicate(timeout=_SECONDS if kill_after is None else kill_after)
        except subprocess.TimeoutExpired:
            running.kill()
            out, said = running.communicate()
            assert kill_after is not None, f"{host}: {words} did not end: {said}"
        return running.returncode, json.loads(out) if out.strip() and running.returncode >= 0 else {}, said


@dataclass
class Volume:
    """One host's volume: what it holds, and what its snapshots must hold."""

    name: str
    path: Path
    chance: random.Random
    pool: list[bytes]
    saved: dict[str, str] = field(default_factory=dict)
    """Snapshot -> SHA-256, in the order of the runs that said they are there."""
    killed: set[str] = field(default_factory=set)
    """What the volume held in runs that were killed: they may have published."""

    def change(self) -> str:
        """Put some blocks elsewhere; returns the SHA-256."""
        with self.path.open("r+b") as file:
            for _ in range(self.chance.randrange(1, 12)):
                file.seek(self.chance.randrange(BLOCKS) * BLOCK)
                file.write(self.chance.choice(self.pool))
        return digest(self.path)


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Busy:
    """The hosts at work."""

    def __init__(self, bucket: Bucket, writers: int, pruners: int) -> None:
        self.bucket = bucket
        self.counts: Counts = Counter()
        self.wrong: list[str] = []
        self.pause = PAUSE
        self._mutex = threading.Lock()
        chance = random.Random(bucket.seed)
        pool = [chance.randbytes(BLOCK) for _ in range(POOL)]
        self.volumes = [self._volume(f"writer{number}", pool) for number in range(writers)]
        self.pruners = [f"pruner{number}" for number in range(pruners)]

    def _volume(self, name: str, pool: list[bytes]) -> Volume:
        path = self.bucket.work / f"{name}.img"
        chance = random.Random(f"{self.bucket.seed} {name}")
        path.write_bytes(b"".join(chance.choice(pool) for _ in range(BLOCKS)))
        return Volume(name, path, chance, pool)

    def go(self, seconds: float, rounds: int = 2) -> None:
        """Everybody works for that long, then some rounds in peace. Raises AssertionError."""
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._guarded, args=(self.write, one, end)) for one in self.volumes]
        threads += [threading.Thread(target=self._guarded, args=(self.prune, one, end)) for one in self.pruners]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(_TELL_SECONDS)
                print(dict(self.counts), file=sys.stderr, flush=True)
        assert not self.wrong, self.wrong
        for _ in range(rounds):  # what is condemned in the first round goes in the second
            for volume in self.volumes:
                self.save(volume, None)
            for pruner in self.pruners:
                self.one_prune(pruner, None)

    def _guarded(self, work: Any, one: object, end: float) -> None:  # noqa: ANN401 - a method of this class
        try:
            while time.monotonic() < end and not self.wrong:
                work(one)
        except Exception as error:  # noqa: BLE001 - told by the main thread
            self.wrong.append(f"{one}: {error}")

    def _counted(self, what: str) -> None:
        with self._mutex:
            self.counts[what] += 1

    def _end(self, chance: random.Random) -> float | None:
        """When a run is killed, if it is: anywhere from its start to its usual end."""
        return chance.uniform(0.3, 6.0) if chance.random() < KILLED_SHARE else None

    def write(self, volume: Volume) -> None:
        """One backup, which may be killed."""
        time.sleep(volume.chance.uniform(0, 2 * self.pause))
        self.save(volume, self._end(volume.chance))

    def save(self, volume: Volume, kill_after: float | None) -> None:
        """Change the volume and back it up."""
        held = volume.change()
        words = ("backup", f"{volume.name}={volume.path}", "--chunk-size", "64K")
        code, document, said = self.bucket.run(volume.name, *words, kill_after=kill_after)
        if code == -9:
            volume.killed.add(held)
            self._counted("backup killed")
            return
        assert code == 0, f"{volume.name}: backup ended with {code}: {said}"
        volume.saved[document["snapshot"]] = held
        self._counted("backup")

    def prune(self, pruner: str) -> None:
        """One prune, which may be killed."""
        chance = random.Random(f"{self.bucket.seed} {pruner} {time.monotonic_ns()}")
        self.one_prune(pruner, self._end(chance))

    def one_prune(self, pruner: str, kill_after: float | None) -> None:
        """Remove all but the newest snapshots of each volume, and delete what every writer knows to be condemned.

        The rules would keep what arrives within one hour.
        """
        doomed = [f"{name}@{one}" for name, there in self.snapshots(pruner).items() for one in there[:-KEPT]]
        words = ["delete", *doomed, "-y"] if doomed else ["prune", "--keep-last", str(KEPT)]
        code, document, said = self.bucket.run(
            pruner, *words, "--grace", "0h", "--remove-delay", "0h", kill_after=kill_after
        )
        if code == -9:
            self._counted("prune killed")
            return
        if code == NothingMatched.exit_code and doomed:
            self._counted("the other pruner was faster")
            return
        assert code == 0, f"{pruner}: {words[0]} ended with {code}: {said}"
        self._counted("prune")
        with self._mutex:
            self.counts["packs deleted"] += document["deleted_packs"]
            self.counts["snapshots removed"] += len(document["removed"])

    def snapshots(self, host: str) -> dict[str, list[str]]:
        """The snapshots of each volume, the oldest first, as a host sees them."""
        code, listed, said = self.bucket.run(host, "list")
        assert code in {0, NothingMatched.exit_code}, said
        names: dict[str, list[str]] = {volume.name: [] for volume in self.volumes}
        for row in sorted(listed.get("snapshots", ()), key=lambda row: str(row["snapshot"])):
            for name in row["volumes"]:
                names[name].append(row["snapshot"])
        return names

    # -- the end -------------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """A new machine verifies all and restores every snapshot. Raises AssertionError."""
        code, found, said = self.bucket.run("judge", "verify", "--level", "full")
        assert code == 0 and not found["findings"] and not found["unrestorable"], (code, found, said)
        names = self.snapshots("judge")
        for volume in self.volumes:
            self._judge_volume(volume, names[volume.name])

    def _judge_volume(self, volume: Volume, there: list[str]) -> None:
        newest = list(volume.saved)[-KEPT:]
        unknown = [one for one in there if one not in volume.saved]
        # What a killed run published counts among the newest, too.
        must = newest[len(unknown) :] if unknown else newest
        assert set(must) <= set(there), f"{volume.name}: {must} should be there, there are {there}"
        target = self.bucket.work / "restored.img"
        for name in there:
            words = ("restore", f"{volume.name}@{name}", "--to", target, "--overwrite")
            code, _, said = self.bucket.run("judge", *words)
            assert code == 0, (volume.name, name, said)
            held = digest(target)
            right = held == volume.saved[name] if name in volume.saved else held in volume.killed
            assert right, f"{volume.name}@{name}: restored bytes differ"
            self._counted("restored")


def bucket_at(service: S3Service, work: Path, seed: int) -> Bucket:
    """A repository in a new bucket."""
    keyfile = work / "key"
    keyfile.write_bytes(random.Random(seed).randbytes(32))
    keyfile.chmod(0o600)
    name = service.new_bucket()
    bucket = Bucket(f"s3://{name}/busy", keyfile, {**CREDENTIALS, "AWS_ENDPOINT_URL": service.endpoint}, work, seed)
    code, _, said = bucket.run("pruner0", "init", "-q")  # who goes on writing: deletion waits for every writer
    assert code == 0, said
    return bucket


@contextmanager
def running(service: str) -> Iterator[S3Service]:
    """A service of that name."""
    if service == "moto":
        with moto() as found:
            yield found
        return
    from tests.system.ceph_cluster import Ceph

    with tempfile.TemporaryDirectory(dir=os.environ.get("LAMELLA_BENCH_DIR")) as place:
        cluster = Ceph(Path(place))
        try:
            cluster.start()
            yield S3Service(cluster.start_s3(), enforces_conditions=True)
        finally:
            cluster.close()


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.busy_bucket", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--service", choices=("ceph", "moto"), default="ceph")
    parser.add_argument("--writers", type=int, default=10)
    parser.add_argument("--pruners", type=int, default=2)
    args = parser.parse_args()
    with running(args.service) as service, tempfile.TemporaryDirectory() as place:
        busy = Busy(bucket_at(service, Path(place), args.seed), args.writers, args.pruners)
        begun = time.monotonic()
        busy.go(60 * args.minutes)
        print(f"{(time.monotonic() - begun) / 60:.1f} minutes: {dict(busy.counts)}", flush=True)
        busy.judge()
        print(f"everything verified, every snapshot restored: {busy.counts['restored']}", flush=True)


if __name__ == "__main__":
    main()
