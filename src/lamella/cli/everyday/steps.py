"""The steps of a profile's run: each is a command of its own, with its own result."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from lamella.base.errors import Absent, LamellaError
from lamella.cli.arguments import load, parse
from lamella.cli.configuration import Configuration
from lamella.cli.context import Context
from lamella.cli.destination import named_destinations
from lamella.cli.everyday.profiles import LEVELS, Profile
from lamella.cli.output import INCOMPLETE, Output

ABSENT = Absent.exit_code
_HANDED_ON = (
    *("json", "json_lines", "quiet", "verbose", "debug"),
    *("lock_wait", "limit_rate", "keyfile", "recovery_key_file"),
)
"""Options of every command that a run hands on to its steps."""
SKIPPED = -1
"""The code of a step that had nothing to work on, because an earlier one failed."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """How a step ended in one repository: `code` as the command would have ended, `text` why, if it is not 0."""

    step: str
    repository: str
    code: int
    text: str = ""
    seconds: float = 0.0
    document: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether somebody has to know: an absent destination is not a failure until the profile grows stale."""
        return self.code not in (0, ABSENT)

    @property
    def word(self) -> str:
        """For people and JSON."""
        words = {0: "done", ABSENT: "absent", INCOMPLETE: "incomplete", SKIPPED: "skipped"}
        return words.get(self.code, "failed")

    @property
    def volumes(self) -> list[str]:
        """The volumes that a backup saved."""
        return [str(row["volume"]) for row in self.document.get("volumes", ()) if row.get("result") != "failed"]


class _StepOutput(Output):
    """Shows what a step says to people, and keeps its document for the run's own."""

    def __init__(self, outer: Output, command: str) -> None:
        super().__init__(command, as_json=outer.as_json, as_events=outer.as_events, quiet=outer.quiet)
        self.fields: dict[str, Any] = {}

    def document(self, fields: Mapping[str, Any]) -> None:
        self.fields = dict(fields)


class _StepContext(Context):
    """A step's context: the domain of the profile is that of its new volumes."""

    def __init__(self, args: Namespace, env: Mapping[str, str], out: Output, profile: Profile) -> None:
        super().__init__(args, env, out)
        self._domain = profile.domain

    @cached_property
    def config(self) -> Configuration:
        """The configuration, with the domain of the profile."""
        found = super().config
        return replace(found, backup=replace(found.backup, domain=self._domain or found.backup.domain))


