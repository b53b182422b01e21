"""Going back one day: `python -m bench.differential FOLDER [MIB] [REPEATS]`, FOLDER on XFS or Btrfs.

An image of real data is backed up, 1 % of it changes in scattered places, and it is backed up again. Then the state of
the day before is restored beside the image and over it, with and without --trust-local, each time from the same state;
beside it what hashing the image once costs. Medians; every restored file is compared outside of the measured time.
Each figure is said as soon as it is known: with 4 GiB that takes its time.
"""

from __future__ import annotations

import hmac
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.measure import MIB, BenchError, Sample, Series, run, settle
from bench.programs import NAME, Lamella, document
from bench.restoring import make

_PIECE = 64 * 1024
_ONE_IN = 100
_READ = 4 * MIB


def change(image: Path) -> None:
    """Overwrite 1 % in pieces of 64 KiB, where chance says."""
    chance, size = random.Random(1), image.stat().st_size
    with image.open("r+b") as file:
        for _ in range(size // _ONE_IN // _PIECE):
            file.seek(chance.randrange(size // _PIECE) * _PIECE)
            file.write(secrets.token_bytes(_PIECE))


def hashed(image: Path) -> Sample:
    """What reading the image and computing the keyed hash of each 128 KiB costs, in this process."""
    wall, cpu, started = time.perf_counter(), time.process_time(), hmac.new(b"bench", b"", "sha256")
    with image.open("rb", buffering=0) as file:
        while piece := file.read(_READ):
            for at in range(0, len(piece), _PIECE * 2):
                state = started.copy()
                state.update(piece[at : at + _PIECE * 2])
                state.digest()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu, 0)


def measure(work: Path, size: int, repeats: int) -> dict[str, Series]:
    """The series of each way. Raises BenchError, also for a restored file that differs."""
    image, before, live, program = work / "disk.img", work / "before", work / "live", Lamella(work)
    make(image, size)
    say(f"{image} is made")
    program.init()
    program.backup(image)
    first = document(program.call("list", NAME))["snapshots"][0]["snapshot"]
    run(["cp", "--reflink=always", image, before])
    change(image)
    program.backup(image)
    say("both states are backed up")
    run(["cp", "--reflink=always", image, live])
    text = f"{NAME}@{first}"
    ways: dict[str, Callable[[], Sample]] = {
        "hashing": lambda: hashed(before),
        "trusting, beside": lambda: program.call("restore", text, "--to", image, "--overwrite", "--trust-local"),
        "trusting, in place": lambda: program.call("restore", text, "--to", image, "--in-place", "--trust-local"),
        "default, beside": lambda: program.call("restore", text, "--to", image, "--overwrite"),
        "default, in place": lambda: program.call("restore", text, "--to", image, "--in-place"),
    }
    series = {name: Series() for name in ways}
    for number in range(repeats):
        for name, way in ways.items():
            # The blocks that it shares with the kept moment are what a change map tells by.
            run(["cp", "--reflink=always", live, image])
            settle()
            sample = way()
            series[name].samples.append(sample)
            if name != "hashing":
                run(["cmp", image, before])
                series[name].facts = document(sample)
            say(f"{number + 1}: {name:20}{sample.wall:8.2f} s{sample.cpu:8.2f} CPU s")
    return series


def say(text: str) -> None:
    """Say what was done, at once: a run that is stopped has said as much as it has measured."""
    print(f"  {text}", file=sys.stderr, flush=True)


def table(series: dict[str, Series]) -> list[str]:
    """The figures."""
    lines = [f"{'':20}{'wall s':>8}{'CPU s':>8}{'written':>12}{'compared':>12}{'sampled':>12}  kept"]
    for name, one in series.items():
        counts = [one.facts.get(key, 0) // MIB for key in ("bytes_written", "compared_bytes", "sampled_bytes")]
        cells = "".join(f"{count:8} MiB" for count in counts)
        lines.append(f"{name:20}{one.wall:8.2f}{one.cpu:8.2f}{cells}  {one.facts.get('kept')}")
    return lines


def main(folder: str, size: str = "4096", repeats: str = "3") -> int:
    """Measure and print; 1 if that is not possible."""
    try:
        with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir=folder) as work:
            print("\n".join(table(measure(Path(work), int(size) * MIB, int(repeats)))))
    except (BenchError, OSError, shutil.Error) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
