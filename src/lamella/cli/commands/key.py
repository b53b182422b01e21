"""`lamella key`: list, add, change and remove the secrets that open the repository."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lamella.base.errors import LamellaError, NothingMatched, UsageError
from lamella.base.names import RESCUE
from lamella.cli.actions import add_actions
from lamella.cli.arguments import SECRETS, add_dry_run, add_yes
from lamella.cli.commands.init import add_kdf_cost
from lamella.cli.context import Context
from lamella.cli.new_files import exists, write_file
from lamella.cli.new_secret import new_secret_source
from lamella.cli.secret import SecretSource
from lamella.cli.sheet import Sheet, SheetFacts
from lamella.cli.values import workers
from lamella.crypto.recovery import recovery_text
from lamella.crypto.slots import MIN_KEY_FILE, Secret
from lamella.format.keyslot import PREFIX, Role, SlotType
from lamella.operations.keyring import (
    TYPE_WORDS,
    SlotRow,
    add_slot,
    export_domain,
    export_inside,
    list_slots,
    remove_slot,
    slots_of,
    writers_slot,
)
from lamella.operations.shared.heads import fingerprint
from lamella.operations.shared.ignored_slots import ignored_text
from lamella.operations.shared.lending import borrower
from lamella.operations.shared.selection import select
from lamella.repository.repository import Repository

_MOST_MINUTES = 1440
_NEW = """\
The new secret comes from one of LAMELLA_NEW_PASSPHRASE, LAMELLA_NEW_PASSPHRASE_FILE, LAMELLA_NEW_PASSPHRASE_COMMAND,
LAMELLA_NEW_PASSPHRASE_FD and the options above. Without any of these the command asks twice at the terminal.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = SECRETS
    add = add_actions(parser, "action")
    add("list", "show the key slots")
    more = add("add", "add a key slot (needs an admin's secret)")
    more.add_argument(
        "--role",
        choices=("admin", "writer"),
        default="admin",
        help="a writer can back up and restore, but not authorise deletion (default: admin)",
    )
    _add_new_secret(more)
    change = add("change", "replace the secret that you give by a new secret of the same type")
    _add_new_secret(change)
    export = add("export-domain", "write a key file that opens the domain of one volume and no other")
    export.add_argument("volume", metavar="VOLUME", help="a volume of the domain; on Qubes OS QUBE:settings")
    export.add_argument(
        "--inside",
        action="store_true",
        help="VOLUME is a name for the files of one qube, which saves them with this key: see lamella files publish",
    )
    export.add_argument("--to", required=True, type=Path, metavar="FILE", help="mode 0600, must not exist")
    add_dry_run(export)
    _add_cache(add("cache", "keep the key of the passphrase for a while, for this login only"))
    _add_rekey(add("rekey", "copy everything into a new repository with new keys, and prove the copy"))
    remove = add("remove", "remove a key slot; its former users may have kept the keys")
    remove.add_argument("slot", metavar="SLOT", help="its name, or a unique beginning; see: lamella key list")
    add_yes(remove)
    add_dry_run(remove)


def _add_cache(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--minutes", type=_minutes, metavar="N", help="ask for the passphrase, and keep its key for N minutes"
    )
    how.add_argument("--forget", action="store_true", help="forget the key now")


