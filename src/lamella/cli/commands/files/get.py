"""`lamella files get`: files and directories out of a volume."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from lamella.base.errors import LamellaError, UsageError
from lamella.cli.amounts import budget
from lamella.cli.commands.files.asking import add_options, asked, concluded, facts
from lamella.cli.context import Context
from lamella.cli.output import INCOMPLETE
from lamella.cli.shown import shown_bytes
from lamella.operations.access.files import got
from lamella.operations.access.guest_tar import Sink, TarSink, TreeSink

_STDOUT = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    add_options(parser)
    parser.add_argument("path", nargs="+", metavar="PATH", help="a file, or a directory with everything in it")
    parser.add_argument(
        "--to", metavar="DIR|-", required=True, help="a directory that is empty or not there; - writes a tar archive"
    )
    parser.add_argument(
        "--max-size",
        metavar="SIZE",
        type=budget,
        help="stop when the files have more than SIZE together (default: the size of the volume)",
    )


def run(context: Context) -> int:
    """Copy."""
    args, out = context.args, context.out
    if args.to == _STDOUT and args.json:
        raise UsageError("--json and --to - both want standard output")
    _check_target(args.to)
    made = args.to != _STDOUT and not Path(args.to).exists()
    with asked(context) as found:
        how = replace(found.how, most_bytes=args.max_size or found.selected.snapshot.added.size)
        sink = _sink(args.to)
        try:
            answer = got(found.reading, found.selected, args.path, how, out.report, sink)
        except LamellaError as error:
            if not (made and _is_gone_again(args.to)):
                error.hint = error.hint or f"what was copied until then is whole, in {args.to}"
            raise
        taken = answer.taken
        out.document({**facts(found, answer), "files": taken.files, "bytes": taken.bytes, "left_out": taken.left_out})
    if args.to != _STDOUT:
        where = "" if made and _is_gone_again(args.to) else f", to {args.to}"
        out.line(f"copied files: {taken.files}, {shown_bytes(taken.bytes)}{where}")
    for line in taken.left_out:
        out.warn(f"left out: {line}")
    if taken.left_out_count > len(taken.left_out):
        out.warn(f"left out: {taken.left_out_count} entries in all")
    return concluded(context, answer) or (INCOMPLETE if taken.left_out_count else 0)


def _check_target(text: str) -> None:
    """Raises UsageError for a place that files cannot go to, before anything is made or asked."""
    if text == _STDOUT:
        if sys.stdout.isatty():
            raise UsageError("an archive is not written to a terminal", hint="send it to a file or another program")
        return
    place = Path(text)
    if place.exists() and (not place.is_dir() or next(place.iterdir(), None) is not None):
        raise UsageError(f"{place} is not an empty directory", obj=text, hint="name one that is empty or not there")


def _is_gone_again(text: str) -> bool:
    """Remove a directory that nothing came into; whether that is so."""
    try:
        Path(text).rmdir()
    except OSError:
        return False
    return True


def _sink(text: str) -> Sink:
    if text == _STDOUT:
        sys.stdout.flush()
        return TarSink(sys.stdout.buffer)
    place = Path(text)
    try:
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise LamellaError(f"cannot make {place}: {error.strerror}", obj=text) from error
    return TreeSink(place)
