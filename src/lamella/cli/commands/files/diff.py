"""`lamella files diff`: what differs between the files of two snapshots."""

from __future__ import annotations

import argparse

from lamella.base.errors import NothingMatched
from lamella.cli.arguments import SECRETS
from lamella.cli.chosen import chosen, shown_snapshot, warn_of_no_moment
from lamella.cli.commands.files.asking import add_guest_options, facts_of, opened
from lamella.cli.commands.files.list import document
from lamella.cli.context import Context
from lamella.cli.output import INCOMPLETE
from lamella.operations.access.files_diff import ChangedFile, FilesDiff, files_differing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    parser.epilog = SECRETS
    parser.add_argument("first", metavar="VOLUME@A", help="the older snapshot")
    parser.add_argument("second", metavar="VOLUME@B", help="the newer snapshot")
    parser.add_argument("path", nargs="?", default="", metavar="PATH", help="a directory or file (default: the top)")
    parser.add_argument(
        "--content",
        action="store_true",
        help="compare the content of all files (default: of those of one size whose times differ)",
    )
    add_guest_options(parser)


def run(context: Context) -> int:
    """Compare."""
    args, out = context.args, context.out
    with opened(context) as (reading, how):
        a, b = (chosen(reading.repo, text) for text in (args.first, args.second))
        out.say(f"comparing {shown_snapshot(reading.repo, a)} with {shown_snapshot(reading.repo, b)}")
        for one in (a, b):
            warn_of_no_moment(context, one)
        diff = files_differing(reading, (a, b), args.path, how, out.report, every_byte=args.content)
        out.document(
            {
                "a": facts_of(a, diff.a),
                "b": facts_of(b, diff.b),
                "added": [document(row) for row in diff.added],
                "removed": [document(row) for row in diff.removed],
                "changed": [_changed(one) for one in diff.changed],
            }
        )
    _show(context, diff)
    return _concluded(context, diff)


def _changed(one: ChangedFile) -> dict[str, object]:
    before, after = document(one.before), document(one.after)
    path = before.pop("path")
    return {"path": path, "what": list(one.what), "a": before, "b": {key: after[key] for key in before}}


def _show(context: Context, diff: FilesDiff) -> None:
    lines = [(row.path, f"removed  {row.path}") for row in diff.removed]
    lines += [(row.path, f"added    {row.path}") for row in diff.added]
    lines += [(one.after.path, f"changed  {one.after.path}  ({', '.join(one.what)})") for one in diff.changed]
    for _, line in sorted(lines):
        context.out.answer(line)
    context.out.line(f"{len(diff.added)} added, {len(diff.removed)} removed, {len(diff.changed)} changed")


def _concluded(context: Context, diff: FilesDiff) -> int:
    out = context.out
    for name, answer in (("A", diff.a), ("B", diff.b)):
        out.say(f"{name}: {answer.shown}")
        if answer.trouble:
            out.warn(f"{name} is incomplete: {answer.trouble}")
    if diff.a.absent and diff.b.absent:
        out.warn(f"there is no {diff.a.absent[0]}")
        return NothingMatched.exit_code
    return INCOMPLETE if diff.a.trouble or diff.b.trouble else 0