def _minutes(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_MINUTES:
        raise argparse.ArgumentTypeError(f"not a number of minutes from 1 to {_MOST_MINUTES}: {text!r}")
    return int(text)


def _add_rekey(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "volume",
        nargs="*",
        default=[],
        metavar="VOLUME[@SNAPSHOT]",
        help="all snapshots of this volume, or only SNAPSHOT (default: everything)",
    )
    parser.add_argument(
        "--to", required=True, metavar="REPO", help="the new repository; an unfinished one of an earlier run is resumed"
    )
    _add_secret_sources(parser)
    parser.add_argument(
        "--recovery-sheet",
        metavar="FILE",
        type=Path,
        help="write the new repository's recovery key to FILE (mode 0600, must not exist); "
        "default: show the key if standard output is a terminal",
    )
    parser.add_argument(
        "--workers", type=workers, metavar="N", help="number of threads (default: suited to this machine)"
    )
    add_kdf_cost(parser)
    add_dry_run(parser)


def _add_new_secret(parser: argparse.ArgumentParser) -> None:
    _add_secret_sources(parser)
    parser.add_argument("--recovery", action="store_true", help="the new secret is a fresh recovery key")
    parser.add_argument(
        "--recovery-sheet",
        metavar="FILE",
        type=Path,
        help="write the recovery key to FILE (mode 0600, must not exist) instead of the terminal",
    )
    add_kdf_cost(parser)
    add_dry_run(parser)


def _add_secret_sources(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _NEW + SECRETS
    parser.add_argument("--new-passphrase-file", metavar="FILE", help="the new passphrase is in FILE")
    parser.add_argument("--new-passphrase-command", metavar="COMMAND", help="COMMAND prints the new passphrase")
    parser.add_argument("--new-passphrase-fd", metavar="FD", help="read the new passphrase from this file descriptor")
    parser.add_argument("--new-keyfile", metavar="FILE", help="the new secret is the key file FILE")
    parser.add_argument("--generate", action="store_true", help="make the file of --new-keyfile; it must not exist")


def run(context: Context) -> int:
    """Do it."""
    actions = {
        "list": _list,
        "add": _add,
        "change": _change,
        "remove": _remove,
        "export-domain": _export,
        "rekey": _rekey,
        "cache": _cache,
    }
    return actions[context.args.action](context)


def _list(context: Context) -> int:
    with context.sound_repository() as repository:
        slots = slots_of(repository)
        rows = list_slots(repository, slots)
        enrolment = "open" if repository.history.admission is None else str(repository.history.admission)
    table = [(row.name.removeprefix(PREFIX), row.type, row.role, _remark(row)) for row in rows]
    context.out.table([("SLOT", "TYPE", "ROLE", ""), *table])
    if slots.ignored:
        context.out.line(ignored_text(slots))
    context.out.line(f"enrolment is {enrolment}")
    document = {"slots": [_row(row) for row in rows], "ignored": len(slots.ignored), "enrolment": enrolment}
    context.out.document(document)
    return 0


def _row(row: SlotRow) -> dict[str, object]:
    return {"name": row.name, "type": row.type, "role": row.role, "current": row.current, "signed": row.recorded}


def _remark(row: SlotRow) -> str:
    remarks = ["opened it now"] if row.current else []
    return ", ".join(
        remarks if row.recorded else [*remarks, "NOT RECORDED: removed, or lamella key add was interrupted"]
    )


def _add(context: Context) -> int:
    wanted = _NewSlot(context)
    with context.sound_repository(read_only=context.args.dry_run) as repository:
        _require_admin(repository)
        if context.args.dry_run:
            return _would(context, f"add a key slot for the secret from {wanted.source.label}")
        name, secret = wanted.add(repository, admin=context.args.role == "admin")
    context.out.line(f"added {TYPE_WORDS[secret.type]} slot {name.removeprefix(PREFIX)}, role {context.args.role}")
    context.out.document({"slot": name, "type": TYPE_WORDS[secret.type], "role": context.args.role})
    return 0


def _export(context: Context) -> int:
    args, out = context.args, context.out
    if args.to.exists():
        raise exists(args.to)
    with context.sound_repository(read_only=not args.inside or args.dry_run) as repository:
        if args.inside:
            return _export_inside(context, repository)
        selected = select(repository, [args.volume])[0]
        content = export_domain(repository, selected.snapshot.added.domain_id)
        names = sorted(
            name
            for id_, name in repository.catalogue.shown_names().items()
            if any(
                one.added.domain_id == selected.snapshot.added.domain_id
                for one in repository.catalogue.volumes[id_].snapshots
            )
        )
    if args.dry_run:
        return _would(context, f"write the key of {', '.join(names)} to {args.to}")
    write_file(args.to, content, overwrite=False)
    out.line(f"{args.to} opens {', '.join(names)} and nothing else; it cannot be taken back")
    out.document({"file": str(args.to), "volumes": names})
    return 0


def _export_inside(context: Context, repository: Repository) -> int:
    args, name = context.args, context.args.volume
    if args.dry_run:
        borrower(repository, name)
        return _would(context, f"write a key for the files of {name} to {args.to}")
    write_file(args.to, export_inside(repository, name), overwrite=False)
    context.out.line(f"{args.to} opens {name} and nothing else; it cannot be taken back")
    context.out.say(
        f"inside: lamella init --keyfile FILE, lamella files backup --ticket; here: lamella files publish {name}"
    )
    context.out.document({"file": str(args.to), "volumes": [name]})
    return 0


def _change(context: Context) -> int:
    wanted = _NewSlot(context)
    with context.sound_repository(read_only=context.args.dry_run) as repository:
        old = repository.unlocked.slot
        _require_admin(repository)
        if wanted.type != old.type:
            text = f"the secret given is a {TYPE_WORDS[old.type]}, the new one would be a {TYPE_WORDS[wanted.type]}"
            raise UsageError(text, hint="use: lamella key add, then lamella key remove")
        if context.args.dry_run:
            return _would(context, f"replace the key slot {old.name.removeprefix(PREFIX)}")
        name, _ = wanted.add(repository, admin=old.role == Role.ADMIN)
        try:
            remove_slot(repository, old.name)
        except LamellaError as error:
            again = f"lamella key remove {old.name.removeprefix(PREFIX)}"
            error.hint = f"the new secret opens the repository, and the old one still does; with the new one: {again}"
            raise
    context.out.line(
        f"slot {name.removeprefix(PREFIX)} replaces {old.name.removeprefix(PREFIX)}; "
        "whoever knows the old secret may have kept the keys"
    )
    context.out.document({"slot": name, "removed": old.name, "type": TYPE_WORDS[old.type]})
    return 0


def _remove(context: Context) -> int:
    with context.sound_repository(read_only=context.args.dry_run) as repository:
        row = _find(list_slots(repository), context.args.slot)
        short = row.name.removeprefix(PREFIX)
        if context.args.dry_run:
            return _would(context, f"remove the {row.type} slot {short}")
        context.confirm(f"Will remove the {row.type} slot {short} ({row.role}): its secret opens nothing any more.")
        remove_slot(repository, row.name)
    context.out.line(f"removed {row.type} slot {short}; its former users may have kept the keys")
    context.out.document({"removed": row.name, "type": row.type, "role": row.role})
    return 0


def _cache(context: Context) -> int:
    from lamella.cli.agent import cache  # speaks to the kernel: the other actions do not

    return cache(context)


def _rekey(context: Context) -> int:
    from lamella.cli.rekey import run_rekey  # copies and verifies: the other actions need neither

    return run_rekey(context)


def _find(rows: list[SlotRow], text: str) -> SlotRow:
    start = text if text.startswith(PREFIX) else PREFIX + text
    found = [row for row in rows if row.name.startswith(start)]
    if len(found) == 1:
        return found[0]
    if found:
        raise NothingMatched(f"{text} fits several key slots", obj=text, hint="see: lamella key list")
    raise NothingMatched(f"there is no key slot {text}", obj=text, hint="see: lamella key list")


def _would(context: Context, text: str) -> int:
    context.out.line(f"would {text}")
    context.out.document({"dry_run": True})
    return 0


def _require_admin(repository: Repository) -> None:
    """Before anything is asked for or written."""
    if repository.keys.prune_seed is None:
        raise writers_slot()


class _NewSlot:
    """The secret to add, from the options to the slot. Nothing is read or made before `add`."""

    def __init__(self, context: Context) -> None:
        args = context.args
        self._context = context
        self._sheet = Sheet(context.out, args.recovery_sheet)
        self._key_file = Path(args.new_keyfile) if args.new_keyfile and args.generate else None
        if args.generate and not args.new_keyfile:
            raise UsageError("--generate belongs to --new-keyfile FILE")
        if args.recovery_sheet is not None and not args.recovery:
            raise UsageError("--recovery-sheet belongs to --recovery")
        if args.recovery and not self._sheet.possible:
            raise UsageError(
                "a new recovery key needs a place", hint="give --recovery-sheet FILE, or run it on a terminal"
            )
        self._sheet.require_free()
        if self._key_file is not None and (self._key_file.exists() or self._key_file.is_symlink()):
            raise exists(self._key_file)
        self.source: SecretSource = new_secret_source(args, context.env)

    @property
    def type(self) -> SlotType:
        """The type of the new secret."""
        types = {"--recovery": SlotType.RECOVERY, "--new-keyfile": SlotType.KEYFILE}
        return types.get(self.source.label, SlotType.PASSPHRASE)

    def add(self, repository: Repository, *, admin: bool) -> tuple[str, Secret]:
        """Make the slot; returns its object name and the secret. What was made for a slot that failed is removed."""
        if self._key_file is not None:
            write_file(self._key_file, os.urandom(MIN_KEY_FILE), overwrite=False)
        try:
            return self._added(repository, admin)
        except LamellaError:
            if self._key_file is not None:
                self._key_file.unlink(missing_ok=True)
            raise

    def _added(self, repository: Repository, admin: bool) -> tuple[str, Secret]:
        secret, log_n = self.source.read(), self._context.args.kdf_cost
        if secret.type != SlotType.RECOVERY:
            return add_slot(repository, secret, admin=admin, log_n=log_n), secret
        text, place = recovery_text(secret), repository.store.url
        self._sheet.reserve(SheetFacts(text, place, admin))
        name = add_slot(repository, secret, admin=admin, log_n=log_n)
        rescue = repository.catalogue.files.get(RESCUE)
        rescue_sha256 = "unknown" if rescue is None else rescue.sha256.hex()
        marks = fingerprint(repository)
        self._sheet.complete(SheetFacts(text, place, admin, repository.repo_id.hex(), marks, rescue_sha256))
        return name, secret
