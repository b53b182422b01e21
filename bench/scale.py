"""The scale mode: simulated volumes, each scenario in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.measure import Sample, Series, run
from bench.programs import document, module_path
from bench.report import Target, memory_targets, size

_PRUNING = {"prune": "200 GiB pruned", "churned": "200 GiB churned", "mark": "1 TiB marked", "wide": "16 TiB marked"}
_NAMES = {"spine": "16 TiB holes", "manifest": "16 TiB manifest", "bulk": "bulk"}


def measure(work: Path, repeats: int, gib: int) -> tuple[dict[str, Series], list[Target]]:
    """Run every scenario; the two long ones once. Raises BenchError."""
    series: dict[str, Series] = {}
    for scenario, name in _NAMES.items():
        title = f"{gib} GiB bulk" if scenario == "bulk" else name
        for _ in range(repeats if scenario == "spine" else 1):
            print(f"  {title}", file=sys.stderr, flush=True)
            with TemporaryDirectory(dir=work) as folder:
                command = [sys.executable, "-m", "bench.simulated", scenario, folder, str(gib)]
                _collect(series, title, run(command, module_path()))
    for scenario, title in _PRUNING.items():
        print(f"  {title}", file=sys.stderr, flush=True)
        with TemporaryDirectory(dir=work) as folder:
            _collect(series, title, run([sys.executable, "-m", "bench.pruning", scenario, folder], module_path()))
    return series, [*_targets(series), *_pruning_targets(series), *memory_targets(series)]


def _collect(series: dict[str, Series], title: str, sample: Sample) -> None:
    """The memory of a scenario is that of its whole process, whichever step needed it."""
    for step, figures in document(sample).items():
        one = series.setdefault(f"{title}/lamella, {step}", Series())
        one.samples.append(Sample(figures["wall"], figures["cpu"], sample.memory))
        one.facts = figures["facts"]


def _targets(series: Mapping[str, Series]) -> Iterator[Target]:
    for title in ("16 TiB holes", "16 TiB manifest"):
        one = series[f"{title}/lamella, one chunk"]
        written = one.facts["metadata_bytes"]
        yield Target(f"{title}: metadata of one changed chunk", size(written), "20 KB", written < 20_000)
        yield Target(f"{title}: one changed chunk", f"{one.cpu:.2f} CPU s", "1 CPU s", one.cpu < 1)
    found = series["16 TiB manifest/lamella, difference of 100 chunks"]
    text = f"{found.cpu:.3f} CPU s ({found.wall:.3f} s by the clock)"
    yield Target("16 TiB: difference of 100 chunks", text, "0.2 CPU s", found.cpu < 0.2)


def _pruning_targets(series: Mapping[str, Series]) -> Iterator[Target]:
    one = series["200 GiB pruned/lamella, prune 30 of 60"]
    yield Target("30 of 60 snapshots of 200 GiB pruned", f"{one.wall:.2f} s", "1 s", one.wall <= 1)
    one = series["200 GiB churned/lamella, prune 30 of 60"]
    yield Target("the same, full and 1 % new in each", f"{one.wall:.2f} s", "1 s", one.wall <= 1)
    mark = sum(series[f"1 TiB marked/lamella, {step}"].cpu for step in ("mark", "count"))
    yield Target("1 TiB in chunks of 1 MiB marked", f"{mark:.2f} CPU s", "2 CPU s", mark <= 2)
    most = series["16 TiB marked/lamella, mark"].facts["memory_bytes"]
    yield Target("memory of the mark at 16 TiB", size(most), "200 MiB", most < 200 << 20)
