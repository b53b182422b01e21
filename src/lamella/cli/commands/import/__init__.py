"""`lamella import`: the history that another tool kept becomes snapshots."""

from __future__ import annotations

import argparse

from lamella.cli.arguments import SECRETS, add_commands, load
from lamella.cli.context import Context

_KINDS = {
    "borg": "import the archives of a borg repository, through borg",
    "restic": "import the snapshots of a restic repository, through restic",
    "qvm": "import files of qvm-backup: volumes and settings of qubes",
    "qcow2": "import the snapshots of a qcow2 image, and the images below it",
    "wyng": "import the sessions of a wyng archive",
    "pbs": "import the snapshots of a group in a datastore of Proxmox Backup Server",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The tools whose archives can be read."""
    parser.epilog = SECRETS
    add_commands(parser, "kind", _KINDS, below="import.").required = True


def run(context: Context) -> int:
    """Do it."""
    return load(f"import.{context.args.kind}").run(context)
