"""What differences save and cost: run with `--dir` on Btrfs or on XFS with reflink.

Two repositories get the same states, one with whole chunks and one with differences. The last state has a block of
4 KiB changed in every chunk, so its restore makes every chunk of two others.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.images import Workload
from bench.measure import MIB, BenchError, Sample, Series, settle
from bench.programs import Lamella, document
from bench.report import Target

BLOCK, CHUNK = 4096, 1 << 17
WAYS = ("whole", "differences")


def measure(work: Path, load: Workload, repeats: int) -> dict[str, Series]:
    """Everything below; the series of one step by `step/way`."""
    series: dict[str, Series] = {}
    for _ in range(repeats):
        _repeat(work, load, series)
    return series


def _repeat(work: Path, load: Workload, series: dict[str, Series]) -> None:
    programs = [Lamella(work, folder="whole"), Lamella(work, folder="differences", options=("--deltas",))]
    for one in programs:
        one.init()
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("full", lambda: None),
        ("1 % change", lambda: load.to_s1.apply(load.image)),
        ("8 MiB change", lambda: load.to_s2.apply(load.image)),
    )
    for step, change in steps:
        change()
        for way, one in zip(WAYS, programs, strict=True):
            _backup(one, load.image, f"{step}/{way}", series)
    load.back.apply(load.image)
    other = work / "touched.img"
    with load.dense.open("rb") as dense, other.open("wb") as file:
        for _ in range(512):
            file.write(dense.read(MIB))
    for step, touched in (("all of it", False), ("a block in each chunk", True)):
        if touched:
            _touch(other)
        for way, one in zip(WAYS, programs, strict=True):
            settle()
            sample = one.call("backup", f"touched={other}", *one.options)
            _note(series, f"{step}/{way}", sample, document(sample))
    for way, one in zip(WAYS, programs, strict=True):
        target = work / "restored.img"
        settle()
        sample = one.call("restore", "touched", "--to", target)
        series.setdefault(f"restore of that/{way}", Series()).samples.append(sample)
        if not filecmp.cmp(target, other, shallow=False):
            raise BenchError(f"restored wrongly from {way}")
        target.unlink()
    other.unlink()


def _touch(image: Path) -> None:
    with image.open("r+b") as file:
        for start in range(0, image.stat().st_size - BLOCK, CHUNK):
            file.seek(start + (start // CHUNK % 32) * BLOCK)
            file.write(os.urandom(BLOCK))
        os.fsync(file.fileno())


def _backup(lamella: Lamella, image: Path, key: str, series: dict[str, Series]) -> None:
    settle()
    sample = lamella.backup(image)
    _note(series, key, sample, document(sample))


def _note(series: dict[str, Series], key: str, sample: Sample, said: dict[str, Any]) -> None:
    row = said["volumes"][0]
    if row["driver"] == "file":
        raise BenchError("changes are not tracked there: give --dir on Btrfs, or on XFS with reflink")
    one = series.setdefault(key, Series())
    one.samples.append(sample)
    one.facts |= {name: row[name] for name in ("mode", "changed_chunks", "delta_chunks", "stored_bytes")}
    one.facts["metadata_bytes"] = said["metadata_bytes"]


def targets(series: dict[str, Series]) -> Iterator[Target]:
    """The bounds: what is stored, and what it costs beside whole chunks."""
    whole, small = (series[f"1 % change/{way}"] for way in WAYS)
    share = small.facts["stored_bytes"] / whole.facts["stored_bytes"]
    text = f"{small.facts['stored_bytes'] / MIB:.2f} of {whole.facts['stored_bytes'] / MIB:.2f} MiB"
    yield Target("1 % change, stored", text, "0.55 x", share <= 0.55)
    cost = small.cpu / whole.cpu
    yield Target("1 % change, CPU", f"{small.cpu:.2f} of {whole.cpu:.2f} s", "1.3 x", cost <= 1.3)
    whole, small = (series[f"8 MiB change/{way}"] for way in WAYS)
    text = f"{small.facts['stored_bytes'] / MIB:.2f} of {whole.facts['stored_bytes'] / MIB:.2f} MiB"
    yield Target("8 MiB change, stored", text, "as much", small.facts["stored_bytes"] <= whole.facts["stored_bytes"])
    whole, small = (series[f"restore of that/{way}"] for way in WAYS)
    text = f"{small.cpu:.2f} of {whole.cpu:.2f} CPU s, {small.wall:.2f} of {whole.wall:.2f} s"
    yield Target("restore full of differences", text, "1.2 x", small.cpu <= 1.2 * whole.cpu)
