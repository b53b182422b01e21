"""`lamella mirror`: a whole repository to a second place, byte for byte and without keys."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from lamella.base.errors import IntegrityError, NoRepository, UsageError
from lamella.cli.arguments import add_dry_run
from lamella.cli.context import Context
from lamella.cli.destination import SecondContext
from lamella.cli.shown import shown_bytes, shown_seconds
from lamella.cli.values import workers
from lamella.operations.mirror.mirror import MirrorResult, mirror, plan_mirror
from lamella.operations.mirror.resync import Resynced, resync_corrupt
from lamella.run.allocator import keep_freed_memory
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = (
        "This command needs no secret. It checks every object against its name, and never replaces or removes\n"
        "anything good at the second place. Run it again to copy what is new; an interrupted run loses nothing."
    )
    parser.add_argument("--to", required=True, metavar="REPO", help="the second place; it is made if it is missing")
    parser.add_argument(
        "--workers", type=workers, metavar="N", help="number of threads (default: suited to this machine)"
    )
    parser.add_argument(
        "--resync-corrupt",
        action="store_true",
        help="first read everything at the second place, and mend what is damaged there; needs no secret either",
    )
    parser.add_argument("--transfer-last", nargs="?", action=_Elsewhere, help=argparse.SUPPRESS)
    add_dry_run(parser)


class _Elsewhere(argparse.Action):
    """Without keys nobody can tell which packs a snapshot needs."""

    def __call__(self, *given: object) -> None:
        raise UsageError(
            "a mirror is the whole repository: without keys nobody can tell which objects some snapshots need",
            hint="to copy the newest N snapshots of each volume: lamella copy --to REPO --transfer-last N",
        )


def run(context: Context) -> int:
    """Do it, or with -n say what would be done."""
    keep_freed_memory()
    args, out = context.args, context.out
    if not args.to:
        raise UsageError("--to names no repository")
    with context.store(read_only=True) as source, _target(SecondContext(context), args.dry_run) as target:
        if args.dry_run:
            plan = plan_mirror(source, target)
            size = shown_bytes(plan.missing_bytes)
            out.line(f"would copy {plan.missing_objects} objects, {size}; {plan.present_objects} are there already")
            resynced = _resynced(context, source, target)
            for finding in resynced.findings:
                out.line(f"{finding.severity}: {finding.obj}: {finding.message}")
            fields = {"missing_objects": plan.missing_objects, "missing_bytes": plan.missing_bytes}
            fields["damaged_objects"] = resynced.bad
            out.document({"mirror": True, "dry_run": True, **fields, "present_objects": plan.present_objects})
            return IntegrityError.exit_code if resynced.bad else 0
        threads = args.workers or context.config.backup.workers
        resynced = _resynced(context, source, target)
        result = mirror(source, target, context.host, reporter=out.report, workers=threads, lock_wait=args.lock_wait)
    result.findings = list(dict.fromkeys((*resynced.findings, *result.findings)))
    return _report(context, result, resynced)


def _resynced(context: Context, source: Store, target: Store) -> Resynced:
    """What --resync-corrupt found and mended."""
    args = context.args
    if not args.resync_corrupt:
        return Resynced()
    threads = args.workers or context.config.backup.workers
    return resync_corrupt(
        source, target, reporter=context.out.report, workers=threads, lock_wait=args.lock_wait, dry=args.dry_run
    )


@contextmanager
def _target(other: Context, dry_run: bool) -> Iterator[Store]:
    """The place to mirror to, made if it is missing; what is missing stays so with -n."""
    try:
        with other.store(create=not dry_run, read_only=dry_run) as store:
            yield store
    except NoRepository:
        if not dry_run:
            raise
        yield MemoryStore()


def _report(context: Context, result: MirrorResult, resynced: Resynced) -> int:
    out = context.out
    for finding in result.findings:
        out.line(f"{finding.severity}: {finding.obj}: {finding.message}")
    extra = f", {result.extra_objects} more that the source lacks" if result.extra_objects else ""
    copied = f"{result.copied_objects} objects copied ({shown_bytes(result.copied_bytes)})"
    extra += f", {resynced.mended} mended" if resynced.mended else ""
    state = "; DAMAGED OBJECTS WERE LEFT OUT" if result.damaged else ""
    if result.damaged and not context.args.resync_corrupt:
        out.say("mend the mirror with --resync-corrupt; mend the source by mirroring the other way")
    out.line(f"{copied}, {result.present_objects} there already{extra} in {shown_seconds(result.seconds)}{state}")
    rows = [{"object": one.obj, "severity": one.severity, "message": one.message} for one in result.findings]
    out.document(
        {
            "mirror": True,
            "result": "damaged" if result.damaged else "complete",
            "id": result.repo_id.hex(),
            "copied_objects": result.copied_objects,
            "copied_bytes": result.copied_bytes,
            "present_objects": result.present_objects,
            "extra_objects": result.extra_objects,
            "mended_objects": resynced.mended,
            "rounds": result.rounds,
            "findings": rows,
            "seconds": result.seconds,
        }
    )
    return IntegrityError.exit_code if result.damaged else 0
