"""What incremental backups cost where changes are tracked: run with `--dir` on Btrfs or on XFS with reflink."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.images import Workload
from bench.measure import MIB, BenchError, Sample, Series, run, settle
from bench.programs import Lamella, document
from bench.report import Target, speed_factor
from bench.sparse import GIB, make

BLOCK = 4096
FRAGMENTS = 131_072
LATER = 61


def measure(work: Path, load: Workload, repeats: int, *, snapshots: int = LATER) -> dict[str, Series]:
    """Everything below; the series of one step by `step/program`."""
    series: dict[str, Series] = {}
    bare = Series([run([sys.executable, "-c", "pass"]) for _ in range(5)])
    series["start/python -c pass"] = bare
    series["full/zstd -3 -T1"] = Series([run(["zstd", "-3", "-T1", "-q", "-c", load.dense, "-o", os.devnull, "-f"])])
    for _ in range(repeats):
        _image(work, load, series)
    _apparent(work, load, series, snapshots)
    _fragmented(work, series)
    return series


def _image(work: Path, load: Workload, series: dict[str, Series]) -> None:
    lamella = Lamella(work, folder="tracking")
    lamella.init()
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("full", lambda: None),
        ("no change", lambda: None),
        ("1 % change", lambda: load.to_s1.apply(load.image)),
        ("8 MiB change", lambda: load.to_s2.apply(load.image)),
    )
    for step, change in steps:
        change()
        _backup(lamella, load.image, f"{step}/lamella", series)
    load.back.apply(load.image)


def _backup(lamella: Lamella, image: Path, key: str, series: dict[str, Series]) -> None:
    settle()
    sample = lamella.backup(image)
    said = document(sample)
    row = said["volumes"][0]
    if row["driver"] == "file":
        raise BenchError("changes are not tracked there: give --dir on Btrfs, or on XFS with reflink")
    one = series.setdefault(key, Series())
    one.samples.append(sample)
    one.facts |= {name: row[name] for name in ("driver", "mode", "read_bytes", "sampled_bytes", "stored_bytes")}
    one.facts["metadata_bytes"] = said["metadata_bytes"]


def _apparent(work: Path, load: Workload, series: dict[str, Series], snapshots: int) -> None:
    """200 GiB apparent, a little data: the cost of 10 writes after the first snapshot and after many."""
    image = work / "apparent.img"
    size = make(image, 200 * GIB, load.dense, min(24 * MIB, load.data_bytes))
    lamella = Lamella(work, folder="apparent")
    lamella.init()
    chance = random.Random(10)
    _backup(lamella, image, "200 GiB, full/lamella", series)
    for number in range(1, snapshots + 1):
        with image.open("r+b") as file:
            for _ in range(10):
                file.seek(chance.randrange(size // BLOCK) * BLOCK)
                file.write(os.urandom(BLOCK))
        word = "first" if number <= 3 else "last" if number > snapshots - 3 else ""
        _backup(lamella, image, f"200 GiB, 10 writes, {word or 'between'}/lamella", series)
    image.unlink()


def _fragmented(work: Path, series: dict[str, Series]) -> None:
    """An image of 131,072 extents: what the delta costs beside reading both maps."""
    from lamella.sources.base import Keeping
    from lamella.sources.reflink.btrfs import open_btrfs
    from lamella.sources.reflink.reflink import open_reflink

    image = work / "fragmented.img"
    with image.open("wb") as file:
        file.truncate(FRAGMENTS * 2 * BLOCK)
        for number in range(FRAGMENTS):
            file.seek(number * 2 * BLOCK)
            file.write(os.urandom(BLOCK))
        os.fsync(file.fileno())
    driver = series["full/lamella"].facts["driver"]
    opener = open_btrfs if driver == "btrfs" else open_reflink
    source = opener(str(image), "0" * 16, Keeping("0" * 8, None))
    with source.freeze() as frozen:
        base = frozen.checkpoint
        source.keep(base)
    with image.open("r+b") as file:
        for number in range(0, FRAGMENTS, 20):
            file.seek(number * 2 * BLOCK)
            file.write(os.urandom(BLOCK))
    with source.freeze() as frozen:
        series["fragmented, one map/lamella"] = Series([_timed(lambda: sum(1 for _ in frozen.allocated()))])
        series["fragmented, delta/lamella"] = Series([_timed(lambda: len(frozen.delta_since(base, 1 << 17).changed))])
    source.drop(base)
    image.unlink()


def _timed(work: Callable[[], int]) -> Sample:
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu, 0, str(found))


def targets(series: dict[str, Series], data_bytes: int) -> Iterator[Target]:
    """The bounds on tracked incrementals; CPU seconds scaled to the reference machine."""
    factor = speed_factor(series, data_bytes)
    start = series["start/python -c pass"].cpu
    for key, bound in (("1 % change", 0.9), ("no change", 0.3)):
        cpu = max(0.0, series[f"{key}/lamella"].cpu - start) * factor
        yield Target(
            f"{key}, CPU beyond interpreter start", f"{cpu:.2f} CPU s (x {factor:.2f})", f"{bound}", cpu <= bound
        )
    facts = series["1 % change/lamella"].facts
    read = facts["read_bytes"] - facts["sampled_bytes"]
    scaled = read * 2020 * MIB / data_bytes
    text = f"{read / MIB:.0f} MiB, {scaled / MIB:.0f} scaled to the image of the bound"
    yield Target("1 % change, read beyond the sample", text, "80 MiB", scaled <= 80 * MIB)
    first, last = (series[f"200 GiB, 10 writes, {word}/lamella"].cpu * factor for word in ("first", "last"))
    yield Target("200 GiB, 10 writes, after the first snapshot", f"{first:.2f} CPU s", "0.6", first <= 0.6)
    yield Target("200 GiB, 10 writes, after the last", f"{last:.2f} CPU s", "0.6", last <= 0.6)
    one, delta = series["fragmented, one map/lamella"].cpu, series["fragmented, delta/lamella"].cpu
    text = f"{delta:.2f} CPU s, one map {one:.2f}"
    yield Target("131,072 extents, delta to reading two maps", text, "2 x", delta <= 2 * 2 * one)
