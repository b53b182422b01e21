"""`lamella init`: make a repository."""

from __future__ import annotations

import argparse
from pathlib import Path

from lamella.base.clock import now_ms
from lamella.base.errors import LamellaError, NoRepository, RepositoryError, UsageError
from lamella.cli.arguments import SECRETS, add_dry_run
from lamella.cli.context import Context
from lamella.cli.new_secret import first_secret_source
from lamella.cli.sheet import Sheet, SheetFacts
from lamella.crypto.new_slots import DEFAULT_LOG_N, MIN_WRITTEN_LOG_N, new_recovery_key, recovery_text
from lamella.crypto.slots import Secret
from lamella.format.keyslot import MAX_LOG_N
from lamella.operations.shared.heads import fingerprint
from lamella.repository.create import Created, SlotWanted, create_repository
from lamella.repository.repository import Repository
from lamella.repository.slots import read_marker
from lamella.stores.base import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = SECRETS.replace("asks at", "asks twice at")
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
    sheet = Sheet(out, args.recovery_sheet)
    if args.append_only and not sheet.possible:
        raise UsageError(
            "--append-only needs a place for the only key that may authorise deletion",
            hint="give --recovery-sheet FILE, or run it on a terminal",
        )
    sheet.require_free()
    source = first_secret_source(args, context.env, context.settings)
    _refuse_existing(context)
    if args.dry_run:
        out.line(f"would make a repository at {context.place}, opened by: {source.label}")
        out.document({"dry_run": True, "repository": context.place})
        return 0
    secret = source.read()
    recovery = new_recovery_key() if sheet.possible else None
    created, marks, place = _create(context, secret, recovery, sheet)
    _report(context, created, marks, place, sheet)
    if recovery is None:
        out.warn(
            "there is no recovery key: without the secret just given everything is lost; "
            "make one with: lamella key add --recovery --recovery-sheet FILE"
        )
    else:
        facts = SheetFacts(recovery_text(recovery), place, True, created.repo_id.hex(), marks, created.rescue_sha256)
        sheet.complete(facts)
    return 0


def _refuse_existing(context: Context) -> None:
    try:
        with context.store(read_only=True) as store:
            read_marker(store)
    except NoRepository:
        return
    raise RepositoryError(f"there is already a repository at {context.place}", obj=context.place)


def _create(context: Context, secret: Secret, recovery: Secret | None, sheet: Sheet) -> tuple[Created, str, str]:
    """The repository, its fingerprint and its full place."""
    slots = [SlotWanted(secret, not context.args.append_only)]
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
            return created, fingerprint(repository), store.url


def _discard_unless_made(store: Store, sheet: Sheet) -> None:
    """A sheet is kept as soon as its key could open something."""
    try:
        read_marker(store)
    except NoRepository:
        sheet.discard()
    except LamellaError:
        return


def _report(context: Context, created: Created, marks: str, place: str, sheet: Sheet) -> None:
    out = context.out
    out.line(f"made repository {place}")
    out.line(f"id           {created.repo_id.hex()}")
    out.line(f"fingerprint  {marks}")
    out.line(f"restore.py   SHA-256 {created.rescue_sha256}")
    out.say("volumes share no data with each other; those of one backup --domain NAME do, and share its keys")
    if sheet.path is not None:
        out.line(f"recovery     {sheet.path}: print it, keep it elsewhere, delete the file")
    out.document(
        {
            "repository": place,
            "repository_id": created.repo_id.hex(),
            "fingerprint": marks,
            "restore_py_sha256": created.rescue_sha256,
            "append_only": context.args.append_only,
            "recovery_sheet": None if sheet.path is None else str(sheet.path),
            "recovery_key": sheet.possible,
        }
    )
