"""The tables, the ratios and the targets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from bench.measure import MIB, Series, seconds

PEERS_CPU_PER_MIB = 12.1 / 2020
"""Processor seconds of `zstd -3 -T1` for each MiB on the machine the CPU targets were set for."""

_FIRST = {
    "full": "full/zstd -3 -T2",
    "restore": "restore/zstd -d",
    "start": "start/python -c pass",
}


@dataclass(frozen=True, slots=True)
class Target:
    """One bound, what was measured, and whether it holds."""

    name: str
    measured: str
    bound: str
    met: bool

    def line(self) -> str:
        """For people."""
        return f"{'pass' if self.met else 'MISS'}  {self.name}: {self.measured} (bound: {self.bound})"


def steps(series: Mapping[str, Series]) -> Iterator[str]:
    """One line for each step and program.

    `x` is the clock time as a multiple of the step's baseline: zstd, the hash or the bare interpreter, else Lamella.
    """
    yield f"{'step':<20}{'program':<30}{'wall s':>8}{'range':>14}{'CPU s':>8}{'MiB':>6}{'x':>7}  facts"
    for key, one in series.items():
        step, _, program = key.partition("/")
        base = series.get(_baseline(step, series))
        ratio = "" if base is None else f"{one.wall / base.wall:.2f}"
        yield (
            f"{step:<20}{program:<30}{seconds(one.wall):>8}{one.spread():>14}{seconds(one.cpu):>8}"
            f"{one.memory / MIB:>6.0f}{ratio:>7}  {_facts(one)}"
        ).rstrip()


def _baseline(step: str, series: Mapping[str, Series]) -> str:
    if step == "unchanged":
        return fastest_hash(series)
    programs = sum(key.startswith(f"{step}/") for key in series)
    return _FIRST.get(step, f"{step}/lamella" if programs > 1 else "")


def fastest_hash(series: Mapping[str, Series]) -> str:
    """The hash that is faster here: `init` chooses it, too."""
    found = [key for key in series if key.startswith("unchanged/hash-")]
    return min(found, key=lambda key: series[key].wall, default="")


def _facts(one: Series) -> str:
    shown = {
        "bytes_written": "written",
        "compared_bytes": "compared",
        "read_bytes": "read",
        "stored_bytes": "stored",
        "metadata_bytes": "metadata",
        "repository_bytes": "repository",
    }
    texts = []
    for key, value in one.facts.items():
        if key in shown:
            texts.append(f"{shown[key]} {size(value)}")
        elif key == "objects":
            texts.append(f"{value} objects")
        elif key == "new_chunks":
            texts.append(f"{value} new chunks")
    return ", ".join(texts)


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / MIB:.1f} MiB" if count >= MIB else f"{count / 1024:.1f} KiB"


def speed_factor(series: Mapping[str, Series], data_bytes: int) -> float:
    """By how much processor seconds of this machine are multiplied before they are held against a bound."""
    one = series.get("full/zstd -3 -T1")
    return 1.0 if one is None else PEERS_CPU_PER_MIB * data_bytes / MIB / one.cpu


def _ratio(name: str, series: Mapping[str, Series], one: str, other: str, bound: float) -> Iterator[Target]:
    if one in series and other in series:
        ratio = series[one].wall / series[other].wall
        text = f"{ratio:.2f} x ({series[one].wall:.2f} s to {series[other].wall:.2f} s)"
        yield Target(name, text, f"{bound} x", ratio <= bound)


def image_targets(series: Mapping[str, Series], data_bytes: int) -> Iterator[Target]:
    """The targets that the image and the sparse file show."""
    yield from _ratio("full backup to zstd -3 -T2", series, "full/lamella", "full/zstd -3 -T2", 1.15)
    best = fastest_hash(series)
    yield from _ratio(f"unchanged backup to {best.partition('/')[2]}", series, "unchanged/lamella", best, 1.2)
    yield from _ratio("restore to zstd -d", series, "restore/lamella", "restore/zstd -d", 1.3)
    yield from _start(series)
    yield from _sparse(series, speed_factor(series, data_bytes))
    # A small image says nothing: each repository has some objects of its own, and the first packs are smaller.
    if "full/lamella" in series and data_bytes >= 1024 * MIB:
        objects = series["full/lamella"].facts["objects"]
        scaled = objects * max(1.0, 2048 * MIB / data_bytes)
        text = f"{objects} for {data_bytes / MIB:.0f} MiB, {scaled:.0f} scaled to 2 GiB"
        yield Target("objects of a 2 GiB image", text, "300", scaled < 300)
    yield from memory_targets(series)


def _start(series: Mapping[str, Series]) -> Iterator[Target]:
    if "start/lamella --help" in series:
        over = series["start/lamella --help"].wall - series["start/python -c pass"].wall
        yield Target("lamella --help over a bare interpreter", f"{over * 1000:.0f} ms", "100 ms", over < 0.1)


def _sparse(series: Mapping[str, Series], factor: float) -> Iterator[Target]:
    for key in ("200 GiB, full/lamella", "200 GiB, unchanged/lamella"):
        if key in series:
            cpu = series[key].cpu
            text = f"{cpu * factor:.2f} CPU s ({cpu:.2f} here, x {factor:.2f})"
            yield Target(key.partition("/")[0], text, "2 CPU s", cpu * factor <= 2)


def memory_targets(series: Mapping[str, Series]) -> Iterator[Target]:
    """The largest memory of any step of Lamella."""
    own = {key: one.memory for key, one in series.items() if "/lamella" in key}
    if own:
        worst = max(own, key=lambda key: own[key])
        yield Target("peak memory", f"{own[worst] / MIB:.0f} MiB ({worst})", "150 MiB", own[worst] < 150 * MIB)


def decoding_cost(series: Mapping[str, Series]) -> str:
    """What it costs to decode and compare every chunk instead of one in sixteen."""
    one, every = series.get("full/lamella"), series.get("full/lamella, every chunk decoded")
    if one is None or every is None:
        return ""
    wall, cpu = every.wall / one.wall - 1, every.cpu / one.cpu - 1
    return f"decoding every chunk instead of one in 16: wall {wall:+.1%}, CPU {cpu:+.1%}"


def verdict(targets: Iterable[Target]) -> tuple[list[str], bool]:
    """Lines for all targets, and whether all are met."""
    all_of_them = list(targets)
    return [target.line() for target in all_of_them], all(target.met for target in all_of_them)