class Steps:
    """Runs the steps of one profile, one after the other."""

    def __init__(self, context: Context, profile: Profile) -> None:
        self._context = context
        self._profile = profile
        self.repositories = profile.repositories or tuple(named_destinations(context))

    def __iter__(self) -> Iterator[StepResult]:
        """Backup to all repositories from one moment, then prune, verify and copy; a failure stops no other."""
        saved = {}
        for row in self._backup():
            saved[row.repository] = row
            yield row
        for name, row in saved.items():
            if row.code in (0, INCOMPLETE):
                yield from self._after(name, row.volumes)
            else:
                yield from self._not_done(name, row)
        yield from self._copies([name for name, row in saved.items() if row.code in (0, INCOMPLETE)])

    def commands(self) -> Iterator[list[str]]:
        """What would be run, as command lines; `VOLUME...` stands for what the backup will have saved."""
        yield ["lamella", *self._backup_arguments()]
        for name in self.repositories:
            yield from (["lamella", *arguments] for arguments in self._care(name, ["VOLUME..."]))
        for to in self._profile.copy_to:
            yield ["lamella", *self._copy_arguments(self.repositories[0], to)]

    # -- arguments ----------------------------------------------------------------------------------------------------

    def _backup_arguments(self) -> list[str]:
        profile = self._profile
        destinations = [word for name in self.repositories for word in ("-r", name)]
        exclude = [word for pattern in profile.exclude for word in ("--exclude", pattern)]
        return ["backup", "--if-available", *destinations, *exclude, "--", *profile.sources]

    def _care(self, name: str, volumes: Sequence[str]) -> Iterator[list[str]]:
        """What follows a backup in the same repository."""
        profile = self._profile
        if profile.prune is not None:
            yield ["prune", "-y", "-r", name, *profile.rules, "--", *volumes]
        if profile.verify in LEVELS:
            yield ["verify", "-r", name, "--level", profile.verify]
        elif profile.verify is not None:
            yield ["verify", "-r", name, "--budget", profile.verify]

    def _copy_arguments(self, name: str, to: str) -> list[str]:
        return ["copy", "-r", name, "--to", to]

    # -- running ------------------------------------------------------------------------------------------------------

    def _backup(self) -> list[StepResult]:
        started = time.monotonic()
        whole = self._run(self._backup_arguments(), self.repositories[0])
        rows = whole.document.get("repositories")
        if rows is None:
            return [
                StepResult("backup", name, whole.code, whole.text, whole.seconds, whole.document)
                for name in self.repositories
            ]
        seconds = round(time.monotonic() - started, 3)
        return [_of_destination(name, row, seconds) for name, row in zip(self.repositories, rows, strict=True)]

    def _after(self, name: str, volumes: Sequence[str]) -> Iterator[StepResult]:
        for arguments in self._care(name, volumes):
            yield self._run(arguments, name)

    def _not_done(self, name: str, backup: StepResult) -> Iterator[StepResult]:
        """A step that is left out is said: nobody should believe that it was done."""
        code, why = (ABSENT, "") if backup.code == ABSENT else (SKIPPED, "the backup there failed")
        for arguments in self._care(name, []):
            yield StepResult(arguments[0], name, code, why)

    def _copies(self, sources: Sequence[str]) -> Iterator[StepResult]:
        for to in self._profile.copy_to:
            if sources:
                yield self._run(self._copy_arguments(sources[0], to), to)
            else:
                yield StepResult("copy", to, SKIPPED, "no backup was made that could be copied")

    def _run(self, arguments: Sequence[str], repository: str) -> StepResult:
        """One command, in this process. What it raises is its result; only an interruption ends the run."""
        out, started, text = _StepOutput(self._context.out, arguments[0]), time.monotonic(), ""
        try:
            args = parse(arguments)
            for option in _HANDED_ON:
                setattr(args, option, getattr(self._context.args, option))
            code = load(arguments[0]).run(_StepContext(args, self._context.env, out, self._profile))
        except LamellaError as error:
            code, text = error.exit_code, error.message + (f"; {error.hint}" if error.hint else "")
        except OSError as error:
            code, text = 1, error.strerror or str(error)
        except Exception as error:  # noqa: BLE001  (a fault of ours in one step must not cost the others)
            code, text = 1, f"internal error: {type(error).__name__}: {error}"
            if self._context.args.debug:
                import traceback

                traceback.print_exc()
        finally:
            out.clear()
        if code and not text:
            text = _reason(arguments[0], code, out.fields)
        return StepResult(arguments[0], repository, code, text, round(time.monotonic() - started, 3), out.fields)


def _of_destination(name: str, row: Mapping[str, Any], seconds: float) -> StepResult:
    error = row.get("error")
    if error is not None:
        return StepResult("backup", name, int(error["exit"]), str(error["message"]), seconds, row)
    code = 0 if row.get("result") in ("complete", "changed") else INCOMPLETE
    return StepResult("backup", name, code, _reason("backup", code, row) if code else "", seconds, row)


def _reason(step: str, code: int, document: Mapping[str, Any]) -> str:
    """Why a step that raised nothing did not end with 0."""
    if step == "backup":
        failed = [
            f"{row['volume']} ({row['reason']})" for row in document.get("volumes", ()) if row.get("result") == "failed"
        ]
        return f"not saved: {', '.join(failed)}" if failed else f"ended with {code}"
    if step == "verify":
        count = len(document.get("findings", ()))
        return f"{count} finding{'' if count == 1 else 's'}; see: lamella verify"
    if step == "copy":
        return f"{document.get('failed', 0)} snapshots could not be copied"
    return f"ended with {code}"
