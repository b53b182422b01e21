"""`lamella check`: the state of the repository's history."""

from __future__ import annotations

import argparse
from contextlib import suppress

from lamella.base.errors import IntegrityError, NothingMatched, RepositoryError, RolledBack, UsageError
from lamella.cli.actions import add_moved
from lamella.cli.arguments import SECRETS, add_dry_run, add_yes
from lamella.cli.context import Context
from lamella.format.commit import Head, parse_name
from lamella.history.acceptance import accept_history, accept_seen
from lamella.memory.pins import Problem
from lamella.operations.repair.rebuild import find_trees
from lamella.operations.shared.heads import fingerprint
from lamella.repository.publishing import give_up
from lamella.repository.repository import Repository

_REBUILD = "lamella repair --accept-rollback"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = SECRETS
    parser.add_argument(
        "--accept-rollback",
        action="store_true",
        help="accept the present history as correct: this host forgets what it saw before",
    )
    parser.add_argument(
        "--accept-seen",
        metavar="WRITER",
        help="accept as lost what this writer saw and the repository lacks: deletion no longer waits for it",
    )
    parser.add_argument(
        "--give-up",
        action="append",
        default=[],
        metavar="OBJECT",
        help="declare for every host that this commit and its content are lost; a problem names OBJECT; "
        "needs an admin's secret",
    )
    parser.add_argument(
        "--join",
        metavar="NEW=OLD",
        help="let writer NEW own what writer OLD owns, as after the loss of a machine; `lamella info` shows both; "
        "needs an admin's secret",
    )
    parser.add_argument(
        "--expel",
        metavar="WRITER[@N]",
        help="ignore everything that WRITER published after its commit N (default: its newest); the data stays until "
        "delete --expelled; needs an admin's secret",
    )
    parser.add_argument(
        "--stay", action="append", default=[], metavar="WRITER", help="with --expel: keep this successor of WRITER"
    )
    parser.add_argument(
        "--readmit", metavar="ID", help="undo an expulsion; check shows its ID; needs an admin's secret"
    )
    parser.add_argument(
        "--close-enrolment",
        action="store_true",
        help="from now on only the hosts that wrote before, and those that admins admit, may write; "
        "needs an admin's secret, and cannot be undone",
    )
    parser.add_argument(
        "--admit",
        metavar="KEY",
        help="let a host write that has no admin's secret; a refused host prints its KEY (the first digits of its "
        "writer do, too); needs an admin's secret",
    )
    add_moved(parser, "--repair", "lamella repair")
    add_yes(parser)
    add_dry_run(parser)


def run(context: Context) -> int:
    """Report whether the history continues what this host saw; with --accept-rollback, accept it."""
    args = context.args
    if args.give_up and (args.accept_rollback or args.accept_seen):
        raise UsageError("--give-up goes with neither --accept-rollback nor --accept-seen")
    if args.join or args.expel or args.readmit or args.close_enrolment or args.admit:
        from lamella.cli.commands import _writers

        return _writers.run(context)
    return _give_up(context) if args.give_up else _look(context)


def _look(context: Context) -> int:
    args, out = context.args, context.out
    with context.repository(whole=True, stored=True) as repository:
        problems = list(repository.problems)
        for problem in problems:
            out.answer(f"problem: {problem.message}; {problem.remedy}")
        mirror = repository.log.place.mirror
        accepts = args.accept_rollback and (bool(problems) or mirror) and not args.dry_run
        if accepts:
            context.confirm("Will accept this history as correct: this host forgets what it saw before.")
            accept_history(repository.log)
        _accept_seen(context, repository)
        heads, marks = len(repository.history.heads), fingerprint(repository)
        notes = list(repository.catalogue.notes)
        for one in repository.catalogue.expulsions:
            out.line(
                f"expelled: writer {one.head.writer.hex()[:8]} after commit {one.head.seq}; ID {one.expel_id.hex()}"
            )
    for note in notes:
        out.say(f"note: {note}")
    if accepts:
        out.line("this history is accepted; what it lacks stays missing")
    elif mirror and not problems:
        out.line("this place is a mirror; to use it as a repository of its own: lamella check --accept-rollback")
    elif not problems:
        out.line(f"the history is sound: {heads} chain{'' if heads == 1 else 's'}, nothing this host saw is missing")
    elif args.accept_rollback:
        out.line("would accept this history")
    out.line(f"fingerprint {marks}")
    rows = [_row(problem) for problem in problems]
    out.document({"problems": rows, "accepted": accepts, "notes": notes, "fingerprint": marks})
    return RolledBack.exit_code if problems and not args.accept_rollback else 0


def _row(problem: Problem) -> dict[str, str]:
    obj = "" if problem.lacks is None else problem.lacks.name
    return {"key": problem.key, "message": problem.message, "object": obj, "remedy": problem.remedy}


def _give_up(context: Context) -> int:
    """Declare for every host that these commits are lost."""
    args, out = context.args, context.out
    with context.repository(read_only=args.dry_run, whole=True, stored=True) as repository:
        if repository.keys.prune_seed is None:
            raise RepositoryError(
                "this secret may add backups but not give up any: nothing was done",
                obj=repository.store.url,
                hint="use an admin's passphrase, key file or recovery key",
            )
        heads = sorted({_lacking(repository, text) for text in args.give_up})
        _tell_of_trees(context, repository)
        if not args.dry_run:
            count = f"{len(heads)} commit{'' if len(heads) == 1 else 's'}"
            context.confirm(f"Will declare {count} lost for every host. This cannot be undone.")
            give_up(repository, heads)
            repository.reload(whole=True)
        for head in heads:
            out.line(f"{'would be ' if args.dry_run else ''}given up: {head.name}")
        code = context.warn_of_problems(repository)
        rows = [_row(problem) for problem in repository.problems]
    out.document({"given_up": [head.name for head in heads], "dry_run": args.dry_run, "problems": rows})
    return code


def _tell_of_trees(context: Context, repository: Repository) -> None:
    """Tree notes may still name the volumes of a lost commit, until a prune deletes them."""
    with suppress(IntegrityError):
        repository.refresh_map()
    count = len(find_trees(repository))
    if count:
        states = "one state of a volume" if count == 1 else f"{count} states of volumes"
        context.out.say(
            f"{states} without a snapshot can be recovered until a prune deletes the data, with: {_REBUILD}"
        )


def _lacking(repository: Repository, text: str) -> Head:
    head = parse_name(text)
    if head is None or head not in repository.log.lacking:
        raise NothingMatched(f"{text} is not known to be missing: nothing is given up", obj=text)
    return head


def _accept_seen(context: Context, repository: Repository) -> None:
    writer = context.args.accept_seen
    if writer is None or context.args.dry_run:
        return
    accepted = accept_seen(repository.log, writer)
    if not accepted:
        raise NothingMatched(f"writer {writer} saw nothing that is missing", obj=writer)
    for text in accepted:
        context.out.line(f"taken as lost: {text}")
