"""`lamella diff`: what differs between two snapshots of a volume."""

from __future__ import annotations

import argparse
from pathlib import Path

from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context
from lamella.cli.files import exists, write_new
from lamella.cli.values import shown_bytes
from lamella.errors import UsageError
from lamella.operations.change_map import write_map
from lamella.operations.diff import compare
from lamella.operations.selection import select, split_selector


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = SECRETS
    parser.add_argument("first", metavar="VOLUME@A", help="the older state")
    parser.add_argument("--map", metavar="FILE", help="also write the changed ranges as a change map (lamella-map/1)")
    parser.add_argument("second", nargs="?", metavar="VOLUME@B", help="the newer state (default: the volume's latest)")


def run(context: Context) -> int:
    """Do it."""
    args, out = context.args, context.out
    volume, snapshot = split_selector(args.first)
    if snapshot is None:
        raise UsageError(
            f"{args.first} names no snapshot", obj=args.first, hint="write VOLUME@SNAPSHOT; see: lamella list"
        )
    with context.sound_repository() as repository:
        a, b = select(repository, [args.first, args.second or volume])
        result = compare(repository, a, b)
    if args.map is not None:
        try:
            write_new(Path(args.map), write_map(result, a.snapshot.name))
        except FileExistsError as error:
            raise exists(Path(args.map)) from error
    out.line(f"{a.text} -> {b.text}")
    if result.size_a != result.size_b:
        out.line(f"size {result.size_a} -> {result.size_b} bytes")
    for offset, length, kind in result.ranges:
        out.line(f"{kind:<4}  offset {offset}  length {length}")
    changed, zeroed = shown_bytes(result.changed_bytes), shown_bytes(result.zeroed_bytes)
    out.line(f"{changed} changed, {zeroed} zeroed, in chunks of {shown_bytes(result.chunk_size)}")
    out.document(
        {
            "volume": b.volume_name,
            "a": a.snapshot.name,
            "b": b.snapshot.name,
            "size_a": result.size_a,
            "size_b": result.size_b,
            "chunk_size": result.chunk_size,
            "changed_bytes": result.changed_bytes,
            "zeroed_bytes": result.zeroed_bytes,
            "ranges": [{"offset": start, "length": length, "kind": kind} for start, length, kind in result.ranges],
        }
    )
    return 0
