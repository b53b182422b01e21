"""`lamella restore VOLUME --to libvirt:NAME`: all disks of a domain, and its definition."""

from __future__ import annotations

from lamella.base.errors import LamellaError, UsageError
from lamella.cli.chosen import chosen, shown_snapshot, warn_of_no_moment
from lamella.cli.commands import _volumes
from lamella.cli.commands.restore import facts
from lamella.cli.context import Context
from lamella.cli.output import INCOMPLETE
from lamella.cli.shown import shown_bytes
from lamella.operations.restore.domain import DomainPlan, plan_domain
from lamella.operations.restore.restore import RestoreOptions

_FOREIGN = ("document", "in_place", "trust_local", "inside", "all", "instant")


def run(context: Context) -> int:
    """Restore it."""
    args = context.args
    for name in _FOREIGN:
        if getattr(args, name):
            raise UsageError(f"--{name.removesuffix('side').replace('_', '-')} does not go with --to libvirt:NAME")
    if len(args.volume) != 1:
        raise UsageError("name one disk of the domain: the others of its snapshot come along")
    with context.repository() as repository:
        selected = chosen(repository, args.volume[0])
        code = context.warn_of_problems(repository)
        context.out.say(f"restoring the domain of {shown_snapshot(repository, selected)}")
        options = RestoreOptions(args.workers or context.config.backup.workers, overwrite=args.overwrite)
        plan = plan_domain(repository, selected, str(args.to), args.pool, options)
        return _planned(context, plan) or code


def _planned(context: Context, plan: DomainPlan) -> int:
    args, out = context.args, context.out
    for part in plan.volumes.parts:
        warn_of_no_moment(context, part.selected)
    if plan.volumes.failed:
        first = plan.volumes.failed[0]
        raise first.error or LamellaError("not restored", obj=first.volume)
    plan.volumes.require_space()
    for line in _lines(plan):
        if args.dry_run:
            out.line(line)
        else:
            out.say(line)
    for what in plan.definition.left_out:
        out.warn(f"left out: {what}")
    for what in plan.definition.opens:
        out.warn(f"once started, the domain opens what the saved one did: {what}")
    if args.dry_run:
        rows = [facts(part) for part in plan.volumes.parts]
        out.document({"dry_run": True, **_facts(plan), "volumes": rows})
        return INCOMPLETE if plan.missing else 0
    if plan.replaced:
        context.confirm(f"Will replace the definition of the domain {plan.name}; the files of its disks stay.")
    return _execute(context, plan)


def _lines(plan: DomainPlan) -> list[str]:
    size = shown_bytes(sum(part.data_bytes for part in plan.volumes.parts))
    disks = ", ".join(part.volume for part in plan.volumes.parts)
    lines = [f"will restore {disks} to new files in {plan.directory}: at most {size} of data"]
    if plan.renewed:
        lines.append("another domain has its UUID: it gets a new one, and new MAC addresses")
    how = "replace the definition of" if plan.replaced else "define"
    return [*lines, f"will {how} the domain {plan.name} then, and not start it"]


def _facts(plan: DomainPlan) -> dict[str, object]:
    made = plan.definition
    known = {"domain": plan.name, "uuid": plan.uuid, "renewed": plan.renewed}
    return {**known, "left_out": made.left_out, "opens": made.opens}


def _execute(context: Context, plan: DomainPlan) -> int:
    out = context.out
    rows, failed = _volumes.carried_out(context, plan.volumes, [], [])
    told = {**_facts(plan), "volumes": rows}
    if failed:
        names = ", ".join(row.volume for row in failed)
        out.document({**told, "result": "failed"})
        out.warn(f"the domain {plan.name} was not defined, as disks were not restored: {names}; {_volumes.GOES_ON}")
        return LamellaError.exit_code
    older = plan.define()
    if older:
        out.warn(f"the former state of the TPM is in {older}")
    if plan.missing:
        out.warn(f"the domain lacks disks that the snapshot does not hold: {', '.join(plan.missing)}")
    out.line(f"defined the domain {plan.name}; start it with: virsh start {plan.name}")
    out.document({**told, "result": "incomplete" if plan.missing else "complete"})
    return INCOMPLETE if plan.missing else 0
