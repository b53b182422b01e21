"""`lamella key rekey`: everything, or chosen snapshots, in a new repository with new keys (docs/decisions/0042).

Keys cannot be exchanged in place: whoever held them may have kept them, and every object is sealed under them. So the
snapshots are copied, each chunk is checked and sealed anew, and the copy is read back before anybody relies on it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lamella.base.errors import IntegrityError, KeyRefused, NoRepository, UsageError
from lamella.base.names import RESCUE
from lamella.cli.commands.init import make_repository
from lamella.cli.context import Context
from lamella.cli.destination import OtherContext
from lamella.cli.new_files import write_file
from lamella.cli.new_secret import new_secret_source
from lamella.cli.output import INCOMPLETE
from lamella.cli.secret import FIRST, SecretSource
from lamella.cli.sheet import Sheet
from lamella.cli.shown import shown_bytes, shown_seconds
from lamella.crypto.slots import MIN_KEY_FILE, Secret
from lamella.operations.copy.copy import CopyOptions, CopyResult, plan_copy
from lamella.operations.copy.plan import State, choose
from lamella.operations.keyring import list_slots
from lamella.operations.shared.findings import VerifyResult
from lamella.operations.verify.verify import VerifyOptions, verify
from lamella.repository.repository import Repository
from lamella.repository.slots import read_marker, unlock
from lamella.run.allocator import keep_freed_memory


class _NewContext(OtherContext):
    """The new repository; its secret is read once, from the options and variables of a new secret."""

    def __init__(self, first: Context, source: SecretSource) -> None:
        super().__init__(first, first.args.to, FIRST)
        self._source = source
        self._secret: Secret | None = None

    def given_secret(self) -> SecretSource:
        return self._source

    def secret(self) -> Secret:
        self._secret = self._secret or self._source.read()
        return self._secret

    def require_expected(self, repository: Repository) -> None:
        """--expect is about the first repository."""

    def exists(self) -> bool:
        """Whether the repository is there: an earlier run made it."""
        try:
            with self.store(read_only=True) as store:
                read_marker(store)
        except NoRepository:
            return False
        return True


def run_rekey(context: Context) -> int:
    """Make the new repository or resume it, copy, verify, and say what remains to be done by hand."""
    keep_freed_memory()
    args, out = context.args, context.out
    sheet = Sheet(out, args.recovery_sheet)
    new = _NewContext(context, _new_secret(context))
    resumed = new.exists()
    if not resumed:
        sheet.require_free()
    with context.sound_repository() as source:
        rows = choose(source, args.volume)
        if args.dry_run:
            volumes = len({one.selected.volume.volume_id for one in rows})
            verb = "resume" if resumed else "make"
            out.line(f"would {verb} {new.place} and copy what it lacks of {len(rows)} snapshots, {volumes} volumes")
            out.document({"dry_run": True, "repository": new.place, "resumed": resumed, "snapshots": len(rows)})
            return 0
        _require_new(source, new)
        if not resumed:
            made = make_repository(new, new.secret(), sheet, admin=True)
            made.finish_sheet(out)
        with new.sound_repository(read_only=False) as target:
            copied = _copy(context, source, target)
            proof = _prove(context, target)
            return _report(context, _Outcome(source, target, copied, proof))


def _new_secret(context: Context) -> SecretSource:
    """The source of the new secret. `--generate` makes the key file, unless an earlier run has made it."""
    args = context.args
    if args.generate and not args.new_keyfile:
        raise UsageError("--generate belongs to --new-keyfile FILE")
    args.recovery = False
    source = new_secret_source(args, context.env)
    if not args.generate:
        return source

    def generated() -> Secret:
        if not Path(args.new_keyfile).exists():
            write_file(Path(args.new_keyfile), os.urandom(MIN_KEY_FILE), overwrite=False)
        return source.read()

    return SecretSource(source.label, generated)


def _require_new(source: Repository, new: _NewContext) -> None:
    """Raises UsageError for a secret that opens the old repository: whoever knows one would know the other."""
    try:
        unlock(source.store, new.secret())
    except KeyRefused:
        return
    raise UsageError("the new secret opens the old repository, too", hint="new keys need a new secret")


def _copy(context: Context, source: Repository, target: Repository) -> CopyResult:
    configured = context.config.backup
    options = CopyOptions(configured.compression, context.args.workers or configured.workers)
    return plan_copy(source, target, context.args.volume, options).execute(context.out.report)


def _prove(context: Context, target: Repository) -> VerifyResult:
    """Read back every pack and every tree: the old repository is going to be deleted because of this."""
    selected = [one.selected for one in choose(target, [])]
    return verify(target, selected, VerifyOptions("full", workers=context.args.workers), context.out.report)


class _Outcome:
    """The report of the copy and of its proof."""

    def __init__(self, source: Repository, target: Repository, copied: CopyResult, proof: VerifyResult) -> None:
        self.source, self.target, self.copied, self.proof = source, target, copied, proof
        self.there = copied.count(State.COPIED) + copied.count(State.PRESENT)
        self.missing = [row.selected.text for row in copied.rows if row.state in (State.FAILED, State.REMOVED)]

    @property
    def exit_code(self) -> int:
        """Damage in the copy is worse than a snapshot that could not be copied."""
        if self.proof.damaged:
            return IntegrityError.exit_code
        return INCOMPLETE if self.missing else 0

    @property
    def result(self) -> str:
        """One word for scripts."""
        return {0: "complete", INCOMPLETE: "incomplete"}.get(self.exit_code, "damaged")

    def other_slots(self) -> dict[str, int]:
        """The old repository's secrets that have no counterpart in the new one, by type and role, counted."""
        here, there = (Counter(f"{row.role} {row.type}" for row in list_slots(one)) for one in self._both())
        return dict(sorted((here - there).items()))

    def _both(self) -> Sequence[Repository]:
        return self.source, self.target


