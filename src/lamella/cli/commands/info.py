"""`lamella info`: the repository, a volume or a snapshot."""

from __future__ import annotations

import argparse

from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context
from lamella.operations import listing
from lamella.operations.selection import select


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = SECRETS
    parser.add_argument(
        "volume",
        nargs="?",
        metavar="VOLUME[@SNAPSHOT]",
        help="describe this snapshot (default: the volume's latest); without it, the repository",
    )


def run(context: Context) -> int:
    """Print it."""
    out, text = context.out, context.args.volume
    with context.repository() as repository:
        selected = None if text is None else select(repository, [text])[0]
        facts = listing.describe(repository, selected)
        code = context.warn_of_problems(repository)
        problems = [problem.message for problem in repository.problems]
    width = max(map(len, facts))
    for key, value in facts.items():
        for line in _lines(value):
            out.line(f"{key.replace('_', ' '):<{width}}  {line}")
    out.document({**facts, "problems": problems})
    return code


def _lines(value: object) -> list[str]:
    """How a value is shown: a list line by line, a row as its fields."""
    if isinstance(value, list):
        return [line for one in value for line in _lines(one)]
    if isinstance(value, dict):
        return ["  ".join(f"{key}={one}" for key, one in value.items() if one is not False and one != "")]
    if value is None:
        return ["no"]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    return [str(value)]
