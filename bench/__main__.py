"""`python -m bench MODE`, MODE being one of the words that `--help` lists: see docs/bench.md."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from bench import (
    copies,
    deltas,
    dirty,
    exporting,
    health,
    images,
    looking,
    pipe,
    report,
    s3,
    scale,
    sources,
    sparse,
    tracking,
    waiting,
)
from bench.journey import Journey
from bench.measure import MIB, BenchError, Series, pin


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 if it could not run, or with --strict if a target is missed."""
    args = _arguments().parse_args(argv)
    cpus = pin(args.cpus)
    print(f"{platform.platform()}, {_processor()}, Python {platform.python_version()}; pinned to processors {cpus}")
    try:
        with tempfile.TemporaryDirectory(prefix="lamella-bench-", dir=args.dir) as folder:
            series, targets = _MODES[args.mode](args, Path(folder))
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    lines, all_met = report.verdict(targets)
    print("\n".join(("", *report.steps(series), "", *lines)))
    if args.mode == "image":
        print(report.decoding_cost(series))
    if args.json:
        _write(args.json, series, targets)
    return 1 if args.strict and not all_met else 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Speeds and sizes of Lamella on this machine.")
    modes = ("image", "scale", "tracking", "deltas", "s3", "copies", "health", "pipe", "look", "exporting", "sources",
             "waiting", "dirty")  # fmt: skip
    parser.add_argument("mode", nargs="?", choices=modes, default="image",
                        help="image: beside others; scale: simulated; tracking, deltas: --dir on Btrfs or XFS;"
                        " s3: the S3 store; pipe: ssh and local pipes; copies: second copies;"
                        " look: list and status of many snapshots; exporting: reading over NBD; sources;"
                        " waiting: a guest's writes during a backup; dirty: 1 % by QEMU's bitmap")  # fmt: skip
    parser.add_argument("-n", "--repeats", type=int, default=3, help="repeats of everything (default 3)")
    parser.add_argument("--size", type=int, default=1536, metavar="MIB", help="real data in the image (default 1536)")
    parser.add_argument("--cpus", type=int, default=2, help="processors to use (default 2, as zstd -T2 does)")
    parser.add_argument("--dir", type=Path, help="where to work: needs 5 times the data (default: the system's)")
    parser.add_argument("--no-peers", action="store_true", help="leave borg and restic out")
    parser.add_argument("--no-sparse", action="store_true", help="leave the large sparse files out")
    parser.add_argument("--bulk", type=int, default=16, metavar="GIB",
                        help="scale: data of the volume that shows memory (default 16)")  # fmt: skip
    parser.add_argument("--endpoint", metavar="URL", help="s3: a service that runs already (default: one of our own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to FILE")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a target is missed")
    return parser


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _image(args: argparse.Namespace, work: Path) -> tuple[dict[str, Series], list[report.Target]]:
    wanted = args.size * MIB
    free = shutil.disk_usage(work).free
    if free < 5 * wanted + 512 * MIB:
        raise BenchError(f"{work} has {free / MIB:.0f} MiB free; 5 times the data is needed: give --dir or --size")
    load = images.make(work, wanted)
    changed, eight = load.to_s1.length / MIB, load.to_s2.length / MIB
    print(f"image: {load.size / MIB:.0f} MiB, {load.data_bytes / MIB:.0f} MiB allocated, {load.made_by}")
    print(f"changes: {changed:.1f} MiB in {len(load.to_s1.places)} places, then {eight:.0f} MiB in one place")
    print("page cache warm; source and destination on one file system; medians, peak memory the largest of all repeats")
    journey = Journey(work, load, with_peers=not args.no_peers)
    for number in range(args.repeats):
        journey.repeat(number)
    series = journey.series
    if not args.no_sparse:
        series |= sparse.measure(work, load, 200 * sparse.GIB, "200 GiB", args.repeats)
        series |= sparse.measure(work, load, 16 * 1024 * sparse.GIB, "16 TiB", 1)
    print(f"CPU seconds are held against bounds x {report.speed_factor(series, load.data_bytes):.2f}")
    return series, list(report.image_targets(series, load.data_bytes))


