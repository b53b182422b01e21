"""What a second copy costs: copies between repositories, and mirrors beside `cp -r`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench.images import Workload
from bench.measure import Sample, Series, run, settle
from bench.programs import Lamella, document
from bench.report import Target, size

_PLAIN = {
    "cp -r": 'cp -r --reflink=never "$1" "$2" && sync',
    "cp -r, sha256sum": 'cp -r --reflink=never "$1" "$2" && find "$1" -type f -exec sha256sum {} + >/dev/null && sync',
}
"""Copying files, and copying them with the look at every byte that a mirror takes."""
_STEPS = ("copy, full", "copy, 1 %", "copy, nothing", "mirror, full", "mirror, 1 %", "mirror, nothing")


def measure(work: Path, load: Workload, repeats: int) -> dict[str, Series]:
    """Back up, copy and mirror; change 1 %, and do it again. The series of one step by `step/program`."""
    series = {f"{step}/lamella": Series() for step in _STEPS} | {f"mirror, full/{name}": Series() for name in _PLAIN}
    for number in range(repeats):
        print(f"  {number + 1}: copies and mirrors", file=sys.stderr, flush=True)
        try:
            _repeat(work, load, series)
        finally:
            load.back.apply(load.image)
    return series


def _repeat(work: Path, load: Workload, series: Mapping[str, Series]) -> None:
    first, second = Lamella(work, folder="first"), Lamella(work, folder="second")
    first.init()
    second.init()
    first.backup(load.image)
    mirror, plain = work / "mirror", work / "plain"
    for place in (mirror, plain):
        shutil.rmtree(place, ignore_errors=True)

    def copy() -> Sample:
        return first.call("copy", "--to", second.repository, "--to-keyfile", work / "second" / "key")

    def mirrored() -> Sample:
        return first.call("mirror", "--to", mirror)

    _timed(series["copy, full/lamella"], copy)
    _timed(series["mirror, full/lamella"], mirrored)
    for name, script in _PLAIN.items():
        shutil.rmtree(plain, ignore_errors=True)
        words = ["sh", "-c", script, "sh", str(first.repository), str(plain)]
        _timed(series[f"mirror, full/{name}"], lambda words=words: run(words))  # type: ignore[misc]
    load.to_s1.apply(load.image)
    first.backup(load.image)
    for step, work_of in (("copy", copy), ("mirror", mirrored)):
        for change in ("1 %", "nothing"):
            _timed(series[f"{step}, {change}/lamella"], work_of)


def _timed(one: Series, work: Callable[[], Sample]) -> None:
    settle()
    sample = work()
    one.samples.append(sample)
    if sample.output:
        said = document(sample)
        one.facts |= {key: said[key] for key in ("read_bytes", "stored_bytes", "metadata_bytes") if key in said}


def targets(series: Mapping[str, Series]) -> Iterator[Target]:
    """What should hold: a mirror costs little more than copying and hashing files, a copy follows the change."""
    mirror = series["mirror, full/lamella"]
    ratio = mirror.wall / series["mirror, full/cp -r, sha256sum"].wall
    plain = mirror.wall / series["mirror, full/cp -r"].wall
    text = f"{ratio:.2f} x ({plain:.2f} x of cp -r alone)"
    yield Target("mirror to cp -r, sha256sum and sync", text, "2 x", ratio <= 2)
    full, little, none = (series[f"copy, {step}/lamella"].facts["read_bytes"] for step in ("full", "1 %", "nothing"))
    share = little / full
    yield Target("bytes read to copy 1 %", f"{share:.1%}, {size(little)}", "10 %", share < 0.1)
    yield Target("bytes read to copy nothing", size(none), "0", none == 0)
