"""The common part of `prune` and `delete`: opening for deletion, carrying it out, and the report."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lamella.base.clock import iso
from lamella.base.errors import StoreRefused
from lamella.base.ids import WriterId
from lamella.cli.amounts import age, percent
from lamella.cli.context import Context
from lamella.cli.shown import shown_bytes
from lamella.format.records import Ref
from lamella.operations.prune.health import Health
from lamella.operations.prune.plan import Fate, PruneOptions, PrunePlan, PruneResult, plan_prune

OTHERS_DELAY_MS = 72 * 3600 * 1000
"""How long removed snapshots of other hosts are kept, unless --remove-delay says otherwise."""


def add_space_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how much space to win back."""
    parser.add_argument(
        "--max-unused",
        type=percent,
        metavar="P%",
        help=f"rewrite packs until at most so much is unneeded (default {PruneOptions().max_unused:g}%% of what is)",
    )
    parser.add_argument("--no-repack", action="store_true", help="delete only packs of which nothing is needed")
    parser.add_argument(
        "--remove-delay",
        type=age,
        metavar="AGE",
        help="keep removed data for AGE after this host first saw the removal, e.g. 14d (default: 72h for snapshots "
        "of other hosts, none for this host's own)",
    )
    parser.add_argument(
        "--grace",
        type=age,
        metavar="AGE",
        help="at a destination without locks keep condemned packs for at least AGE (default 1d)",
    )
    parser.add_argument(
        "--retire",
        type=_writer_id,
        action="append",
        default=[],
        metavar="WRITER",
        help="stop waiting for a writer silent for 30 days; WRITER is the id that prune printed",
    )


def options(args: argparse.Namespace) -> PruneOptions:
    """The limits of a prune, from the options."""
    unused = PruneOptions().max_unused if args.max_unused is None else args.max_unused
    grace = PruneOptions().grace_ms if args.grace is None else args.grace
    return PruneOptions(
        repack=not args.no_repack,
        max_unused=unused,
        grace_ms=grace,
        remove_delay_ms=args.remove_delay or 0,
        others_delay_ms=OTHERS_DELAY_MS if args.remove_delay is None else 0,
        last=args.yes_last,
        retire=tuple(args.retire),
    )


@contextmanager
def opened(context: Context, *, read_only: bool, shared: bool = False) -> Iterator[Health]:
    """What judges the repository with its whole history, which must be sound, and alone: unless nothing is written, or
    `shared`.
    """
    exclusive = not (read_only or shared)
    with context.repository(read_only=read_only, whole=True, stored=True, exclusive=exclusive) as repository:
        if not read_only:
            if not repository.store.abilities.write:
                raise StoreRefused("nothing was removed: the repository can only be read", obj=repository.store.url)
            repository.require_sound_history()
        with Health(repository, context.out.report) as health:
            yield health


def counted(count: int) -> str:
    """`1 snapshot`, `2 snapshots`."""
    return f"{count} snapshot{'' if count == 1 else 's'}"


def agreed(
    context: Context, health: Health, what: str, removals: Mapping[Ref, str], again: Callable[[], Mapping[Ref, str]]
) -> Mapping[Ref, str]:
    """Ask whether these snapshots may go; those that may, with the repository alone from here on where that can be had.

    `what` names them: it follows "Will remove".

    While a person thinks, others go on: what came to be needed meanwhile stays, and nothing goes that was not shown.
    Raises Interrupted for a no, Locked, RolledBack.
    """
    if not context.asks:
        if removals:
            context.out.say(f"removing {counted(len(removals))}")
        return removals
    repository = health.repo
    if removals:
        plan = plan_prune(repository, removals, options(context.args), health)
        later = f", and {shown_bytes(plan.condemned_bytes)} by a later prune" if plan.condemned_bytes else ""
        frees = f"This frees about {shown_bytes(plan.freed_bytes)}{later}, and cannot be undone."
        context.confirm(f"Will remove {what}. {frees}")
    if repository.store.abilities.exclusive_lock:
        context.lock_exclusively(repository)
    else:
        repository.reload(whole=True, stored=True)
    repository.require_sound_history()
    health.begin()
    return {ref: reason for ref, reason in again().items() if ref in removals}


