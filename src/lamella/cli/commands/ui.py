"""`lamella ui`: a page in the browser of this machine, for one person, as long as the command runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from lamella.base.errors import UsageError
from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = (
        "The page shows status, volumes, snapshots and files, and plans and starts restores and profiles. The address\n"
        "that is printed opens it once. Ctrl-C ends the server and asks what it started to end.\n\n" + SECRETS
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--listen", metavar="ADDR:PORT", default="127.0.0.1:0", help="an address of this machine (default: any port)"
    )
    where.add_argument("--socket", type=Path, metavar="PATH", help="a socket file that only you can open, for a tunnel")
    parser.add_argument(
        "--kernel", metavar="FILE", type=Path, help="the kernel of the guest that reads files, as for files"
    )


def run(context: Context) -> int:
    """Serve until it is interrupted."""
    try:
        from lamella.cli.ui.serving import serve
    except ModuleNotFoundError as error:
        raise UsageError("this package of Lamella has no page", hint="use: lamella report --html FILE") from error
    return serve(context)
