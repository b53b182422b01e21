"""Cold packs before a restore or an export: listed, asked for with consent, waited for (docs/decisions/0100)."""

from __future__ import annotations

import time
from collections.abc import Sequence

from lamella.base.errors import Interrupted, ObjectCold
from lamella.cli.context import Context
from lamella.cli.shown import shown_bytes
from lamella.operations.shared.selection import Selected
from lamella.operations.shared.thawing import ThawPlan, ask, plan_thaw, wait
from lamella.repository.repository import Repository

_GOES_ON = "the service goes on thawing; the same command goes on from there"
_LISTED = 20


def thaw_first(context: Context, repository: Repository, selected: Sequence[Selected]) -> dict[str, object]:
    """Have everything thawed that these snapshots need; for the document, what that was.

    Without --thaw a person at the terminal is asked. Raises ObjectCold where nobody consents, Interrupted, StoreError.
    """
    args, packs, size = context.args, 0, 0
    while (plan := plan_thaw(repository, selected)).packs:
        packs, size = packs + len(plan.packs), size + plan.total_bytes
        _tell(context, plan)
        if _is_dry(context):
            break
        _consent(context, plan)
        try:
            ask(repository, plan, args.thaw_days, args.thaw_tier)
            context.out.say(f"waiting for the service, which thaws for {args.thaw_days} days; Ctrl-C loses nothing")
            wait(repository, plan, time.sleep, context.out.report)
        except KeyboardInterrupt:
            raise Interrupted("interrupted", hint=_GOES_ON) from None
    return {"thawed_packs": packs, "thawed_bytes": size} if packs else {}


def _tell(context: Context, plan: ThawPlan) -> None:
    """The packs, and how much they are: all of them with -v."""
    out = context.out
    asked = f", {len(plan.thawing)} of them asked for already" if plan.thawing else ""
    more = "; they hold what says which others are needed" if plan.first else ""
    text = f"packs that must be thawed first: {len(plan.packs)}, {shown_bytes(plan.total_bytes)}{asked}{more}"
    out.say(text)
    shown = list(plan.packs.items())
    everything = out.verbose or _is_dry(context)
    for name, size in shown if everything else shown[:_LISTED]:
        out.say(f"  {name} {shown_bytes(size)}")
    if len(shown) > _LISTED and not everything:
        out.say(f"  and {len(shown) - _LISTED} more; -v lists all")


def _is_dry(context: Context) -> bool:
    return bool(getattr(context.args, "dry_run", False))  # an export knows no such option


def _consent(context: Context, plan: ThawPlan) -> None:
    """Only what nobody asked for yet costs anything."""
    if not plan.cold or context.args.thaw:
        return
    size = shown_bytes(sum(plan.cold.values()))
    if context.asks:
        context.confirm(f"The service will thaw {len(plan.cold)} packs, {size}, and charge for it.")
        return
    text = f"{len(plan.cold)} packs, {size}, must be thawed first"
    hint = "add --thaw: the service charges for it, and takes minutes to days"
    raise ObjectCold(text, obj=context.place, hint=hint)
