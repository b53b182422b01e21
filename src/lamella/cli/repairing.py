"""`lamella check --repair`: what is asked for, where lost content may be had, and the report."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from lamella.base.errors import IntegrityError, RolledBack, UsageError
from lamella.cli.context import Context
from lamella.cli.secret import DONOR, given_source, secret_source
from lamella.cli.values import shown_bytes, shown_seconds, workers
from lamella.history.acceptance import accept_history
from lamella.memory.host import Host
from lamella.operations.repair.repair import EXAMINATIONS, RepairOptions, repair
from lamella.operations.repair.result import LEFT, Action, Gone, RepairResult
from lamella.operations.shared.findings import Finding
from lamella.repository.repository import Repository
from lamella.repository.slots import read_marker
from lamella.run.allocator import keep_freed_memory
from lamella.sources.base import Source
from lamella.stores.base import Store
from lamella.stores.url import open_store
from lamella.stores.wrap import RetryingStore

SHOWN_RANGES = 20
EPILOG = """\
--repair deletes nothing. What is bad is moved to quarantine/ where a lock proves that nobody uses it, and otherwise
left and remembered as bad. Lost content is looked for in other packs, in the live source, and in --from REPO: a copy
of this repository, or another one with the same volumes. That one's secret comes from --from-keyfile,
--from-recovery-key-file, LAMELLA_FROM_PASSPHRASE, _FILE, _COMMAND, _FD or the configuration, else it is the same.
What stays lost is recorded in the repository and shown by `lamella list` ever after.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that belong to --repair."""
    parser.add_argument(
        "--repair", action="store_true", help="bring back what is still somewhere, and record what is lost"
    )
    parser.add_argument("--from", dest="donor", metavar="REPO", help="take lost content from this repository, too")
    parser.add_argument("--from-keyfile", metavar="FILE", help="open that repository with this key file")
    parser.add_argument("--from-recovery-key-file", metavar="FILE", help="open it with the recovery key in this file")
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="VOLUME=SOURCE",
        help="take lost content from this source (default: where the volume came from)",
    )
    parser.add_argument(
        "--level",
        choices=EXAMINATIONS,
        help="examine by reading every pack (full), or go by the listing and by what is known to be bad "
        "(default: full)",
    )
    parser.add_argument("--workers", type=workers, metavar="N", help="threads (default: as many as suit the machine)")


def require_no_options(args: argparse.Namespace) -> None:
    """Raises UsageError for options that need --repair."""
    named = {"--from": args.donor, "--source": args.source, "--level": args.level, "--workers": args.workers}
    named |= {"--from-keyfile": args.from_keyfile, "--from-recovery-key-file": args.from_recovery_key_file}
    given = [name for name, value in named.items() if value]
    if given:
        raise UsageError(f"{', '.join(given)} belongs to --repair")


def run(context: Context) -> int:
    """Examine, ask, mend and report."""
    keep_freed_memory()
    args, out = context.args, context.out
    options = RepairOptions(
        args.level or EXAMINATIONS[-1],
        _sources(context),
        dry=args.dry_run,
        rebuild=args.accept_rollback,
        workers=args.workers or context.config.backup.workers,
        lock_wait=args.lock_wait,
    )

    def confirm(result: RepairResult) -> None:
        damages = sum(one.severity == "damage" for one in result.found)
        if damages and not args.dry_run:
            out.say(f"{damages} finding{'' if damages == 1 else 's'} of damage")
            context.confirm("Repair what can be repaired?")

    with _repository(context) as repository, ExitStack() as held:
        if args.accept_rollback and not args.dry_run:
            options = replace(options, accepted=repository.log.lacking)
            accept_history(repository.log)
        others = [held.enter_context(_donor(context, repository))] if args.donor else []
        result = repair(repository, replace(options, others=others), out.report, confirm)
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
        sources[volume] = context.source(place)
    return sources


@contextmanager
def _repository(context: Context) -> Iterator[Repository]:
    context.check_secret()
    with context.store(read_only=context.args.dry_run) as store:
        read_marker(store)
        secret = secret_source(context.args, context.env, context.settings, context.secret_names).read()
        with Repository.open_damaged(store, secret, context.host, lock_wait=context.args.lock_wait) as repository:
            context.require_expected(repository)
            yield repository


@contextmanager
def _donor(context: Context, repository: Repository) -> Iterator[Repository]:
    """The repository --from names, read only. A copy of the damaged one gets a memory of its own: its listing and its
    heads must not be taken for those of the other.
    """
    place, settings = context.named_place(context.args.donor)
    given = given_source(context.args, context.env, settings, DONOR)
    source = given or secret_source(context.args, context.env, context.settings, context.secret_names)
    with ExitStack() as held:
        opened = open_store(place, read_only=True, environment=context.env)
        store: Store = held.enter_context(closing(RetryingStore(opened)))
        host = context.host
        if read_marker(store).repo_id == repository.repo_id:
            own = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="lamella-from-")))
            host = Host(host.machine, host.label, own / "state", own / "cache")
        yield held.enter_context(Repository.open(store, source.read(), host, lock_wait=context.args.lock_wait))


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
        out.say("what is left of such a volume: restore.py writes it to FILE.lamella-partial and names the lost bytes")
    for problem in result.problems:
        out.warn(problem)
    if result.problems:
        out.say("accept this history and go on with: lamella check --repair --accept-rollback")


def _action_line(action: Action, result: RepairResult) -> str:
    would = "would be " if result.dry and action.did != LEFT else ""
    return f"{would}{action.did}: {action.obj}" + (f": {action.message}" if action.message else "")


def _gone_lines(gone: Gone) -> Iterator[str]:
    yield f"lost of {gone.obj}: {shown_bytes(gone.lost_bytes)}"
    for start, end in gone.ranges[:SHOWN_RANGES]:
        yield f"    bytes {start} to {end}"
    if len(gone.ranges) > SHOWN_RANGES:
        yield f"    and {len(gone.ranges) - SHOWN_RANGES} more ranges; --json names them all"
    yield from (f"    document {name}" for name in gone.documents)


def _summary(result: RepairResult) -> str:
    steps = sum(one.did != LEFT for one in result.actions)
    if not steps and not result.damaged:
        return f"nothing is damaged, nothing to repair ({shown_seconds(result.seconds)})"
    stored = f"{result.stored_blobs} parts stored anew ({shown_bytes(result.stored_bytes)} of data)"
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