def _report(context: Context, outcome: _Outcome) -> int:
    out, copied, place = context.out, outcome.copied, outcome.target.store.url
    for row in copied.rows:
        if row.state in (State.FAILED, State.REMOVED):
            reason = row.reason or "removed there by an earlier deletion; name it to copy it"
            out.line(f"NOT COPIED: {row.selected.text}: {reason}")
    for finding in outcome.proof.findings:
        out.line(f"{finding.severity}: {finding.obj}: {finding.message}")
    out.line(
        f"{outcome.there} of {len(copied.rows)} snapshots are in {place}, under new keys "
        f"({copied.count(State.COPIED)} copied now, {shown_bytes(copied.stored_bytes)} stored in "
        f"{shown_seconds(copied.seconds)})"
    )
    if outcome.proof.damaged:
        out.line("the new repository does NOT hold: keep the old one, and see: lamella verify")
    else:
        out.line(f"read back whole: {shown_bytes(outcome.proof.checked_bytes)}, no damage found")
    others = outcome.other_slots()
    _next_steps(context, place, others)
    out.document(
        {
            "result": outcome.result,
            "repository": place,
            "fingerprint": copied.fingerprint,
            "copied": copied.count(State.COPIED),
            "present": copied.count(State.PRESENT),
            "not_copied": outcome.missing,
            "stored_bytes": copied.stored_bytes,
            "verified_bytes": outcome.proof.checked_bytes,
            "findings": len(outcome.proof.findings),
            "restore_py_sha256": outcome.target.catalogue.files[RESCUE].sha256.hex(),
            "secrets_not_carried_over": others,
        }
    )
    return outcome.exit_code


def _next_steps(context: Context, place: str, others: dict[str, int]) -> None:
    say = context.out.say
    say("next:")
    say(f"  name {place} wherever the old repository is named: configuration, timers, LAMELLA_REPO")
    if others:
        counted = ", ".join(f"{count} {kind}" for kind, count in others.items())
        say(f"  the old repository has other secrets ({counted}); give them anew with: lamella key add")
    say("  run this command again before you switch, for the snapshots made meanwhile")
    say("  delete the old repository when a restore has satisfied you: its keys open it until then")
