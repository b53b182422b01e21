"""`lamella import qcow2`: the states that an image of QEMU keeps."""

from __future__ import annotations

import argparse
from pathlib import Path

from lamella.cli import imports
from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context
from lamella.imports.qcow2 import qcow2_history

_NOTE = """\
The images below IMAGE are its oldest states, its snapshots (qemu-img snapshot) the next, and its present state is the
last. Nobody may have the image open. Files that it needs must lie beside it, or below a directory of backing_dirs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The kind's own arguments."""
    parser.epilog = f"{imports.NOTE}\n\n{_NOTE}\n\n{SECRETS}"
    parser.add_argument("archive", metavar="IMAGE", help="the qcow2 image, the uppermost of its chain")
    imports.add_arguments(parser)


def run(context: Context) -> int:
    """Do it."""
    dirs = tuple(Path(one) for one in context.config.backup.backing_dirs)
    return imports.run_import(context, qcow2_history(Path(context.args.archive), context.host.machine, dirs))
