"""`lamella delete`: remove snapshots that the user names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lamella.base.errors import NothingMatched, UsageError
from lamella.cli.arguments import SECRETS, add_dry_run, add_yes
from lamella.cli.commands import _deleting as deleting
from lamella.cli.context import Context
from lamella.cli.terminal import can_confirm
from lamella.format.records import Ref
from lamella.operations.prune.health import Health
from lamella.operations.prune.prune import require_prune_key, run_prune
from lamella.operations.prune.removal import mark_removed, require_not_last, require_unpinned
from lamella.operations.shared.selection import Selected, find_volume, select, split_selector
from lamella.repository.repository import Repository

_NAMED = 3
"""Snapshots that a question names; of more it says how many."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = SECRETS
    parser.add_argument(
        "volume", nargs="*", metavar="VOLUME@SNAPSHOT", help="what to remove; with --all-snapshots: VOLUME"
    )
    parser.add_argument("--expelled", action="store_true", help="remove what expelled writers published")
    parser.add_argument("--all-snapshots", action="store_true", help="remove every snapshot of these volumes")
    parser.add_argument("--yes-last", action="store_true", help="also remove a volume's last whole snapshot")
    parser.add_argument(
        "--mark",
        action="store_true",
        help="only mark them as removed, for an admin to see; they stay (all that a writer's secret can do)",
    )
    deleting.add_space_options(parser)
    add_yes(parser)
    add_dry_run(parser)


def run(context: Context) -> int:
    """Do it."""
    args, out = context.args, context.out
    _check(args)
    if not (args.yes or args.dry_run or args.mark) and (args.json or not can_confirm()):
        raise UsageError("nobody can be asked to confirm this", hint="add --yes to remove without asking")
    with deleting.opened(context, read_only=args.dry_run, shared=args.mark or context.asks) as health:
        repository = health.repo
        chosen = _chosen(health, args)
        if not args.mark:
            require_prune_key(repository.keys.prune_seed is not None, repository.store.url)
        if args.dry_run:
            return _would(context, health, chosen)
        if args.mark:
            mark_removed(repository, list(_removals(chosen)))
            _say(context, "marked as removed", chosen)
            out.document({"marked": _rows(chosen), "removed": [], "freed_bytes": 0, "condemned_bytes": 0})
            return 0
        removals = deleting.agreed(
            context, health, _what(chosen), _removals(chosen), lambda: _removals(_chosen(health, args))
        )
        result = run_prune(repository, removals, deleting.options(args), health, out.report)
    gone = [one for one in chosen if one.snapshot.ref in set(result.removed)]
    _say(context, "removed", gone)
    out.document({"removed": _rows(gone), **deleting.report(context, result)})
    return deleting.exit_code(result)


def _what(chosen: Sequence[Selected]) -> str:
    """The snapshots by name, if they are few."""
    names = ", ".join(one.text for one in chosen[:_NAMED])
    more = f" and {len(chosen) - _NAMED} more" if len(chosen) > _NAMED else ""
    return f"{deleting.counted(len(chosen))} ({names}{more})"


def _say(context: Context, word: str, chosen: Sequence[Selected]) -> None:
    for one in chosen:
        context.out.line(f"{word}: {one.text}")


def _rows(chosen: Sequence[Selected]) -> list[dict[str, str]]:
    return [{"snapshot": one.snapshot.name, "volume": one.volume_name} for one in chosen]


def _would(context: Context, health: Health, chosen: Sequence[Selected]) -> int:
    """Show what would be done; marking frees nothing."""
    _say(context, "would be marked as removed" if context.args.mark else "would be removed", chosen)
    if context.args.mark:
        figures, code = {"freed_bytes": 0, "condemned_bytes": 0}, context.warn_of_problems(health.repo)
    else:
        figures, code = deleting.planned(context, health, _removals(chosen), deleting.counted(len(chosen)))
    context.out.document({"dry_run": True, "removed": _rows(chosen), **figures})
    return code


def _check(args: argparse.Namespace) -> None:
    if args.expelled == bool(args.volume):
        raise UsageError("nothing to remove is named" if not args.volume else "--expelled goes with no VOLUME")
    for text in args.volume:
        name, snapshot = split_selector(text)
        if args.all_snapshots and snapshot is not None:
            raise UsageError(f"--all-snapshots goes with a volume's name, not with {text}", obj=text)
        if not args.all_snapshots and snapshot is None:
            hint = f"write {name}@SNAPSHOT, or {name} --all-snapshots"
            raise UsageError(f"{name} names a volume and no snapshot: nothing was removed", obj=name, hint=hint)


def _removals(chosen: Sequence[Selected]) -> dict[Ref, str]:
    return {one.snapshot.ref: "named" for one in chosen}


def _chosen(health: Health, args: argparse.Namespace) -> list[Selected]:
    """The named snapshots that may be removed. Raises NothingMatched, UsageError."""
    if args.expelled:
        return [one for one in select(health.repo, []) if one.snapshot.expelled]
    chosen = _named(health.repo, args.volume, every=args.all_snapshots)
    require_unpinned(chosen)
    if not (args.mark or args.yes_last):
        require_not_last(chosen, health)
    return chosen


def _named(repository: Repository, texts: list[str], *, every: bool) -> list[Selected]:
    """The named snapshots, each once. Raises NothingMatched."""
    if not every:
        return list({one.snapshot.ref: one for one in select(repository, texts)}.values())
    shown = repository.catalogue.shown_names()
    volumes = {volume.volume_id: volume for volume in (find_volume(repository, text) for text in texts)}
    for volume in volumes.values():
        if not volume.snapshots:
            name = shown[volume.volume_id]
            raise NothingMatched(f"volume {name} has no snapshot", obj=name)
    return [
        Selected(shown[volume.volume_id], volume, snapshot)
        for volume in volumes.values()
        for snapshot in volume.snapshots
    ]
