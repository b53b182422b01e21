"""`backup --prune`: the configured rules, applied to the volumes that were just saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lamella.base.errors import LamellaError
from lamella.cli import deleting
from lamella.cli.context import Context
from lamella.cli.policy import policy_of
from lamella.operations.prune.prune import PruneOptions, require_prune_key
from lamella.operations.prune.retaining import plan_retention, require_rules
from lamella.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class Pruned:
    """What became of it."""

    document: dict[str, Any]
    exit_code: int


def check(context: Context, repository: Repository) -> None:
    """What would fail afterwards fails before anything is read. Raises UsageError, RepositoryError."""
    require_rules(policy_of(context.config.prune))
    require_prune_key(repository.keys.prune_seed is not None, repository.store.url)


def prune(context: Context, volumes: Sequence[str]) -> Pruned:
    """Remove what no rule keeps. The backup is safe by now: a failure here is said, and is the exit code."""
    from lamella.cli.commands.prune import document, show

    try:
        with deleting.opened(context, read_only=False) as health:
            plan = plan_retention(health.repo, policy_of(context.config.prune), volumes, health=health)
            show(context, plan, everything=False)
            result = deleting.carry_out(context, health, plan.refs, PruneOptions())
    except LamellaError as error:
        context.out.warn(f"the backup is saved, but nothing was pruned: {error.message}", error.obj)
        return Pruned({"error": error.message}, error.exit_code)
    figures = deleting.report(context, result)
    return Pruned({**document(plan), **figures}, deleting.exit_code(result))
