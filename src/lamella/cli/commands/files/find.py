"""`lamella files find`: files inside a volume, by their names."""

from __future__ import annotations

import argparse

from lamella.base.errors import NothingMatched
from lamella.cli.commands.files.asking import add_options, asked, concluded, facts
from lamella.cli.commands.files.list import documents, show
from lamella.cli.context import Context
from lamella.operations.access.files import walked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    add_options(parser)
    parser.add_argument(
        "pattern",
        nargs="+",
        metavar="PATTERN",
        help="a name with * ? [...], such as '*.odt'; with a slash it is compared with the whole path",
    )


def run(context: Context) -> int:
    """Find."""
    with asked(context) as found:
        answer = walked(found.reading, found.selected, context.args.pattern, found.how, context.out.report)
        context.out.document({**facts(found, answer), "entries": documents(answer)})
    show(context, answer.rows)
    return concluded(context, answer) or (0 if answer.rows else NothingMatched.exit_code)
