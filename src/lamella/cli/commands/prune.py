"""`lamella prune` and `backup --prune`: remove the snapshots that no rule keeps, and give their space back."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

from lamella.base.clock import iso
from lamella.base.errors import IntegrityError, LamellaError
from lamella.cli.arguments import SECRETS, add_dry_run, add_yes
from lamella.cli.commands import _deleting as deleting
from lamella.cli.context import Context
from lamella.cli.local_time import shown_time
from lamella.cli.policy import add_rules, given_rules, policy_of
from lamella.format.records import Ref
from lamella.operations.prune.plan import PruneOptions, PruneResult
from lamella.operations.prune.prune import require_prune_key, run_prune
from lamella.operations.prune.retaining import JudgedSnapshot, RetentionPlan, plan_retention, require_rules
from lamella.repository.repository import Repository


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = (
        "A snapshot stays if any rule keeps it. Rules are applied to each volume by itself, in the calendar of one\n"
        "zone, once to all snapshots and once to the whole ones alone: so damage never removes anything, and the last\n"
        "whole snapshot of a volume stays. What comes from the future stays and does not count. Without any rule\n"
        "nothing is removed.\n\n"
    ) + SECRETS
    parser.add_argument("volume", nargs="*", metavar="VOLUME", help="only these volumes (default: all)")
    add_rules(parser)
    parser.add_argument(
        "--yes-last", action="store_true", help="also remove a volume's last whole snapshot if no rule keeps it"
    )
    deleting.add_space_options(parser)
    add_yes(parser)
    add_dry_run(parser)


def run(context: Context) -> int:
    """Judge, show, ask, remove."""
    args, out = context.args, context.out
    policy = policy_of(context.config.prune, given_rules(args), args.zone)
    with deleting.opened(context, read_only=args.dry_run, shared=context.asks) as health:
        repository = health.repo
        may_delete = repository.keys.prune_seed is not None
        if args.dry_run and not may_delete:
            out.warn("this secret may not delete: only an admin's secret can do what follows")
        elif not args.dry_run:
            require_prune_key(may_delete, repository.store.url)  # before anything is promised
        judged = partial(plan_retention, repository, policy, args.volume, spare_last=not args.yes_last, health=health)
        plan = judged()
        show(context, plan, everything=args.dry_run)
        _say_unproven(context, plan)
        if args.dry_run:
            figures, code = deleting.planned(context, health, _removals(plan), _what(plan))
            out.document({"dry_run": True, **document(plan), **figures})
            return max(code, IntegrityError.exit_code if plan.damaged else 0)
        removals = deleting.agreed(context, health, _what(plan), _removals(plan), lambda: _removals(judged()))
        result = run_prune(repository, removals, deleting.options(args), health, out.report)
    out.document(_reported(context, plan, result))
    return deleting.exit_code(result)


class Pruned(NamedTuple):
    """The result of a prune after a backup: its document, and the exit code."""

    document: dict[str, Any]
    exit_code: int


def check_after_backup(context: Context, repository: Repository) -> None:
    """What would fail after the backup fails before anything is read. Raises UsageError, RepositoryError."""
    require_rules(policy_of(context.config.prune))
    require_prune_key(repository.keys.prune_seed is not None, repository.store.url)


def prune_after_backup(context: Context, volumes: Sequence[str]) -> Pruned:
    """Apply the configured rules to the volumes that were just saved.

    The backup is safe by now: a failure here is said, and is the exit code.
    """
    try:
        with deleting.opened(context, read_only=False) as health:
            plan = plan_retention(health.repo, policy_of(context.config.prune), volumes, health=health)
            show(context, plan, everything=False)
            if plan.removed:
                context.out.say(f"removing {deleting.counted(len(plan.removed))}")
            result = run_prune(health.repo, _removals(plan), PruneOptions(), health, context.out.report)
    except LamellaError as error:
        context.out.warn(f"the backup is saved, but nothing was pruned: {error.message}", error.obj)
        return Pruned({"error": error.message}, error.exit_code)
    return Pruned(_reported(context, plan, result), deleting.exit_code(result))


def _removals(plan: RetentionPlan) -> dict[Ref, str]:
    return {row.selected.snapshot.ref: ", ".join(row.verdict.reasons) for row in plan.removed}


def _what(plan: RetentionPlan) -> str:
    return f"{deleting.counted(len(plan.removed))} and keep {len(plan.kept)}"


def _reported(context: Context, plan: RetentionPlan, result: PruneResult) -> dict[str, Any]:
    """Say what came of it; the document."""
    gone = set(result.removed)
    figures = deleting.report(context, result, f", kept {len(plan.rows) - len(gone)}")
    return {**document(plan, gone), **figures}


def show(context: Context, plan: RetentionPlan, *, everything: bool) -> None:
    """Each snapshot with the reason why it stays or goes; without `everything` only those that go."""
    out = context.out
    rows = [("", "SNAPSHOT", "LOCAL TIME", "WHY")]
    for row in plan.rows if everything else plan.removed:
        word = "keep" if row.verdict.keep else "remove"
        rows.append((word, row.selected.text, _local(row), ", ".join(row.verdict.reasons)))
    if len(rows) > 1 and (everything or not out.quiet):
        out.table(rows)
    for row in plan.damaged if everything else ():
        out.warn(f"{row.selected.text} is not whole: {row.flaw.text if row.flaw else ''}")
    for row in plan.strange:
        out.warn(f"{row.selected.text} is kept and not counted: {row.verdict.reasons[-1]}")


def _say_unproven(context: Context, plan: RetentionPlan) -> None:
    """Warn of unread damage, from which no rule protects."""
    if plan.unproven:
        names = ", ".join(plan.unproven[:10]) + (" and more" if len(plan.unproven) > 10 else "")
        context.out.say(f"unread damage may be in every snapshot of {names}: none passed verify --level full here")


def _local(row: JudgedSnapshot) -> str:
    """As `lamella list` shows it."""
    return shown_time(text) if (text := _time(row))[0].isdigit() else text


def _time(row: JudgedSnapshot) -> str:
    try:
        return iso(row.selected.snapshot.added.time_ms)
    except ValueError:
        return "beyond the calendar"


def document(plan: RetentionPlan, gone: Collection[Ref] | None = None) -> dict[str, Any]:
    """The plan for JSON, or what came of it: only what is `gone` was removed."""
    removed = [row for row in plan.removed if gone is None or row.selected.snapshot.ref in gone]
    kept = [row for row in plan.rows if row not in removed]
    return {
        "removed": [_row(row) for row in removed],
        "kept": [_row(row) for row in kept],
        "unverified": list(plan.unproven),
    }


def _row(row: JudgedSnapshot) -> dict[str, Any]:
    one = row.selected
    return {
        "snapshot": one.snapshot.name,
        "volume": one.volume_name,
        "time": _time(row),
        "reasons": list(row.verdict.reasons),
        "judged": row.verdict.judged,
        "flaw": row.flaw.text if row.flaw is not None else "",
    }
