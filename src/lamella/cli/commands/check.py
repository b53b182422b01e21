"""`lamella check`: the state of the repository's history, and repairs."""

from __future__ import annotations

import argparse

from lamella.cli import repairing
from lamella.cli.arguments import SECRETS, add_dry_run, add_yes
from lamella.cli.context import Context
from lamella.errors import NothingMatched, RolledBack
from lamella.operations.heads import fingerprint
from lamella.repository.repository import Repository


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = f"{repairing.EPILOG}\n{SECRETS}"
    parser.add_argument(
        "--accept-rollback",
        action="store_true",
        help="take the present history as the right one: this host forgets what it saw before",
    )
    parser.add_argument(
        "--accept-seen",
        metavar="WRITER",
        help="take what this writer saw of others, and is not here, as lost for good: deletion goes on without it",
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
        _accept_seen(context, repository)
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


def _accept_seen(context: Context, repository: Repository) -> None:
    writer = context.args.accept_seen
    if writer is None or context.args.dry_run:
        return
    accepted = repository.accept_seen(writer)
    if not accepted:
        raise NothingMatched(f"writer {writer} saw nothing that is missing", obj=writer)
    for text in accepted:
        context.out.line(f"taken as lost: {text}")
