"""What saving a tree of files costs, beside restic: `python -m bench.trees`.

100,000 files of a few KB in 2,000 directories are saved, saved again unchanged, and restored; then a million empty
files are saved, saved again, looked into and restored, for memory. Both programs do the same in turn, in one run; their
times are given as a ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench.measure import MIB, Sample, run
from bench.programs import PASSPHRASE, lamella_command, module_path

_FIRST_LEAST, _UNCHANGED_MOST = 1.2, 0.6
"""Bounds: restic's time over Lamella's for the first run, Lamella's over restic's for an unchanged tree."""


def make_tree(top: Path, files: int) -> None:
    """So many files: seven of ten are words, the others do not compress."""
    chance = random.Random(1)
    words = [bytes(chance.randrange(97, 123) for _ in range(chance.randrange(3, 9))) for _ in range(2000)]
    for number in range(files):
        folder = top / f"d{number // 50 % 40}" / f"e{number // 50}"
        if number % 50 == 0:
            folder.mkdir(parents=True)
        size = min(int(chance.expovariate(1 / 6000)), 200_000)
        content = b" ".join(chance.choices(words, k=size // 7)) if chance.random() < 0.7 else chance.randbytes(size)
        (folder / f"file{number}").write_bytes(content)


def make_names(top: Path, files: int) -> None:
    """So many empty files, a thousand in each directory."""
    for number in range(files):
        folder = top / f"d{number // 1000}"
        if number % 1000 == 0:
            folder.mkdir(parents=True)
        os.close(os.open(folder / f"a file number {number}", os.O_CREAT | os.O_WRONLY))


class Pair:
    """Lamella and restic, each with a repository of its own."""

    def __init__(self, work: Path, *, with_restic: bool) -> None:
        self._work = work
        (work / "key").write_bytes(os.urandom(32))
        (work / "key").chmod(0o600)
        places = {"REPO": work / "lamella", "STATE_DIR": work / "state", "CACHE_DIR": work / "cache"}
        self._own = {f"LAMELLA_{name}": str(place) for name, place in {**places, "CONFIG": work / "none"}.items()}
        self._own |= {"PATH": os.environ.get("PATH", os.defpath), **module_path()}
        restic = {"RESTIC_PASSWORD": PASSPHRASE, "RESTIC_REPOSITORY": str(work / "restic")}
        self._restic = {
            **restic,
            "RESTIC_CACHE_DIR": str(work / "restic-cache"),
            "HOME": str(work),
            "PATH": self._own["PATH"],
        }
        self._with_restic = with_restic
        self.samples: dict[str, list[Sample]] = {}

    def init(self) -> None:
        """New repositories."""
        for name in ("lamella", "state", "cache", "restic", "restic-cache"):
            shutil.rmtree(self._work / name, ignore_errors=True)
        self.both("init", ["init"], ["init", "--repository-version", "2"])

    def both(self, step: str, own: Iterable[str | Path], restic: Iterable[str | Path]) -> None:
        """One step of both, after everything is written out."""
        command: list[str | Path] = [*lamella_command(), "--keyfile", self._work / "key", "-q", *own]
        self._timed(f"{step}/lamella", command, self._own)
        if self._with_restic:
            self._timed(f"{step}/restic", ["restic", "-q", *restic], self._restic)

    def _timed(self, key: str, command: list[str | Path], env: Mapping[str, str]) -> None:
        os.sync()
        self.samples.setdefault(key, []).append(run(command, env))

    def figures(self) -> dict[str, dict[str, float]]:
        """Medians; memory is the largest."""
        return {
            key: {
                "seconds": round(statistics.median(one.wall for one in samples), 2),
                "cpu_seconds": round(statistics.median(one.cpu for one in samples), 2),
                "memory_mib": round(max(one.memory for one in samples) / MIB),
            }
            for key, samples in self.samples.items()
            if not key.startswith("init")
        }


def measure(work: Path, files: int, names: int, repeats: int, *, with_restic: bool = True) -> int:
    """Print the figures. Returns 1 if a bound is missed."""
    pair = Pair(work, with_restic=with_restic and shutil.which("restic") is not None)
    if repeats:
        make_tree(work / "tree", files)
    for number in range(repeats):
        pair.init()
        for step in ("first", "unchanged"):
            pair.both(step, ["files", "backup", work / "tree"], ["backup", work / "tree"])
        own, other = work / f"back{number}", work / f"restic-back{number}"
        own.mkdir()
        pair.both("restore", ["restore", "tree", "--to", f"{own}/"], ["restore", "latest", "--target", other])
        for place in (own, other):
            shutil.rmtree(place, ignore_errors=True)
    if names:
        shutil.rmtree(work / "tree", ignore_errors=True)
        make_names(work / "names", names)
        if not repeats:
            pair.init()
        for step in ("names", "names again"):
            pair.both(step, ["files", "backup", work / "names"], ["backup", work / "names"])
        pair.both("names listed", ["files", "list", "names", "d0"], ["ls", "latest", work / "names" / "d0"])
        last = f"a file number {names - 1}"
        pair.both("names found", ["files", "find", "names", last], ["find", last])
        (work / "names-back").mkdir()
        target = work / "restic-names-back"
        back = ["restore", "names", "--to", f"{work}/names-back/"]
        pair.both("names restored", back, ["restore", "latest", "--target", target])
    figures = pair.figures()
    print(json.dumps(figures, indent=2))
    if "first/restic" not in figures:
        return 0
    seconds = {key: figure["seconds"] for key, figure in figures.items()}
    first, again = (seconds[f"{step}/lamella"] / seconds[f"{step}/restic"] for step in ("first", "unchanged"))
    met = 1 / first >= _FIRST_LEAST and again <= _UNCHANGED_MOST
    print(f"first run: {1 / first:.2f} x restic's speed (bound {_FIRST_LEAST}); ", end="")
    print(f"unchanged: {again:.2f} x restic's time (bound {_UNCHANGED_MOST}): {'pass' if met else 'MISS'}")
    return 0 if met else 1


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.trees", description=__doc__)
    parser.add_argument("-n", "--repeats", type=int, default=3)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--names", type=int, default=1_000_000, help="empty files, for memory; 0: none")
    parser.add_argument("--alone", action="store_true", help="without restic")
    parser.add_argument("--dir", default="/var/tmp", help="where to work")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir=args.dir) as folder:
        return measure(Path(folder), args.files, args.names, args.repeats, with_restic=not args.alone)


if __name__ == "__main__":
    sys.exit(main())
