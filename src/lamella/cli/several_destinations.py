"""`backup` to several repositories from one frozen moment: each has its result, and one that fails stops no other."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from lamella.base.errors import Absent, LamellaError
from lamella.cli.commands.backup import (
    plan_shown,
    planned,
    pruned_after,
    result_shown,
    say_plan,
)
from lamella.cli.context import Context
from lamella.cli.destination import DestinationContext
from lamella.cli.output import INCOMPLETE
from lamella.crypto.slots import Secret
from lamella.operations.backup.story import (
    BackupOptions,
    BackupPlan,
    BackupResult,
    FailedRequest,
    Request,
    execute_together,
)


@dataclass(slots=True)
class Destination:
    """One of the repositories, and what became of it."""

    text: str
    context: DestinationContext
    plan: BackupPlan | None = None
    result: BackupResult | None = None
    error: LamellaError | None = None
    prune_code: int = 0
    document: dict[str, object] = field(default_factory=dict)

    @property
    def code(self) -> int:
        """The exit code it would have alone."""
        if self.error is not None:
            return self.error.exit_code
        incomplete = self.result is not None and not self.result.complete
        return INCOMPLETE if incomplete else self.prune_code

    @property
    def committed(self) -> bool:
        """Whether there is a new snapshot."""
        return self.result is not None and bool(self.result.snapshot)


def run(
    context: Context, places: Sequence[str], requests: list[Request | FailedRequest], options: BackupOptions
) -> int:
    """Back up to all of them; returns the exit code."""
    secrets: dict[str, Secret] = {}
    destinations = [Destination(text, DestinationContext(context, text, secrets)) for text in places]
    with ExitStack() as held:
        for one in destinations:
            _plan(one, held, requests, options)
        if not context.args.dry_run:
            _execute(context, destinations)
        else:
            for one in destinations:
                _show(one)
    if not context.args.dry_run:
        for one in destinations:
            _show(one)
    failed = [one for one in destinations if one.code]
    word = "complete" if not failed else "incomplete" if any(one.committed for one in destinations) else "failed"
    context.out.document({"result": word, "repositories": [one.document for one in destinations]})
    return _exit_code(destinations, dry_run=context.args.dry_run)


def _plan(one: Destination, held: ExitStack, requests: list[Request | FailedRequest], options: BackupOptions) -> None:
    """Open a repository for as long as the others are used, and plan."""
    try:
        with ExitStack() as opened:
            context = one.context
            repository = opened.enter_context(context.sound_repository(read_only=context.args.dry_run))
            one.plan = planned(context, repository, requests, options)
            held.push(opened.pop_all())
    except LamellaError as error:
        _failed(one, error)


def _execute(context: Context, destinations: Sequence[Destination]) -> None:
    planned_ones = [one for one in destinations if one.plan is not None]
    for one in planned_ones:
        context.out.say(f"to {one.text}:")
        if one.plan is not None:
            say_plan(context.out, one.plan)
    plans = [one.plan for one in planned_ones if one.plan is not None]
    if not plans:
        return
    for one, outcome in zip(planned_ones, execute_together(plans, context.out.report), strict=True):
        one.result = outcome.result
        if outcome.error is not None:
            _failed(one, outcome.error)


def _failed(one: Destination, error: LamellaError) -> None:
    one.error = error
    text = "skipped" if isinstance(error, Absent) else "failed"
    hint = f"; {error.hint}" if error.hint else ""
    one.context.out.warn(f"{one.text}: {text}: {error.message}{hint}")


def _show(one: Destination) -> None:
    out = one.context.out
    out.line(f"{one.text}:")
    if one.error is not None:
        error = one.error
        said: dict[str, object] = {"result": "skipped" if isinstance(error, Absent) else "failed"}
        said["error"] = {"exit": error.exit_code, "kind": error.kind, "object": error.obj, "hint": error.hint}
        said["error"] |= {"message": error.message}  # type: ignore[operator]
        out.line(f"{said['result']}: {error.message}")
    elif one.result is not None:
        said = result_shown(out, one.result)
        pruned = pruned_after(one.context, one.result)
        if pruned is not None:
            said["prune"], one.prune_code = pruned.document, pruned.exit_code
    elif one.plan is not None:
        said = plan_shown(out, one.plan)
    one.document = {"repository": one.text, **said}


def _exit_code(destinations: Sequence[Destination], *, dry_run: bool) -> int:
    """0 if all is done, 3 if a part of it is, else that of the first failure; what was absent counts only alone."""
    there = [one for one in destinations if not isinstance(one.error, Absent)]
    failed = [one for one in there if one.code]
    if not there:
        return Absent.exit_code
    if not failed:
        return 0
    return INCOMPLETE if dry_run or any(one.committed for one in there) else failed[0].code
