"""`lamella doctor`: trouble on this machine, in its places or at the repository."""

from __future__ import annotations

import argparse
from pathlib import Path

from lamella.base.clock import iso, now_ms
from lamella.base.errors import LamellaError, NoRepository, SourceError, UsageError
from lamella.cli.arguments import SECRETS
from lamella.cli.context import Context
from lamella.cli.shown import shown_bytes, shown_seconds
from lamella.cli.sources import keeping
from lamella.cli.terminal import has_terminal
from lamella.crypto.slots import Secret
from lamella.operations.doctor.checkpoints import FOREIGN, CheckpointExamination, CleanUp, FoundCheckpoint
from lamella.operations.doctor.doctor import Check, examine
from lamella.operations.doctor.lvm import PoolExamination
from lamella.repository.slots import read_marker
from lamella.stores.base import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = (
        "Without REPO the doctor examines this machine only; without a secret it examines nothing inside the\n"
        "repository. It lists the checkpoints of this host's sources and of SOURCE. As root it also examines all thin\n"
        "pools of LVM: Lamella's snapshots in them, reservations of their metadata, and unfinished restores.\n\n"
        + SECRETS
    )
    parser.add_argument("source", nargs="*", metavar="SOURCE", help="also examine the checkpoints of this image")
    parser.add_argument("--fix", action="store_true", help="remove what interrupted runs of this host left behind")
    parser.add_argument(
        "--owner", type=_owner, metavar="ID", help="with --fix: remove the checkpoints of this owner instead"
    )


def _owner(text: str) -> str:
    if len(text) != 8 or set(text) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError("an owner is 8 hexadecimal digits, as the list of checkpoints shows them")
    return text


def run(context: Context) -> int:
    """Examine, and print every check."""
    args, out = context.args, context.out
    if args.owner is not None and not args.fix:
        raise UsageError("--owner names whose checkpoints --fix removes: it needs --fix")
    checks = _checks(context)
    removed, found = _checkpoints(context, checks)
    for check in checks:
        tell = out.line if check.ok else out.answer
        tell(f"{'ok     ' if check.ok else 'TROUBLE'}  {check.name}: {check.message}")
    now = now_ms()
    for one in removed:
        out.line(f"removed  {_shown(one, now)}")
    for one in found:
        out.line(f"found    {_shown(one, now)}")
    rows = [{"name": check.name, "ok": check.ok, "message": check.message} for check in checks]
    sound = all(check.ok for check in checks)
    out.document(
        {
            "checks": rows,
            "ok": sound,
            "checkpoints": [_row(one, now) for one in found],
            "removed": [_row(one, now) for one in removed],
        }
    )
    return max((check.exit_code for check in checks if not check.ok), default=0)


def _checkpoints(context: Context, checks: list[Check]) -> tuple[list[FoundCheckpoint], list[FoundCheckpoint]]:
    """What was removed, and what is there afterwards; adds to the checks what is to be said of it."""
    args, configured = context.args, context.config.backup.checkpoint_dir
    more = [Path(text) for text in args.source if not text.startswith("lvm:")]
    examination = CheckpointExamination(context.host, more, None if configured is None else Path(configured))
    done = CleanUp([], [])
    found: list[FoundCheckpoint] = []
    try:
        if args.owner is not None:
            done = examination.remove_owned_by(args.owner)
        elif args.fix:
            done = examination.remove_leftovers(args.lock_wait)
        checks += [*done.failed, examination.check()]
        found = examination.judged()
    except SourceError as error:
        checks.append(Check("checkpoints", False, error.message))
    in_pools = _in_pools(context, checks)
    return done.removed + in_pools[0], found + in_pools[1]


def _in_pools(context: Context, checks: list[Check]) -> tuple[list[FoundCheckpoint], list[FoundCheckpoint]]:
    """The same for thin pools."""
    args = context.args
    examination = PoolExamination(context.host, keeping(context))
    done = CleanUp([], [])
    try:
        if args.owner is not None:
            done = examination.remove_owned_by(args.owner, args.lock_wait)
        elif args.fix:
            done = examination.mend(args.lock_wait)
        checks += [*done.failed, *examination.checks()]
        return done.removed, examination.judged()
    except SourceError as error:
        checks.append(Check("thin pools", False, error.message))
        return done.removed, []


def _shown(one: FoundCheckpoint, now: int) -> str:
    age = shown_seconds(max(0, now - one.file.changed_ms) // 1000)
    kind = f"{one.state} {one.file.owner}" if one.state == FOREIGN else one.state
    of = f" of {one.image}" if one.image else ""
    return f"{one.file.path}  {shown_bytes(one.file.held_bytes)}  {age} old  {kind}{of}"


def _row(one: FoundCheckpoint, now: int) -> dict[str, object]:
    return {
        "file": str(one.file.path),
        "image": one.image,
        "owner": one.file.owner,
        "state": one.state,
        "bytes": one.file.held_bytes,
        "time": iso(one.file.changed_ms),
        "age_seconds": max(0, now - one.file.changed_ms) // 1000,
    }


def _checks(context: Context) -> list[Check]:
    try:
        named = bool(context.place)
    except LamellaError as error:
        context.config.require_valid()
        context.out.say(f"the repository is left out: {error.message}")
        named = False
    if not named:
        return examine(context.host, None, None)
    context.given_secret()
    try:
        with context.store() as store:
            return examine(context.host, store, _secret(context, store), context.args.expect)
    except NoRepository as error:
        text = f"{context.place}: {error.message}"
        return [*examine(context.host, None, None), Check("repository", False, text)]


def _secret(context: Context, store: Store) -> Secret | None:
    """The secret, if there is anything for it to open, and somebody to give it."""
    try:
        read_marker(store)
    except LamellaError:
        return None  # a check of its own says why
    if context.given_secret() is None and not has_terminal():
        context.out.say("no secret is given: the repository's history is left out")
        return None
    return context.secret()
