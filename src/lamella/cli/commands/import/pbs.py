"""`lamella import pbs`: the snapshots of a group in a datastore of Proxmox Backup Server."""

from __future__ import annotations

import argparse
from pathlib import Path

from lamella.cli import imports
from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context
from lamella.cli.files import read_file
from lamella.cli.foreign_secret import FOREIGN_SECRETS, foreign_passphrase
from lamella.imports.pbs.history import Datastore, pbs_history
from lamella.imports.pbs.key import MAX_KEY_FILE, read_key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The kind's own arguments."""
    parser.epilog = f"{imports.NOTE}\n\n{FOREIGN_SECRETS}\n\n{SECRETS}"
    parser.add_argument("datastore", metavar="DATASTORE", help="the directory of the datastore, which holds .chunks")
    parser.add_argument("group", metavar="GROUP", help="the group, as its directory is called: vm/100, ns/NAME/vm/100")
    imports.add_arguments(parser)
    parser.add_argument("--from-keyfile", metavar="FILE", help="the key file of Proxmox Backup for encrypted snapshots")


def run(context: Context) -> int:
    """Do it."""
    args, key = context.args, None
    if args.from_keyfile is not None:
        key = read_key(read_file(args.from_keyfile, MAX_KEY_FILE), lambda: foreign_passphrase(context))
    return imports.run_import(context, pbs_history(Datastore(Path(args.datastore), args.group, key)))
