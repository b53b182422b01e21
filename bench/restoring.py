"""A full restore beside `zstd -d` and `sync`, borg and restic: `python -m bench.restoring FOLDER [MIB] [REPEATS]`.

FOLDER says which file system is measured: the file of real data, the repositories and the restored files lie there.
All programs take turns, so that no program alone meets a busy machine; medians, by the clock and in CPU seconds. Each
restored file is compared with the original outside of the measured time.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.images import real_files
from bench.measure import MIB, BenchError, Sample, Series, run, settle
from bench.programs import Borg, Lamella, Peer, Restic

_COPY = 4 * MIB
_UNPACK = 'zstd -q -f -d "$1" -o "$2" && sync "$2"'


def make(path: Path, size: int) -> None:
    """Fill a file with `size` bytes of this machine's own files, one after the other. Raises BenchError."""
    left = size
    with path.open("wb") as target:
        for source, _ in real_files(size):
            with source.open("rb") as file:
                while left and (piece := file.read(min(left, _COPY))):
                    left -= target.write(piece)
    if left:
        raise BenchError(f"this machine has {left} bytes too few to fill {path}")


def prepare(work: Path, image: Path) -> dict[str, Callable[[Path], tuple[Sample, Path]]]:
    """Back the file up with every program; name -> a restore below a path that does not exist yet."""
    packed = work / "packed.zst"
    run(["zstd", "-q", "-3", "-T2", image, "-o", packed])

    def unpack(target: Path) -> tuple[Sample, Path]:
        return run(["sh", "-c", _UNPACK, "sh", packed, target]), target

    ways: dict[str, Callable[[Path], tuple[Sample, Path]]] = {"zstd -d": unpack}
    programs: list[Lamella | Peer] = [Lamella(work), *(one for one in (Borg(work), Restic(work)) if _is_here(one))]
    for program in programs:
        program.init()
        program.backup(image)
        ways[program.name] = lambda target, program=program: program.restore(image, target)  # type: ignore[misc]
    return ways


def _is_here(program: Peer) -> bool:
    return shutil.which(program.name) is not None


def measure(work: Path, size: int, repeats: int) -> dict[str, Series]:
    """The series of each program. Raises BenchError, also for a restored file that differs."""
    image, target = work / "disk.img", work / "restored"
    make(image, size)
    ways = prepare(work, image)
    series = {name: Series() for name in ways}
    for number in range(repeats):
        for name in sorted(ways, reverse=bool(number % 2)):
            settle()
            sample, restored = ways[name](target)
            run(["cmp", image, restored])
            series[name].samples.append(sample)
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink()
    return series


def table(series: dict[str, Series]) -> list[str]:
    """The figures, and what they are of those of `zstd -d`."""
    base = series["zstd -d"]
    lines = [f"{'':10}{'wall s':>8}{'(range)':>14}{'CPU s':>8}{'MiB':>6}{'wall':>9}{'CPU':>9}"]
    for name, one in series.items():
        lines.append(
            f"{name:10}{one.wall:8.2f}{one.spread():>14}{one.cpu:8.2f}{one.memory // MIB:6}"
            f"{one.wall / base.wall:7.2f} x{one.cpu / base.cpu:7.2f} x"
        )
    return lines


def main(folder: str, size: str = "1024", repeats: str = "5") -> int:
    """Measure and print; 1 if that is not possible."""
    try:
        with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir=folder) as work:
            print("\n".join(table(measure(Path(work), int(size) * MIB, int(repeats)))))
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
