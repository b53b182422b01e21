"""`lamella fleet mirror`: the repository of each host to its second place."""

from __future__ import annotations

import argparse

from lamella.cli.arguments import add_dry_run
from lamella.cli.commands.fleet._each import add_hosts, work
from lamella.cli.context import Context
from lamella.cli.fleet.hosts import FleetHost


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    parser.epilog = "The second place is `mirror` in the file of a host. No key is needed."
    add_hosts(parser)
    add_dry_run(parser)


def run(context: Context) -> int:
    """Mirror, host by host."""

    def words(host: FleetHost) -> list[str]:
        return ["mirror", f"--to={host.mirror}", *(["-n"] if context.args.dry_run else [])]

    return work(context, "mirror", words, lambda host: "" if host.mirror else "its file names no mirror")
