"""`lamella check`: the state of the repository's history, and repairs."""

from __future__ import annotations

import argparse

from lamella.cli import repairing
from lamella.cli.arguments import SECRETS, add_dry_run, add_yes
from lamella.cli.context import Context
from lamella.errors import RolledBack
from lamella.operations.heads import fingerprint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = f"{repairing.EPILOG}\n{SECRETS}"
    parser.add_argument(
        "--accept-rollback",
        action="store_true",
        help="take the present history as the right one: this host forgets what it saw before",
    )
    repairing.add_arguments(parser)
    add_yes(parser)
    add_dry_run(parser)


def run(context: Context) -> int:
    """Say whether the history goes on from what this host saw; with --accept-rollback, go on from here."""
    args, out = context.args, context.out
    if args.repair:
        return repairing.run(context)
    repairing.require_no_options(args)
    with context.repository(whole=True) as repository:
        problems = list(repository.problems)
        for problem in problems:
            out.line(f"problem: {problem.message}")
        mirror = repository.place.mirror
        accepts = args.accept_rollback and (bool(problems) or mirror) and not args.dry_run
        if accepts:
            context.confirm("Take this history as the right one?")
            repository.accept_history()
        heads, marks = len(repository.history.heads), fingerprint(repository)
        notes = list(repository.catalogue.notes)
    for note in notes:
        out.say(f"note: {note}")
    if accepts:
        out.line("this history is accepted; what it lacks is not in the repository")
    elif mirror and not problems:
        out.line("this place is a mirror; to go on here as a repository of its own: lamella check --accept-rollback")
    elif not problems:
        out.line(f"the history is sound: {heads} chain{'' if heads == 1 else 's'}, nothing this host saw is missing")
    elif args.accept_rollback:
        out.line("would accept this history")
    else:
        out.say("accept this history with: lamella check --accept-rollback")
    out.line(f"fingerprint {marks}")
    rows = [{"key": problem.key, "message": problem.message} for problem in problems]
    out.document({"problems": rows, "accepted": accepts, "notes": notes, "fingerprint": marks})
    return RolledBack.exit_code if problems and not args.accept_rollback else 0
