"""`lamella files list`: the entries of directories inside a volume."""

from __future__ import annotations

import argparse
import stat
from collections.abc import Sequence

from lamella.base.clock import iso
from lamella.cli.commands.files.asking import add_options, asked, concluded, facts
from lamella.cli.context import Context
from lamella.cli.local_time import shown_time
from lamella.operations.access.files import listed
from lamella.operations.access.guest_answers import FoundFile, GuestAnswer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    add_options(parser)
    parser.add_argument("path", nargs="*", default=[], metavar="PATH", help="a directory or file (default: the top)")


def run(context: Context) -> int:
    """List."""
    with asked(context) as found:
        answer = listed(found.reading, found.selected, context.args.path, found.how, context.out.report)
        context.out.document({**facts(found, answer), "entries": documents(answer)})
    show(context, answer.rows)
    return concluded(context, answer)


def documents(answer: GuestAnswer) -> list[dict[str, object]]:
    """The rows for a document."""
    return [document(row) for row in answer.rows]


def document(row: FoundFile) -> dict[str, object]:
    """A row for a document. Bytes of a name that are not UTF-8 are escaped."""
    return {
        "path": row.path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
        "mode": stat.filemode(row.mode),
        "size": row.size,
        "time": iso(row.time * 1000),
    }


def show(context: Context, rows: Sequence[FoundFile]) -> None:
    """The rows for people."""
    for row in rows:
        time = shown_time(iso(row.time * 1000))
        context.out.answer(f"{stat.filemode(row.mode)} {row.size:>14} {time}  {row.path}")
