"""`lamella import qvm`: files of qvm-backup."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lamella.base.errors import NoRepository
from lamella.cli import imports
from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context
from lamella.cli.foreign_secret import FOREIGN_SECRETS, foreign_passphrase
from lamella.imports.history import shown_name
from lamella.imports.qvm.history import qvm_history

_NOTE = """\
Each FILE is a session. Give all files of your qubes at once: they become one history, oldest first. Volumes are called
QUBE:VOLUME; `lamella qubes restore` brings back volumes and settings. dom0's home is not imported."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The kind's own arguments."""
    parser.epilog = f"{imports.NOTE}\n\n{_NOTE}\n\n{FOREIGN_SECRETS}\n\n{SECRETS}"
    parser.add_argument(
        "file", nargs="+", metavar="FILE|[NAME=]VOLUME", help="a file of qvm-backup; what is no file chooses volumes"
    )
    imports.add_arguments(parser)


def run(context: Context) -> int:
    """Do it. Raises NoRepository for a file that is not there."""
    args = context.args
    words = [*args.file, *args.volume]
    files = [Path(word) for word in words if Path(word).is_file()]
    args.volume = [word for word in words if not Path(word).is_file()]
    missing = words if not files else [word for word in args.volume if os.sep in word]  # no name of a qube has that
    if missing:
        hint = "name the files of qvm-backup"
        raise NoRepository(f"there is no file {shown_name(missing[0])}", obj=missing[0], hint=hint)
    return imports.run_import(context, qvm_history(files, foreign_passphrase(context)))
