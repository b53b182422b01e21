"""`lamella fleet`: the repositories of many hosts, seen and cared for from one machine."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from lamella.base.errors import UsageError
from lamella.cli.arguments import SECRETS, add_commands, load
from lamella.cli.context import Context

_ACTIONS = {
    "add": "take a host into the fleet: make its repository, or name the one that it has",
    "list": "show the hosts of the fleet, or the volumes of some of them",
    "status": "show whether every host is in order, and why not, as the last look found it",
    "search": "find snapshots by host, volume and date, as the last look found them",
    "refresh": "look at the repositories again",
    "prune": "remove the snapshots that no rule keeps, in the repository of each host",
    "verify": "prove that the snapshots of each host can be restored",
    "mirror": "copy the repository of each host to its second place, byte for byte",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions below the command. Raises UsageError in a package without them: dom0 looks after no other machine."""
    if find_spec("lamella.cli.fleet") is None or find_spec("lamella.cli.ui") is None:
        raise UsageError("this package of Lamella looks after no fleet")
    parser.epilog = (
        "Each host has a repository of its own, and a file in the directory fleet beside the configuration. Every\n"
        "command takes the repository of a host as -r fleet:HOST. What happens in one repository reaches no other.\n\n"
        + SECRETS
    )
    add_commands(parser, "action", _ACTIONS, below="fleet.").required = True


def run(context: Context) -> int:
    """Do it."""
    return load(f"fleet.{context.args.action}").run(context)
