"""`lamella import borg`: the archives of a borg repository."""

from __future__ import annotations

import argparse

from lamella.cli import import_programs
from lamella.cli.context import Context
from lamella.imports.borg import KIND, borg_history


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The kind's own arguments."""
    import_programs.add_arguments(parser, KIND, "BORG_PASSPHRASE, BORG_PASSCOMMAND, BORG_RSH and others")


def run(context: Context) -> int:
    """Do it."""
    return import_programs.run(context, borg_history)
