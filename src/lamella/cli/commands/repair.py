"""`lamella repair`: restore what still exists somewhere, and record what is lost."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from lamella.base.errors import IntegrityError, RolledBack, UsageError
from lamella.cli.arguments import SECRETS, add_dry_run, add_yes
from lamella.cli.context import Context
from lamella.cli.secret import DONOR, given_source
from lamella.cli.shown import shown_bytes, shown_seconds
from lamella.cli.sources import named_source
from lamella.cli.values import workers
from lamella.history.acceptance import accept_history
from lamella.operations.repair.repair import EXAMINATIONS, RepairOptions, repair
from lamella.operations.repair.result import LEFT, Gone, RepairResult, RepairStep
from lamella.operations.shared.findings import Finding
from lamella.operations.verify.verify import examine_all
from lamella.repository.repository import Repository
from lamella.repository.slots import read_marker
from lamella.run.allocator import keep_freed_memory
from lamella.sources.base import Source
from lamella.stores.base import Store
from lamella.stores.url import open_store

_SHOWN_RANGES = 20
_EPILOG = """\
A repair deletes nothing. It moves bad objects to quarantine/ where a lock proves that nobody uses them; elsewhere it
leaves them and remembers that they are bad. It looks for lost content in other packs, in the live source, and in
--from REPO: a copy of this repository, or another one with the same volumes. The secret of that repository comes from
--from-keyfile, --from-recovery-key-file, LAMELLA_FROM_PASSPHRASE, _FILE, _COMMAND, _FD or the configuration; without
any of these the repair uses the same secret for both. The repository records what stays lost, and `lamella list` shows
this ever after.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = _EPILOG + SECRETS
    parser.add_argument("--from", dest="donor", metavar="REPO", help="also take lost content from this repository")
    parser.add_argument("--from-keyfile", metavar="FILE", help="open that repository with this key file")
    parser.add_argument(
        "--from-recovery-key-file", metavar="FILE", help="open that repository with the recovery key in this file"
    )
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="VOLUME=SOURCE",
        help="take lost content of VOLUME from SOURCE (default: the source the volume came from)",
    )
    parser.add_argument(
        "--level",
        choices=EXAMINATIONS,
        default=EXAMINATIONS[-1],
        help="full reads every pack; structure uses the listing and what is known to be bad (default: full)",
    )
    parser.add_argument(
        "--accept-rollback",
        action="store_true",
        help="accept the present history as correct, and rebuild volumes that it lacks from their trees",
    )
    parser.add_argument(
        "--workers", type=workers, metavar="N", help="number of threads (default: suited to this machine)"
    )
    add_yes(parser)
    add_dry_run(parser)


def run(context: Context) -> int:
    """Examine, ask, mend and report."""
    keep_freed_memory()
    args, out = context.args, context.out
    options = RepairOptions(
        args.level,
        _sources(context),
        dry=args.dry_run,
        rebuild=args.accept_rollback,
        workers=args.workers or context.config.backup.workers,
        lock_wait=args.lock_wait,
    )

    def confirm(result: RepairResult) -> None:
        damages = sum(one.severity == "damage" for one in result.found)
        if damages and not args.dry_run:
            for one in result.found if context.asks else ():
                out.say(f"{one.severity}: {one.obj}: {one.message}")
            out.say(f"{damages} finding{'' if damages == 1 else 's'} of damage")
            context.confirm("Will repair what can be repaired, and record what stays lost. Nothing is deleted.")

    with _repository(context) as repository, ExitStack() as held:
        if args.accept_rollback and not args.dry_run:
            options = replace(options, accepted=repository.log.lacking)
            accept_history(repository.log)
        others = [held.enter_context(_donor(context, repository))] if args.donor else []
        result = repair(repository, examine_all, replace(options, others=others), out.report, confirm)
    _print(context, result)
    out.document(_document(result))
    if result.problems:
        return RolledBack.exit_code
    return IntegrityError.exit_code if result.damaged else 0


def _sources(context: Context) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for text in context.args.source:
        volume, equals, place = text.partition("=")
        if not volume or not equals or not place:
            raise UsageError(f"not a source: {text!r}", hint="write VOLUME=SOURCE")
        sources[volume] = named_source(context, place)
    return sources


