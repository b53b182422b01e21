"""`lamella import wyng`: the sessions of a wyng archive."""

from __future__ import annotations

import argparse
from pathlib import Path

from lamella.cli import imports
from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context
from lamella.cli.foreign_secret import FOREIGN_SECRETS, foreign_passphrase
from lamella.imports.wyng.history import wyng_history


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The kind's own arguments."""
    parser.epilog = f"{imports.NOTE}\n\n{FOREIGN_SECRETS}\n\n{SECRETS}"
    parser.add_argument("archive", metavar="ARCHIVE", help="the directory of the archive, which holds archive.ini")
    imports.add_arguments(parser)


def run(context: Context) -> int:
    """Do it."""
    history = wyng_history(Path(context.args.archive), lambda: foreign_passphrase(context))
    return imports.run_import(context, history)
