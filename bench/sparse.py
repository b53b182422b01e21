"""Very large sparse files through the real command: what holes cost."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from bench.images import Workload
from bench.measure import MIB, Series, run, settle
from bench.programs import Lamella, document

GIB = 1 << 30
PIECE = MIB


def make(path: Path, size: int, data: Path, data_bytes: int) -> int:
    """A sparse file of `size` bytes with `data_bytes` of real data in pieces of 1 MiB all over it; returns its size.

    Where the file system does not allow files that large, the largest of half, a quarter and so on.
    """
    chance = random.Random(3)
    path.unlink(missing_ok=True)
    with path.open("wb") as target, data.open("rb") as source:
        while True:
            try:
                target.truncate(size)
                break
            except OSError:
                size //= 2
        count = data_bytes // PIECE
        for number in range(count):
            step = size // count
            target.seek(number * step + chance.randrange((step - PIECE) // 4096) * 4096)
            target.write(source.read(PIECE))
        target.flush()
        os.fsync(target.fileno())
    return size


def measure(work: Path, load: Workload, size: int, name: str, repeats: int) -> dict[str, Series]:
    """Full and unchanged backup, and restore, of a sparse file with 100 MiB of data."""
    image, target = work / "sparse.img", work / "sparse.out"
    real = make(image, size, load.dense, min(100 * MIB, load.data_bytes // PIECE * PIECE))
    lamella = Lamella(work, folder="sparse")
    series = {f"{name}, {step}/lamella": Series() for step in ("full", "unchanged", "restore")}
    full, unchanged, restore = series.values()
    for number in range(repeats):
        lamella.init()
        for one in (full, unchanged):
            settle()
            sample = lamella.backup(image)
            said = document(sample)
            one.samples.append(sample)
            one.facts |= {key: said["volumes"][0][key] for key in ("read_bytes", "stored_bytes", "new_chunks")}
            one.facts |= {"metadata_bytes": said["metadata_bytes"], "source_bytes": real, "objects": lamella.size()[1]}
        settle()
        restore.samples.append(lamella.restore(image, target)[0])
        target.unlink()
        print(f"  {number + 1}: {name}", file=sys.stderr, flush=True)
    image.unlink()
    run(["rm", "-rf", work / "sparse"])
    return series