def planned(context: Context, health: Health, removals: Mapping[Ref, str], what: str) -> tuple[dict[str, Any], int]:
    """Say what a prune would do now, with the bytes it would free; the figures for JSON, and the exit code."""
    out = context.out
    code = context.warn_of_problems(health.repo)
    plan = plan_prune(health.repo, removals, options(context.args), health)
    for pack in plan.packs:
        out.detail(f"would {pack.fate.value} pack {pack.use.pack.hex()}, {shown_bytes(pack.use.length)}: {pack.reason}")
    for fate in Fate:
        uses = plan.uses(fate)
        if uses:
            packs = f"{len(uses)} pack{'' if len(uses) == 1 else 's'}"
            out.line(f"would {fate.value} {packs}, {shown_bytes(sum(use.length for use in uses))}")
    for name in plan.revived:
        out.say(f"{name} would be back: it had been removed, and its volume has no whole snapshot left")
    for error in plan.undecided if not code else ():
        out.warn(_blocked(error.message, "nothing would be deleted"), error.obj)
    figures = _figures(context, plan, f"would remove {what}, and free")
    figures["blocked"] = [error.message for error in plan.undecided]
    figures["packs"] = [
        {"pack": use.pack.hex(), "fate": fate.value, "reason": reason, "bytes": use.length, "written_bytes": written}
        for use, fate, reason, written in plan.packs
    ]
    return figures, max([code, *(error.exit_code for error in plan.undecided)])


def report(context: Context, result: PruneResult, kept: str = "") -> dict[str, Any]:
    """Say what came of it; the figures for JSON."""
    out = context.out
    for name in result.revived:
        out.say(f"{name} is back: it had been removed, and its volume had no whole snapshot left")
    for error in result.damaged:
        out.warn(f"{error.message}; {error.hint}", error.obj)
    for error in result.blocked:
        out.warn(_blocked(error.message), error.obj)
    what = f"removed {counted(len(result.removed))}{kept}, freed"
    figures = _figures(context, result, what, result.condemned_until_ms)
    figures["condemned_until"] = iso(result.condemned_until_ms) if result.condemned_until_ms else ""
    figures["deleted_commits"] = result.deleted_commits
    figures["blocked"] = [error.message for error in result.blocked]
    return figures


_NUMBERS = ("freed_bytes", "condemned_bytes", "repacked_bytes", "deleted_packs", "live_bytes", "dead_bytes")


def _figures(context: Context, found: PrunePlan | PruneResult, freed: str, until_ms: int = 0) -> dict[str, Any]:
    """Say what a plan and a result have in common; the same for JSON."""
    for note in [*found.notes, *found.waiting]:
        context.out.say(note)
    line = f"{freed} {shown_bytes(found.freed_bytes)}"
    if found.condemned_bytes:
        until = f", from {iso(until_ms)} on" if until_ms else ""
        line += f"; {shown_bytes(found.condemned_bytes)} can be freed by a later prune{until}"
    context.out.line(line)
    lists = {name: list(getattr(found, name)) for name in ("waiting", "revived", "notes")}
    damaged = [error.obj for error in found.damaged]
    return {name: getattr(found, name) for name in _NUMBERS} | lists | {"damaged": damaged}


def _blocked(text: str, nothing: str = "nothing was deleted") -> str:
    return text if text.startswith("nothing ") else f"{nothing}: {text}"


def exit_code(result: PruneResult) -> int:
    """0, or the largest of what kept something from being deleted and of what is not whole."""
    return max((error.exit_code for error in [*result.blocked, *result.damaged]), default=0)


def _writer_id(text: str) -> WriterId:
    """The id of a writer. Raises ArgumentTypeError."""
    try:
        number = bytes.fromhex(text)
    except ValueError:
        number = b""
    if len(number) != 16:
        raise argparse.ArgumentTypeError(f"not a writer: {text!r}; it has 32 hex digits")
    return WriterId(number)
