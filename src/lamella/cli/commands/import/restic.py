"""`lamella import restic`: the snapshots of a restic repository."""

from __future__ import annotations

import argparse

from lamella.cli import import_programs
from lamella.cli.context import Context
from lamella.imports.restic import KIND, restic_history


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The kind's own arguments."""
    import_programs.add_arguments(parser, KIND, "RESTIC_PASSWORD_FILE, RESTIC_PASSWORD_COMMAND and others")


def run(context: Context) -> int:
    """Do it."""
    return import_programs.run(context, restic_history)
