"""`lamella files publish`: a qube's own backup of its files becomes a snapshot of this repository."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lamella.base.errors import UsageError
from lamella.cli.arguments import SECRETS, add_dry_run, lazy
from lamella.cli.backup_report import reporting
from lamella.cli.context import Context
from lamella.cli.destination import OtherContext
from lamella.cli.files import read_file
from lamella.cli.secret import FIRST
from lamella.cli.shown import shown_bytes
from lamella.format.ticket import SIZE
from lamella.operations.backup.handed_in import HandedIn, plan_hand_in

_size = lazy("size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    parser.epilog = (
        "A qube saves its files itself, with a key that opens nothing else, to a store of its own:\n"
        "  here      lamella key export-domain work-files --inside --to work.key\n"
        "  inside    lamella init -r STORE --keyfile work.key\n"
        "  inside    lamella files backup /home/user -r STORE --keyfile work.key --ticket ticket\n"
        "  here      lamella files publish work-files --ticket ticket --from STORE\n"
        "Neither lists of files nor contents are decoded here.\n\n" + SECRETS
    )
    parser.add_argument("volume", metavar="NAME", help="the name that the key was lent under: the volume's")
    parser.add_argument("--ticket", required=True, metavar="FILE", help="what the qube handed out; - is standard input")
    parser.add_argument("--from", required=True, dest="origin", metavar="STORE", help="the qube's store")
    parser.add_argument("--max-size", type=_size, metavar="SIZE", help="publish nothing if more would be stored for it")
    add_dry_run(parser)


def run(context: Context) -> int:
    """Publish; 3 if what was handed in cannot be believed."""
    args, out = context.args, context.out
    content = sys.stdin.buffer.read(SIZE + 1) if args.ticket == "-" else read_file(Path(args.ticket), 1 << 16)
    if args.origin == context.named():
        raise UsageError("--from names the repository itself", obj=args.origin)
    other = OtherContext(context, args.origin, FIRST)
    with context.sound_repository(read_only=args.dry_run) as repository, other.store(read_only=True) as inside:
        plan = plan_hand_in(repository, args.volume, content)
        if args.dry_run:
            out.line(f"would publish {shown_bytes(plan.ticket.size)} of files as {args.volume}")
            out.document({"dry_run": True, "volume": plan.borrower.name, "size": plan.ticket.size})
            return 0
        done = plan.execute(inside, args.max_size, reporting(out))
    _say(context, done)
    return 0


def _say(context: Context, done: HandedIn) -> None:
    out = context.out
    if done.published:
        figures = f"{done.new_chunks} new chunks, {shown_bytes(done.stored_bytes)} stored"
        out.line(f"{done.volume}@{done.snapshot}: {shown_bytes(done.size)}, {figures}")
    else:
        out.line(f"{done.volume}@{done.snapshot}: published before")
    out.document(done._asdict())
