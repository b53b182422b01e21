"""Full restores onto several targets beside `zstd -d` and sync: `python -m bench.targets [-n N] [--size MIB] DIR...`.

Each DIR lies on a file system to be measured. As root a loop device over a file in the first one is a target, too;
`zstd` writes to it as well. A directory of Btrfs is measured with copy-on-write and, by chattr +C, without. In turn,
medians; every restored file is compared outside of the measured time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import images
from bench.measure import MIB, BenchError, Sample, Series, pin, run, settle
from bench.programs import NAME, Lamella

_UNPACK = 'zstd -q -f -d "$1" -o "$2" && sync "$2"'
_UNPACK_ONTO = 'zstd -q -d -c "$1" >"$2" && sync "$2"'


def said(*words: str | Path) -> str:
    """What a program says."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@contextmanager
def loop_device(backing: Path, size: int) -> Iterator[Path]:
    """A loop device over a new file, past the page cache."""
    with backing.open("wb") as file:
        file.truncate(size)
    device = said("losetup", "--find", "--show", "--direct-io=on", backing)
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
        backing.unlink()


def kind_of(folder: Path) -> str:
    """The file system of a directory."""
    return said("findmnt", "-n", "-o", "FSTYPE", "--target", folder)


def places(folders: list[Path], size: int, held: ExitStack) -> Iterator[tuple[str, Path]]:
    """The targets by name; a file is not there yet."""
    for folder in folders:
        kind = kind_of(folder)
        yield kind, folder / "restored.img"
        if kind == "btrfs":
            bare = folder / "without-cow"
            bare.mkdir()
            held.callback(bare.rmdir)
            subprocess.run(["chattr", "+C", bare], check=True)
            yield "btrfs +C", bare / "restored.img"
    if os.geteuid() == 0:
        yield "loop device", held.enter_context(loop_device(folders[0] / "device", size))


def measure(lamella: Lamella, image: Path, packed: Path, target: Path) -> dict[str, Sample]:
    """One restore and one unpacking. Raises BenchError."""
    onto = not target.is_file() and target.exists()
    if onto:
        run(["blkdiscard", target])  # what is right already would not be written
    settle()
    words = [
        *lamella.words("restore", NAME, "--to", target, *(["--yes", "--overwrite"] if onto else [])),
        "--json",
        "-q",
    ]
    found = {"lamella": run(words, {**lamella.env, "LAMELLA_STATE_DIR": str(lamella.work / "elsewhere")})}
    run(["cmp", "-n", str(image.stat().st_size), image, target])
    if not onto:
        target.unlink()
    if onto:
        run(["blkdiscard", target])
    settle()
    found["zstd -d"] = run(["sh", "-c", _UNPACK_ONTO if onto else _UNPACK, "sh", packed, target])
    if not onto:
        target.unlink()
    return found


def main() -> int:
    """Print a line for each target: medians by the clock and in CPU seconds, and the ratios."""
    parser = argparse.ArgumentParser(prog="python -m bench.targets", description=__doc__)
    parser.add_argument("-n", "--repeats", type=int, default=5, help="repeats (default 5)")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="real data (default 1024)")
    parser.add_argument("folder", nargs="+", type=Path, metavar="DIR")
    args = parser.parse_args()
    pin(2)
    found: dict[str, dict[str, Series]] = {}
    with ExitStack() as held:
        work = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="lamella-bench-")))
        load = images.make(work, args.size * MIB)
        packed = work / "dense.zst"
        run(["zstd", "-q", "-3", "-T2", load.dense, "-o", packed])
        lamella = Lamella(work)
        lamella.init()
        lamella.backup(load.dense)
        for name, target in places(args.folder, load.dense.stat().st_size, held):
            for _ in range(args.repeats):
                for program, sample in measure(lamella, load.dense, packed, target).items():
                    found.setdefault(name, {}).setdefault(program, Series()).samples.append(sample)
            mine, its = found[name]["lamella"], found[name]["zstd -d"]
            print(
                f"{name:<14} {mine.wall:6.2f} s of {its.wall:5.2f} s: {mine.wall / its.wall:5.2f} x;"
                f" CPU {mine.cpu:5.2f} of {its.cpu:5.2f}: {mine.cpu / its.cpu:5.2f} x",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BenchError, subprocess.CalledProcessError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
