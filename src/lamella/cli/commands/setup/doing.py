"""Doing what a setup plans: files that exist stay as they are, and every other step is a command of the user's."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamella.base.durable import make_private
from lamella.base.errors import Interrupted, KeyRefused, LamellaError, NoRepository, UsageError
from lamella.cli.arguments import load, parse
from lamella.cli.commands.setup.plan import NEVER, SetupPlan
from lamella.cli.context import Context
from lamella.cli.everyday.steps import SAVING, StepOutput
from lamella.cli.new_files import exists, write_file
from lamella.cli.output import Output
from lamella.crypto.slots import MIN_KEY_FILE
from lamella.format.keyslot import SlotType
from lamella.operations.keyring import slots_of
from lamella.repository.slots import read_marker

_HANDED_ON = ("json", "json_lines", "quiet", "verbose", "debug", "lock_wait", "limit_rate", "ssh_command")
_SECRETS = ("LAMELLA_PASSPHRASE", "LAMELLA_RECOVERY_KEY_FILE", "CREDENTIALS_DIRECTORY", "LAMELLA_REPO")


@dataclass
class Setup:
    """One run of `lamella setup`: what it did so far, for the summary and for JSON."""

    context: Context
    plan: SetupPlan
    done: list[dict[str, object]] = field(default_factory=list)

    def prepare(self) -> None:
        """Key file, configuration, repository, recovery sheet. Raises LamellaError; what is there by then stays."""
        answers = self.plan.answers
        there = is_there(self._at_place())  # an address that cannot be reached leaves nothing behind
        if not there:
            self._require_room()
        self._key_file(answers.keyfile)
        if there:
            self._enrol()
        self._configuration()
        if there:
            self._sheet_of_existing()
        else:
            self._init(["init", "-r", answers.name, "--recovery-sheet", str(answers.sheet)])
            self._note("repository", "made", answers.place)
            self._note("recovery sheet", "made", str(answers.sheet))

    def work(self) -> None:
        """Schedule, first run, proof. A failure is noted, and stops only what depends on it."""
        name = self.plan.answers.name
        if self.plan.answers.when != NEVER:
            self._step("schedule", ["schedule", "install", name])
        first = self._step("run", ["run", "--now", name])
        if first is not None:
            self._prove(first)

    @property
    def failed(self) -> list[str]:
        """The steps that failed."""
        return [str(row["step"]) for row in self.done if row["result"] == "failed"]

    # -- files --------------------------------------------------------------------------------------------------------

    def _key_file(self, path: Path) -> None:
        if path.exists():
            self._note("key file", "exists", str(path))
            return
        _make_folder(path.parent)
        write_file(path, os.urandom(MIN_KEY_FILE), overwrite=False)
        self._note("key file", "made", str(path))

    def _configuration(self) -> None:
        path = self.plan.config
        if self.plan.exists:
            self._note("configuration", "exists", str(path))
            return
        _make_folder(path.parent)
        write_file(path, self.plan.text.encode(), overwrite=False)
        self._note("configuration", "made", str(path))

    # -- repository ---------------------------------------------------------------------------------------------------

    def _require_room(self) -> None:
        """What a new repository would fail at. Raises UsageError, LamellaError."""
        answers = self.plan.answers
        if ":" not in answers.place.partition("/")[0]:
            _make_folder(Path(answers.place).parent)
        if answers.sheet.exists() or answers.sheet.is_symlink():
            error = exists(answers.sheet)
            error.hint = f"there is no repository at {answers.place} that it could open; name another: --recovery-sheet"
            raise error
        if not answers.sheet.parent.is_dir():
            raise UsageError(f"there is no directory {answers.sheet.parent}", obj=str(answers.sheet))

    def _init(self, words: Sequence[str]) -> None:
        """Make the repository. If nothing came of it, the configuration goes, too: the next setup asks where anew."""
        try:
            self._run(words, told=False)
        except Interrupted:
            raise
        except LamellaError:
            with suppress(LamellaError, OSError):
                if not self.plan.exists and not is_there(self._at_place()):
                    self.plan.config.unlink()
                    self.context.out.line(f"configuration: {self.plan.config} is removed again: no repository was made")
            raise

    def _at_place(self) -> Context:
        """A context with the repository by its address and the key file: the configuration may not be there yet."""
        answers = self.plan.answers
        return self._context_of(["info", "-r", answers.place, "--keyfile", str(answers.keyfile)])

    def _enrol(self) -> None:
        """Have the key file open a repository that is there."""
        answers = self.plan.answers
        try:
            with self._at_place().repository():
                pass
        except KeyRefused:
            # The secret of its owner opens it: from the variables of this run, or from the terminal.
            words = ["key", "add", "-r", answers.place, "--new-keyfile", str(answers.keyfile)]
            self._run(words, self.context.env, told=False)
        self._note("repository", "exists", answers.place)

    def _sheet_of_existing(self) -> None:
        answers = self.plan.answers
        with self._at_place().repository() as repository:
            has_one = any(slot.type == SlotType.RECOVERY for slot in slots_of(repository).signed)
        if answers.sheet.exists():
            self._note("recovery sheet", "exists", str(answers.sheet))
        elif has_one:
            self._note("recovery sheet", "exists", "printed or kept elsewhere: a recovery key opens the repository")
        else:
            self._run(
                ["key", "add", "--recovery", "-r", answers.name, "--recovery-sheet", str(answers.sheet)], told=False
            )
            self._note("recovery sheet", "made", str(answers.sheet))

    # -- proof --------------------------------------------------------------------------------------------------------

    def _prove(self, first: Mapping[str, Any]) -> None:
        """Restore the smallest volume, and compare with what it was saved from."""
        steps = [step for step in first["steps"] if step["step"] in SAVING and "volumes" in step["document"]]
        saved = [row for step in steps for row in step["document"]["volumes"]]
        whole = [row for row in saved if row["result"] == "complete" and row["driver"] != "settings"]
        if not whole:
            self._note("restore", "failed", "no volume was saved")
            return
        smallest = min(whole, key=lambda row: int(row["source_bytes"]))
        volume, name = str(smallest["volume"]), self.plan.answers.name
        place = _room_for(int(smallest["source_bytes"]), self.context.env)
        if not place:
            self.context.out.say(f"no room for a copy of {volume}: its bytes are fetched and compared without one")
            proved = self._step("restore", ["verify", "-r", name, volume, "--level", "restore"])
        else:
            with tempfile.TemporaryDirectory(prefix="lamella-setup-", dir=place) as folder:
                proved = self._step("restore", ["restore", "-r", name, volume, "--to", f"{folder}/restored.img"])
        # A qube's volume, of a qube that may run, is opened through qubesd by `qubes backup` alone.
        if proved is not None and steps[0]["step"] == "backup":
            self._step("compare", ["verify", "-r", name, volume, "--level", "source"])

    def show_status(self) -> None:
        """How it stands now, in the words of every later day."""
        context = self._context_of(["status", "-r", self.plan.answers.name])
        try:
            load("status").run(context)
        except LamellaError as error:
            self.context.out.warn(error.message)

    # -- commands -----------------------------------------------------------------------------------------------------

    def _step(self, step: str, words: Sequence[str]) -> Mapping[str, Any] | None:
        """A command whose failure is noted; returns its document, None if it failed."""
        try:
            document = self._run(words)
        except Interrupted:
            raise
        except LamellaError as error:
            self._failed(step, error)
            return None
        self._note(step, "done", "")
        return document

    def _run(
        self, words: Sequence[str], env: Mapping[str, str] | None = None, *, told: bool = True
    ) -> Mapping[str, Any]:
        """One command, in this process; returns its document. Raises LamellaError unless it ends with 0."""
        context = self._context_of(words, env, told=told)
        self.context.out.say(f"lamella {' '.join(words)}")
        try:
            code = load(words[0]).run(context)
        finally:
            context.out.clear()
        if code:
            failed = LamellaError(f"lamella {' '.join(words)} ended with {code}")
            failed.exit_code = code
            raise failed
        assert isinstance(context.out, StepOutput)
        return context.out.fields

    def _context_of(self, words: Sequence[str], env: Mapping[str, str] | None = None, *, told: bool = True) -> Context:
        args = parse(words)
        for option in _HANDED_ON:
            setattr(args, option, getattr(self.context.args, option))
        args.quiet = args.quiet or not told
        outer = self.context.out if told else Output(args.command, as_json=args.json, quiet=True)
        out = StepOutput(outer, args.command)
        return Context(args, _without_secrets(self.context.env) if env is None else env, out)

    def _failed(self, step: str, error: LamellaError) -> None:
        text = error.message + (f"; {error.hint}" if error.hint else "")
        self.context.out.warn(f"{step} failed: {text}")
        self._note(step, "failed", text)

    def _note(self, step: str, result: str, what: str) -> None:
        self.done.append({"step": step, "result": result, "what": what})
        if result in ("made", "exists"):
            self.context.out.line(f"{step}: {what}" + (" (is there already)" if result == "exists" else ""))


def _room_for(size: int, env: Mapping[str, str]) -> str:
    """A directory for temporary files with so many bytes free; on a disk where /tmp is memory. Empty if none has."""
    for place in (env.get("TMPDIR"), "/var/tmp", env.get("HOME")):
        with suppress(OSError):
            if place and os.access(place, os.W_OK) and shutil.disk_usage(place).free > size:
                return place
    return ""


def is_there(context: Context) -> bool:
    """Whether there is a repository at the context's place. Raises StoreError, UsageError."""
    try:
        with context.store(read_only=True) as store:
            read_marker(store)
    except NoRepository:
        return False
    return True


def _without_secrets(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith(_SECRETS)}


def _make_folder(path: Path) -> None:
    try:
        make_private(path)
    except OSError as error:
        raise LamellaError(f"cannot make {path}: {error.strerror}", obj=str(path)) from error


def require_writable(plan: SetupPlan) -> None:
    """Raises UsageError before anything is done if a file of the plan is in the way."""
    if not plan.exists and (plan.config.exists() or plan.config.is_symlink()):
        raise exists(plan.config)
    if plan.answers.keyfile.is_dir():
        raise UsageError(f"{plan.answers.keyfile} is a directory", obj=str(plan.answers.keyfile))
