"""`lamella files`: files inside a volume, without restoring it, and files as a volume."""

from __future__ import annotations

import argparse

from lamella.cli.arguments import SECRETS, add_commands, load
from lamella.cli.context import Context

_ACTIONS = {
    "backup": "back up the files of directories, without an image or a device",
    "publish": "publish what a qube saved of its own files with a key that was lent to it",
    "list": "list directories inside a snapshot of a volume",
    "get": "copy files and directories out of a snapshot of a volume",
    "find": "find files inside a snapshot of a volume by their names",
    "diff": "show what differs between the files of two snapshots",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions below the command."""
    parser.epilog = (
        "A small guest of QEMU, without a network, mounts the snapshot with its own kernel and replays the journal;\n"
        "what it writes is thrown away. This host never reads the guest's file system itself.\n\n" + SECRETS
    )
    add_commands(parser, "action", _ACTIONS, below="files.").required = True


def run(context: Context) -> int:
    """Do it."""
    return load(f"files.{context.args.action}").run(context)