def _scale(args: argparse.Namespace, work: Path) -> tuple[dict[str, Series], list[report.Target]]:
    return scale.measure(work, args.repeats, args.bulk)


def _tracking(args: argparse.Namespace, work: Path) -> tuple[dict[str, Series], list[report.Target]]:
    load = images.make(work, args.size * MIB)
    print(f"image: {load.size / MIB:.0f} MiB, {load.data_bytes / MIB:.0f} MiB allocated, {load.made_by}")
    series = tracking.measure(work, load, args.repeats)
    return series, list(tracking.targets(series, load.data_bytes))


def _deltas(args: argparse.Namespace, work: Path) -> tuple[dict[str, Series], list[report.Target]]:
    load = images.make(work, args.size * MIB)
    print(f"image: {load.size / MIB:.0f} MiB, {load.data_bytes / MIB:.0f} MiB allocated, {load.made_by}")
    series = deltas.measure(work, load, args.repeats)
    return series, list(deltas.targets(series))


def _copies(args: argparse.Namespace, work: Path) -> tuple[dict[str, Series], list[report.Target]]:
    load = images.make(work, args.size * MIB)
    print(f"image: {load.size / MIB:.0f} MiB, {load.data_bytes / MIB:.0f} MiB allocated, {load.made_by}")
    series = copies.measure(work, load, args.repeats)
    return series, [*copies.targets(series), *report.memory_targets(series)]


def _exporting(args: argparse.Namespace, work: Path) -> tuple[dict[str, Series], list[report.Target]]:
    load = images.make(work, args.size * MIB)
    print(f"image: {load.data_bytes / MIB:.0f} MiB without holes, {load.made_by}")
    series = exporting.measure(work, load, args.repeats)
    return series, list(exporting.targets(series))


def _s3(args: argparse.Namespace, work: Path) -> tuple[dict[str, Series], list[report.Target]]:
    series = s3.measure(args.repeats, args.endpoint)
    return series, list(s3.targets(series))


def _look(args: argparse.Namespace, work: Path) -> tuple[dict[str, Series], list[report.Target]]:
    series = looking.measure(work, args.repeats)
    return series, list(looking.targets(series))


def _health(args: argparse.Namespace, work: Path) -> tuple[dict[str, Series], list[report.Target]]:
    series = health.measure(work, args.repeats)
    return series, list(health.targets(series))


def _pipe(args: argparse.Namespace, work: Path) -> tuple[dict[str, Series], list[report.Target]]:
    series = pipe.measure(work, args.repeats, args.size)
    return series, list(pipe.targets(series, args.size))


def _sources(args: argparse.Namespace, work: Path) -> tuple[dict[str, Series], list[report.Target]]:
    series = sources.measure(work, args.repeats, args.size * MIB)
    return series, list(sources.targets(series))


def _dirty(args: argparse.Namespace, work: Path) -> tuple[dict[str, Series], list[report.Target]]:
    series = dirty.measure(work, args.repeats, args.size * MIB)
    return series, list(dirty.targets(series))


def _waiting(args: argparse.Namespace, work: Path) -> tuple[dict[str, Series], list[report.Target]]:
    series = waiting.measure(work, args.repeats, args.size * MIB)
    return series, list(waiting.targets(series))


_MODES = {
    "image": _image,
    "scale": _scale,
    "tracking": _tracking,
    "deltas": _deltas,
    "s3": _s3,
    "copies": _copies,
    "health": _health,
    "look": _look,
    "pipe": _pipe,
    "exporting": _exporting,
    "sources": _sources,
    "waiting": _waiting,
    "dirty": _dirty,
}


def _write(path: Path, series: Mapping[str, Series], targets: Sequence[report.Target]) -> None:
    samples = {
        key: {
            "facts": one.facts,
            "samples": [{"wall": one.wall, "cpu": one.cpu, "memory": one.memory} for one in one.samples],
        }
        for key, one in series.items()
    }
    content = {"series": samples, "targets": [asdict(target) for target in targets]}
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
