"""`lamella copy --mirror`: a whole repository to a second place, without keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lamella.base.errors import IntegrityError, NoRepository, UsageError
from lamella.cli.context import Context, SecondContext
from lamella.cli.values import shown_bytes, shown_seconds
from lamella.operations.mirror.mirror import MirrorResult, mirror, plan_mirror
from lamella.stores.base import Store
from lamella.stores.memory import MemoryStore

_NOT_WITH_MIRROR = ("volume", "to_keyfile", "to_recovery_key_file", "compression")


def run(context: Context) -> int:
    """Do it, or with -n say what would be done."""
    args, out, other = context.args, context.out, SecondContext(context)
    given = [name for name in _NOT_WITH_MIRROR if getattr(args, name)]
    if given:
        words = {"volume": "VOLUME"}.get(given[0], "--" + given[0].replace("_", "-"))
        raise UsageError(f"{words} does not go with --mirror: the whole repository is copied, without keys")
    with context.store(read_only=True) as source, _target(other, args.dry_run) as target:
        if args.dry_run:
            plan = plan_mirror(source, target)
            size = shown_bytes(plan.missing_bytes)
            out.line(f"would copy {plan.missing_objects} objects, {size}; {plan.present_objects} are there already")
            fields = {"missing_objects": plan.missing_objects, "missing_bytes": plan.missing_bytes}
            out.document({"mirror": True, "dry_run": True, **fields, "present_objects": plan.present_objects})
            return 0
        workers = args.workers or context.config.backup.workers
        result = mirror(source, target, context.host, reporter=out.report, workers=workers, lock_wait=args.lock_wait)
    return _report(context, result)


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


def _report(context: Context, result: MirrorResult) -> int:
    out = context.out
    for finding in result.findings:
        out.line(f"{finding.severity}: {finding.obj}: {finding.message}")
    extra = f", {result.extra_objects} more that the source has not" if result.extra_objects else ""
    copied = f"{result.copied_objects} objects copied ({shown_bytes(result.copied_bytes)})"
    state = "; DAMAGED OBJECTS WERE LEFT OUT" if result.damaged else ""
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
            "rounds": result.rounds,
            "findings": rows,
            "seconds": result.seconds,
        }
    )
    return IntegrityError.exit_code if result.damaged else 0
