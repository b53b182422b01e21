"""`lamella qubes`: back up and restore whole qubes of Qubes OS, and set up the qube that stores them."""

from __future__ import annotations

import argparse

from lamella.cli.arguments import SECRETS, add_commands, load
from lamella.cli.context import Context

_ACTIONS = {
    "backup": "back up qubes: their settings, and every volume that outlives a shutdown",
    "restore": "bring qubes back: create or overwrite them, data and settings",
    "list": "show the qubes of this system and of the repository",
    "setup-storage": "print, or install, what a qube needs to store backups",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions below the command."""
    parser.epilog = SECRETS
    add_commands(parser, "action", _ACTIONS, below="qubes.").required = True


def run(context: Context) -> int:
    """Do it."""
    return load(f"qubes.{context.args.action}").run(context)