@contextmanager
def _repository(context: Context) -> Iterator[Repository]:
    context.given_secret()
    with context.store(read_only=context.args.dry_run) as store:
        read_marker(store)
        wait = context.args.lock_wait
        opened = context.with_secret(
            lambda secret: Repository.open(store, secret, context.host, lock_wait=wait, whole=True, may_be_lost=True)
        )
        with opened as repository:
            context.require_expected(repository)
            yield repository


@contextmanager
def _donor(context: Context, repository: Repository) -> Iterator[Repository]:
    """The repository --from names, read only. A copy of the damaged one gets a memory of its own: its listing and its
    heads must not be taken for those of the other.
    """
    place, settings = context.named_place(context.args.donor)
    given = given_source(context.args, context.env, settings, DONOR)
    with ExitStack() as held:
        opened = open_store(place, read_only=True, environment=context.env)
        store: Store = held.enter_context(closing(context.retrying(opened, place)))
        host = context.host
        if read_marker(store).repo_id == repository.repo_id:
            own = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="lamella-from-")))
            host = replace(host, state_dir=own / "state", cache_dir=own / "cache")
        yield held.enter_context(
            Repository.open(store, given.read() if given else context.secret(), host, lock_wait=context.args.lock_wait)
        )


def _print(context: Context, result: RepairResult) -> None:
    out = context.out
    if result.dry:
        for finding in result.found:
            out.line(f"{finding.severity}: {finding.obj}: {finding.message}")
    for action in result.actions:
        out.line(_action_line(action, result))
    for gone in result.gone:
        for line in _gone_lines(gone):
            out.line(line)
    for finding in () if result.dry else result.remaining:
        out.line(f"remaining {finding.severity}: {finding.obj}: {finding.message}")
    _advise(context, result)
    out.line(_summary(result))


def _advise(context: Context, result: RepairResult) -> None:
    out = context.out
    for note in result.notes:
        out.say(note)
    if result.gone and not result.dry:
        out.say("restore.py writes what is left of such a volume to FILE.lamella-partial, and names the lost bytes")
    for problem in result.problems:
        out.warn(problem)
    if result.problems:
        out.say("to accept this history and continue: lamella repair --accept-rollback")


def _action_line(action: RepairStep, result: RepairResult) -> str:
    would = "would be " if result.dry and action.did != LEFT else ""
    return f"{would}{action.did}: {action.obj}" + (f": {action.message}" if action.message else "")


def _gone_lines(gone: Gone) -> Iterator[str]:
    yield f"lost of {gone.obj}: {shown_bytes(gone.lost_bytes)}"
    for start, end in gone.ranges[:_SHOWN_RANGES]:
        yield f"    bytes {start} to {end}"
    if len(gone.ranges) > _SHOWN_RANGES:
        yield f"    and {len(gone.ranges) - _SHOWN_RANGES} more ranges; --json names them all"
    yield from (f"    document {name}" for name in gone.documents)


def _summary(result: RepairResult) -> str:
    steps = sum(one.did != LEFT for one in result.actions)
    if not steps and not result.damaged:
        return f"nothing is damaged, nothing to repair ({shown_seconds(result.seconds)})"
    stored = f"{result.stored_blobs} parts stored again ({shown_bytes(result.stored_bytes)} of data)"
    if result.dry:
        return f"would do {steps} steps; {stored}"
    left = f"; {len(result.gone)} snapshots stay incomplete" if result.gone else ""
    word = "still damaged" if result.damaged else "repaired"
    return f"{word}: {steps} steps, {stored}{left}, in {shown_seconds(result.seconds)}"


def _document(result: RepairResult) -> dict[str, object]:
    return {
        "dry_run": result.dry,
        "found": [_finding(one) for one in result.found],
        "actions": [action.row() for action in result.actions],
        "lost": [gone.row() for gone in result.gone],
        "remaining": [] if result.dry else [_finding(one) for one in result.remaining],
        "problems": result.problems,
        "stored_blobs": result.stored_blobs,
        "stored_bytes": result.stored_bytes,
        "seconds": result.seconds,
    }


def _finding(one: Finding) -> dict[str, object]:
    return {"kind": one.kind, "severity": one.severity, "object": one.obj, "message": one.message}
