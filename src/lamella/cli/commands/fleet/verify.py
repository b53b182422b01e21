"""`lamella fleet verify`: prove that the snapshots of each host can be restored."""

from __future__ import annotations

import argparse

from lamella.base.errors import UsageError
from lamella.cli.amounts import budget, percent
from lamella.cli.commands.fleet._each import add_hosts, work
from lamella.cli.context import Context
from lamella.cli.fleet.hosts import FleetHost

LEVELS = ("structure", "sample", "full", "restore")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    parser.epilog = "The levels are those of `lamella verify`; this machine needs a key of each host."
    add_hosts(parser)
    parser.add_argument("--level", choices=LEVELS, default="sample", help="how thorough (default: sample)")
    parser.add_argument("--percent", type=percent, metavar="N", help="share of the chunks to read at level sample")
    parser.add_argument(
        "--budget", type=budget, metavar="SIZE", help="at level sample read SIZE bytes of packs of each host instead"
    )
    parser.set_defaults(dry_run=False)


def run(context: Context) -> int:
    """Verify, host by host."""
    args = context.args
    if args.level != "sample" and (args.percent is not None or args.budget is not None):
        raise UsageError("--percent and --budget belong to --level sample")
    words = ["verify", f"--level={args.level}"]
    if args.percent is not None:
        words.append(f"--percent={args.percent:g}")
    if args.budget is not None:
        words.append(f"--budget={args.budget}B")
    return work(context, "verify", lambda host: words, needs_key)


def needs_key(host: FleetHost) -> str:
    """Why nothing can be done that needs a key; empty if it can."""
    return "" if host.has_key else "this machine has no key of it"
