"""What the size of chunks costs and saves: `python -m bench.chunk_sizes --dir DIR`, DIR on Btrfs or XFS with reflink.

For each size the same image is saved in full and after two changes, with differences and without; then a second volume
that began as the same image, and was changed elsewhere. A new machine restores the first: nothing is kept there.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import images
from bench.images import Patch, Workload
from bench.measure import MIB, BenchError, Sample, settle
from bench.programs import Lamella, document, tree_size

SIZES = ("64K", "128K", "256K", "512K", "1M")
COLUMNS = (
    *("full CPU s", "full MiB", "full stored", "map", "1 % stored", "1 % metadata", "1 % CPU s", "1 % differences"),
    *("differences CPU s", "8 MiB stored", "second volume", "restore CPU s", "restore MiB"),
)
_KEPT_BY_MACHINE = ("state_dir", "cache_dir")


def measure(work: Path, load: Workload, size: str) -> dict[str, float]:
    """The figures of one size. Raises BenchError."""
    found: dict[str, float] = {}
    other = work / "second.img"
    for way, more in (("whole", ()), ("differences", ("--deltas",))):
        program = Lamella(work, folder=way, options=("--chunk-size", size, "--domain", "all", *more))
        program.init()
        sample, row = _backup(program, load.image)
        if way == "whole":
            found |= {
                "full CPU s": sample.cpu,
                "full MiB": sample.memory / MIB,
                "full stored": row["stored_bytes"] / MIB,
            }
            found["map"] = tree_size(work / way / "cache_dir")[0] / MIB
        _clone(load.image, other)
        load.to_s1.apply(load.image)
        sample, row = _backup(program, load.image)
        found["1 % stored" if way == "whole" else "1 % differences"] = row["stored_bytes"] / MIB
        found["1 % CPU s" if way == "whole" else "differences CPU s"] = sample.cpu
        if way == "whole":
            found["1 % metadata"] = document(sample)["metadata_bytes"] / MIB
            load.to_s2.apply(load.image)
            found["8 MiB stored"] = _backup(program, load.image)[1]["stored_bytes"] / MIB
            _elsewhere(load.to_s1).apply(other)
            found["second volume"] = _backup(program, other, "second")[1]["stored_bytes"] / MIB
            found |= _restored(program, work, load.image)
        load.back.apply(load.image)
    return found


def _backup(program: Lamella, image: Path, name: str = "disk") -> tuple[Sample, dict[str, Any]]:
    settle()
    sample = program.call("backup", f"{name}={image}", *program.options)
    row = document(sample)["volumes"][0]
    if row["driver"] == "file":
        raise BenchError("changes are not tracked there: give --dir on Btrfs, or on XFS with reflink")
    return sample, row


def _elsewhere(patch: Patch) -> Patch:
    """The same contents in other places: each a mebibyte further."""
    return Patch(tuple((offset + MIB, length) for offset, length in patch.places[:-1]), patch.content)


def _restored(program: Lamella, work: Path, image: Path) -> dict[str, float]:
    for one in _KEPT_BY_MACHINE:
        shutil.rmtree(work / program.folder / one)
    target = work / "restored.img"
    settle()
    sample, _ = program.restore(image, target)
    if not filecmp.cmp(target, image, shallow=False):
        raise BenchError("restored wrongly")
    target.unlink()
    return {"restore CPU s": sample.cpu, "restore MiB": sample.memory / MIB}


def _clone(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", source, target], check=True)


def main() -> int:
    """Print a table: a line for each figure, a column for each size; MiB where no unit is said."""
    parser = argparse.ArgumentParser(prog="python -m bench.chunk_sizes", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where to work")
    parser.add_argument("--size", type=int, default=512, metavar="MIB", help="real data in the image (default 512)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir=args.dir) as folder:
        work = Path(folder)
        load = images.make(work, args.size * MIB)
        found = {size: measure(work, load, size) for size in SIZES}
    print(f"{'':<20}" + "".join(f"{size:>10}" for size in SIZES))
    for name in COLUMNS:
        print(f"{name:<20}" + "".join(f"{found[size][name]:>10.2f}" for size in SIZES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
