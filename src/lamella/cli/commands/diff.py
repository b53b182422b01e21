"""`lamella diff`: the differences between two snapshots of a volume, or between a snapshot and the live source."""

from __future__ import annotations

import argparse
from pathlib import Path

from lamella.base.errors import NothingMatched, UsageError
from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context
from lamella.cli.new_files import write_file
from lamella.cli.shown import shown_bytes
from lamella.cli.sources import named_source
from lamella.cli.values import workers
from lamella.operations.look.diff import DiffResult, compare, write_lines, write_map
from lamella.operations.look.diff_source import SourceDiff, compare_source
from lamella.operations.shared.kinds import is_tree
from lamella.operations.shared.selection import Selected, select, split_selector
from lamella.repository.repository import Repository
from lamella.sources.places import place_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = SECRETS
    parser.add_argument("first", metavar="VOLUME@A", help="the older state")
    parser.add_argument("--map", metavar="FILE", help="also write the changed ranges as a change map (lamella-map/1)")
    parser.add_argument(
        "--map-format",
        choices=("json", "lines"),
        default="json",
        help="write the map as JSON (lamella-map/1, the default), or as lines START LENGTH data|zero|same, like borg's",
    )
    parser.add_argument("second", nargs="?", metavar="VOLUME@B", help="the newer state (default: the volume's latest)")
    parser.add_argument(
        "--live", action="store_true", help="compare with the source of the volume in its present state"
    )
    parser.add_argument("--source", metavar="SOURCE", help="compare with the present state of this source")
    parser.add_argument("--summary", action="store_true", help="print the totals without the ranges")
    parser.add_argument(
        "--workers", type=workers, metavar="N", help="number of threads (default: suited to this machine)"
    )


def run(context: Context) -> int:
    """Do it."""
    args = context.args
    volume, snapshot = split_selector(args.first)
    if snapshot is None:
        raise UsageError(
            f"{args.first} names no snapshot", obj=args.first, hint="write VOLUME@SNAPSHOT; see: lamella list"
        )
    if sum(map(bool, (args.second, args.live, args.source))) > 1:
        raise UsageError("VOLUME@B, --live and --source contradict each other", hint="leave one")
    with context.sound_repository() as repository:
        if args.live or args.source:
            a = select(repository, [args.first])[0]
            found = _with_source(context, repository, a)
            result, other = found.result, args.source or "the source"
            fields = {"b": "", "source": args.source or "", "mode": found.mode, "reason": found.reason}
            fields |= {"read_bytes": found.read_bytes}
            how = f"{found.mode}, read {shown_bytes(found.read_bytes)}"
            context.out.say(f"{how} ({found.reason})" if found.reason else how)
        else:
            a, b = select(repository, [args.first, args.second or volume])
            result, other = compare(repository, a, b), b.text
            fields = {"b": b.snapshot.name}
    if args.map is not None:
        content = write_map(result, a.snapshot.name) if args.map_format == "json" else write_lines(result)
        write_file(Path(args.map), content, overwrite=False)
    _print(context, a, other, result)
    context.out.document({"volume": a.volume_name, "a": a.snapshot.name, **fields, **_figures(result)})
    return 0


def _with_source(context: Context, repository: Repository, one: Selected) -> SourceDiff:
    args = context.args
    if args.source is None and is_tree(one.snapshot):
        hint = f"save it again, then: lamella files diff {one.text} {one.volume_name}"
        raise UsageError(f"{one.volume_name} holds files, which are not compared with those of today", hint=hint)
    place = args.source or place_of(one.volume.identity, context.host.machine)
    if place is None:
        hint = "name it: lamella diff VOLUME@SNAPSHOT --source SOURCE"
        raise NothingMatched(f"the source of {one.volume_name} is not on this machine", obj=one.volume_name, hint=hint)
    threads = args.workers or context.config.backup.workers
    return compare_source(
        repository,
        one,
        named_source(context, place),
        lock_wait=args.lock_wait,
        workers=threads,
        reporter=context.out.report,
    )


def _print(context: Context, a: Selected, other: str, result: DiffResult) -> None:
    out = context.out
    out.line(f"{a.text} -> {other}")
    if result.size_a != result.size_b:
        a_size, b_size, by = map(shown_bytes, (result.size_a, result.size_b, abs(result.size_b - result.size_a)))
        out.line(f"size {a_size} -> {b_size}, {by} {'more' if result.size_b > result.size_a else 'less'}")
    for offset, length, kind in () if context.args.summary else result.ranges:
        out.line(f"{kind:<4}  offset {offset}  length {length}")
    changed, zeroed = shown_bytes(result.changed_bytes), shown_bytes(result.zeroed_bytes)
    out.line(f"{changed} changed, {zeroed} zeroed, in chunks of {shown_bytes(result.chunk_size)}")


def _figures(result: DiffResult) -> dict[str, object]:
    return {
        "size_a": result.size_a,
        "size_b": result.size_b,
        "chunk_size": result.chunk_size,
        "changed_bytes": result.changed_bytes,
        "zeroed_bytes": result.zeroed_bytes,
        "ranges": [{"offset": start, "length": length, "kind": kind} for start, length, kind in result.ranges],
    }
