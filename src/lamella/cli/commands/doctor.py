"""`lamella doctor`: trouble on this machine, in its places or at the repository."""

from __future__ import annotations

import argparse
from pathlib import Path

from lamella.base.clock import iso, now_ms
from lamella.base.errors import LamellaError, NoRepository, SourceError, UsageError
from lamella.cli.amounts import shown_age
from lamella.cli.arguments import SECRETS, add_dry_run, add_yes
from lamella.cli.context import Context
from lamella.cli.shown import shown_bytes
from lamella.cli.sources import keeping
from lamella.cli.terminal import has_terminal
from lamella.crypto.slots import Secret
from lamella.operations.doctor.checkpoints import FOREIGN, CheckpointExamination, CleanUp, FoundCheckpoint
from lamella.operations.doctor.doctor import Check, examine
from lamella.operations.doctor.forget import forget_host, remembered
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
        "--forget-host",
        action="store_true",
        help="remove this host's checkpoints of volumes and its memory, its keys as a writer included",
    )
    add_dry_run(parser)
    add_yes(parser)
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
    if args.forget_host:
        return _forget_host(context)
    if args.dry_run:
        raise UsageError("-n goes with --forget-host: without it and without --fix the doctor changes nothing")
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
    """The removed checkpoints, and those that are left; appends to `checks`."""
    args = context.args
    examination = _files(context)
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


def _forget_host(context: Context) -> int:
    """Remove the moments of this host and its memory."""
    args, out, host, now = context.args, context.out, context.host, now_ms()
    if args.fix or args.owner is not None:
        raise UsageError("--forget-host removes more than --fix does: give only one")
    files, pools = _files(context), PoolExamination(host, keeping(context))
    moments = [one for one in [*files.judged(), *pools.judged()] if one.file.owner == host.owner]
    memory = remembered(host)
    for text in [*(_shown(one, now) for one in moments), *map(str, memory)]:
        out.line(f"{'would remove' if args.dry_run else 'to remove'}  {text}")
    done = CleanUp([], [])
    if not args.dry_run and (moments or memory):
        if not (args.yes or context.asks):
            raise UsageError("without a terminal to ask on, --forget-host needs -y")
        context.confirm(
            f"Will remove {len(moments)} checkpoints of volumes, and what this host remembers in {host.state_dir} "
            f"and {host.cache_dir}. Snapshots stay. The next backup compares whole volumes and comes from a new "
            "host: volumes belong to the old host until --adopt."
        )
        done = forget_host(host, files, pools, args.lock_wait)
        for check in done.failed:
            out.answer(f"TROUBLE  {check.name}: {check.message}")
        out.say(
            "the memory was not removed: it says where the other checkpoints are"
            if done.failed
            else "this host is forgotten"
        )
    rows = [_row(one, now) for one in (moments if args.dry_run else done.removed)]
    out.document({"dry_run": args.dry_run, "removed": rows, "memory": list(map(str, memory)), "ok": not done.failed})
    return 1 if done.failed else 0


def _files(context: Context) -> CheckpointExamination:
    configured = context.config.backup.checkpoint_dir
    more = [Path(text) for text in context.args.source if not text.startswith(("lvm:", "rbd:", "zfs:"))]
    return CheckpointExamination(context.host, more, None if configured is None else Path(configured))


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
    since = shown_age(max(0, now - one.file.changed_ms) // 1000)
    age = "just made" if since == "now" else f"{since} old"
    kind = f"{one.state} {one.file.owner}" if one.state == FOREIGN else one.state
    of = f", of {one.image}" if one.image else ""
    return f"{one.file.path}  {shown_bytes(one.file.held_bytes)}  {age}  {kind}{of}"


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
