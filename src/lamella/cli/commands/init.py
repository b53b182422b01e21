"""`lamella init`: make a repository."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.base.clock import now_ms
from lamella.base.errors import LamellaError, NoRepository, RepositoryError, UsageError
from lamella.cli.arguments import SECRETS, add_dry_run
from lamella.cli.context import Context
from lamella.cli.new_secret import SHORTEST, first_secret_source
from lamella.cli.output import Output
from lamella.cli.sheet import Sheet, SheetFacts
from lamella.crypto.new_slots import DEFAULT_LOG_N, MIN_WRITTEN_LOG_N
from lamella.crypto.recovery import new_recovery_key, recovery_text
from lamella.crypto.slots import Secret, is_domain_key
from lamella.format.keyslot import MAX_LOG_N, SlotType
from lamella.operations.shared.heads import fingerprint
from lamella.repository.create import Created, SlotWanted, create_repository
from lamella.repository.repository import Repository
from lamella.repository.slots import read_marker
from lamella.stores.base import Store

if TYPE_CHECKING:
    from lamella.cli.saved_name import SavedName


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = SECRETS.replace("asks at", "asks twice at")
    parser.add_argument("place", nargs="?", metavar="REPO", help="where to make it; the same as -r REPO")
    parser.add_argument(
        "--recovery-sheet",
        metavar="FILE",
        type=Path,
        help="write the recovery key, and what else an emergency needs, to FILE (mode 0600, must not exist); "
        "default: show them if standard output is a terminal",
    )
    parser.add_argument(
        "--append-only",
        action="store_true",
        help="the secret given here can back up and restore, but cannot authorise deletion; only the recovery key can",
    )
    parser.add_argument(
        "--save-as",
        metavar="NAME",
        help="write the repository into the configuration as NAME; without any other default it becomes the default",
    )
    add_kdf_cost(parser)
    add_dry_run(parser)


def add_kdf_cost(parser: argparse.ArgumentParser) -> None:
    """--kdf-cost, wherever a passphrase slot may be made."""
    parser.add_argument(
        "--kdf-cost",
        type=int,
        choices=range(MIN_WRITTEN_LOG_N, MAX_LOG_N + 1),
        default=DEFAULT_LOG_N,
        metavar="N",
        help=f"cost of guessing the passphrase: scrypt with 2^N, {MIN_WRITTEN_LOG_N} to {MAX_LOG_N} "
        f"(default {DEFAULT_LOG_N}: 256 MiB of memory)",
    )


def run(context: Context) -> int:
    """Make it."""
    args, out = context.args, context.out
    if args.place is not None and args.repo not in (None, args.place):
        raise UsageError(f"two places are named: {args.place} and {args.repo}")
    args.repo = args.place or args.repo
    sheet = Sheet(out, args.recovery_sheet)
    if args.append_only and not sheet.possible:
        raise UsageError(
            "--append-only needs a place for the only key that may authorise deletion",
            hint="give --recovery-sheet FILE, or run it on a terminal",
        )
    sheet.require_free()
    source = first_secret_source(args, context.env, context.settings)
    saved = None if args.save_as is None else _saved_name(context)
    _refuse_existing(context)
    if args.dry_run:
        out.line(f"would make a repository at {context.place}, opened by: {source.label}")
        out.document({"dry_run": True, "repository": context.place})
        return 0
    secret = source.read()
    if is_domain_key(secret) and (args.append_only or args.recovery_sheet is not None):
        raise UsageError("a store that a lent key opens has no recovery key: whoever lent the key holds everything")
    if secret.type == SlotType.PASSPHRASE and len(secret.value) < SHORTEST:
        out.warn(f"a passphrase of fewer than {SHORTEST} characters is soon guessed: lamella key change")
    made = make_repository(context, secret, sheet, admin=not args.append_only)
    _report(context, made)
    made.finish_sheet(out)
    if made.lifecycle:
        out.line("the rule for the bucket's lifecycle, beside any other rules of the bucket:")
        out.line(made.lifecycle.rstrip("\n"))
    if saved is not None:
        saved.write(made.place)
        out.say(f"named {args.save_as} in {saved.path}")
    named = "" if saved is not None or not args.repo else f" -r {shlex.quote(args.repo)}"
    out.say(f"next: lamella backup{named} SOURCE..., or lamella setup for one that runs by itself")
    return 0


def _saved_name(context: Context) -> SavedName:
    from lamella.cli.saved_name import SavedName  # only where it is wanted

    return SavedName(context, context.args.save_as)


def _refuse_existing(context: Context) -> None:
    try:
        with context.store(read_only=True) as store:
            read_marker(store)
    except NoRepository:
        return
    raise RepositoryError(f"there is already a repository at {context.place}", obj=context.place)


@dataclass(frozen=True, slots=True)
class Made:
    """A repository that was just made: its full place, its fingerprint, and the sheet that has its recovery key."""

    created: Created
    place: str
    fingerprint: str
    sheet: Sheet
    recovery: Secret | None
    lent: bool = False
    """The key of one domain of another repository opens it: there is no other secret (docs/decisions/0107)."""

    @property
    def lifecycle(self) -> str:
        """The rule that the bucket has to be given (s3: cold-after=); empty elsewhere."""
        if "cold-after=" not in self.place:
            return ""
        from lamella.cli.fleet.policies import s3_lifecycle  # few repositories become cold

        return s3_lifecycle(self.place)

    def finish_sheet(self, out: Output) -> None:
        """Complete the recovery sheet, or warn that there is no recovery key."""
        if self.lent:
            return
        if self.recovery is None:
            out.warn(
                "there is no recovery key: without the secret just given everything is lost; "
                "make one with: lamella key add --recovery --recovery-sheet FILE"
            )
            return
        text, created = recovery_text(self.recovery), self.created
        facts = SheetFacts(text, self.place, True, created.repo_id.hex(), self.fingerprint, created.rescue_sha256)
        self.sheet.complete(facts)


def make_repository(context: Context, secret: Secret, sheet: Sheet, *, admin: bool) -> Made:
    """Make the repository of the context; its recovery key is on the sheet before it opens anything."""
    recovery = new_recovery_key() if sheet.possible and not is_domain_key(secret) else None
    slots = [SlotWanted(secret, admin)]
    if recovery is not None:
        slots.append(SlotWanted(recovery, True))
    with context.store(create=True) as store:
        if recovery is not None:
            sheet.reserve(SheetFacts(recovery_text(recovery), store.url, True))
        try:
            created = create_repository(store, context.host, slots, now_ms, log_n=context.args.kdf_cost)
        except (LamellaError, KeyboardInterrupt):
            _discard_unless_made(store, sheet)
            raise
        with Repository.open(store, recovery or secret, context.host, lock_wait=context.args.lock_wait) as repository:
            lent = is_domain_key(secret)
            return Made(created, store.url, fingerprint(repository), sheet, recovery, lent)


def _discard_unless_made(store: Store, sheet: Sheet) -> None:
    """A sheet is kept as soon as its key could open something."""
    try:
        read_marker(store)
    except NoRepository:
        sheet.discard()
    except LamellaError:
        return


def _report(context: Context, made: Made) -> None:
    out, created, sheet = context.out, made.created, made.sheet
    out.line(f"made repository {made.place}")
    out.line(f"id           {created.repo_id.hex()}")
    out.line(f"fingerprint  {made.fingerprint}")
    out.line(f"restore.py   SHA-256 {created.rescue_sha256}")
    out.say("volumes share no data with each other; those of one backup --domain NAME do, and share its keys")
    if sheet.path is not None:
        out.line(f"recovery     {sheet.path}: print it, keep it elsewhere, delete the file")
    out.document(
        {
            "repository": made.place,
            "repository_id": created.repo_id.hex(),
            "fingerprint": made.fingerprint,
            "restore_py_sha256": created.rescue_sha256,
            "append_only": context.args.append_only,
            "recovery_sheet": None if sheet.path is None else str(sheet.path),
            "recovery_key": made.recovery is not None,
            **({"lifecycle": made.lifecycle} if made.lifecycle else {}),
        }
    )
