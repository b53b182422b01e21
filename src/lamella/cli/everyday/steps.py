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
SAVING = ("backup", "qubes backup", "files backup")
"""The steps that save something, in their order."""
SKIPPED = -1
"""The code of a step that had nothing to work on, because an earlier one failed."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a step in one repository: `code` as the exit code of the command, `text` why, if it is not 0."""

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
        """The volumes that the step saved."""
        if self.step not in SAVING:
            return []
        return [str(row["volume"]) for row in self.document.get("volumes", ()) if row.get("result") != "failed"]


class StepOutput(Output):
    """Shows what a command inside of another one says to people, and keeps its document for the outer one's own."""

    def __init__(self, outer: Output, command: str) -> None:
        super().__init__(command, as_json=outer.as_json, as_events=outer.as_events, quiet=outer.quiet)
        self.fields: dict[str, Any] = {}

    def document(self, fields: Mapping[str, Any]) -> None:
        """Keep the document."""
        self.fields = dict(fields)


class _StepContext(Context):
    """A step's context: what the profile says of its backups counts instead of `[backup]`."""

    def __init__(self, args: Namespace, env: Mapping[str, str], out: Output, profile: Profile) -> None:
        super().__init__(args, env, out)
        self._profile = profile

    @cached_property
    def config(self) -> Configuration:
        """The configuration, with what the profile says otherwise."""
        found, profile = super().config, self._profile
        instead = {key: getattr(profile, key) for key in ("compression", "domain", "require_consistent")}
        backup = replace(found.backup, **{key: value for key, value in instead.items() if value is not None})
        return replace(found, backup=backup)


class Steps:
    """Runs the steps of one profile, one after the other."""

    def __init__(self, context: Context, profile: Profile) -> None:
        self._context = context
        self._profile = profile
        self.repositories = profile.repositories or tuple(named_destinations(context))
        self.copy_to = profile.copy_to
        if context.config.media:
            from lamella.cli.media import all_here

            self.repositories = tuple(all_here(context, self.repositories))
            self.copy_to = tuple(all_here(context, self.copy_to))

    def __iter__(self) -> Iterator[StepResult]:
        """Backup to all repositories from one moment, then prune, verify, drill and copy; a failure stops no other."""
        saved: dict[str, list[StepResult]] = {name: [] for name in self.repositories}
        for row in self._saves():
            saved[row.repository].append(row)
            yield row
        # A prune that names no volume is one of everything: rules of a profile are for what it saved.
        done = (0, INCOMPLETE)
        there = {name: [row for row in rows if row.code in done and row.volumes] for name, rows in saved.items()}
        for name, rows in there.items():
            if rows:
                yield from self._after(name, rows)
            else:
                yield from self._not_done(name, saved[name])
        yield from self._copies([name for name, rows in there.items() if rows])

    def commands(self) -> Iterator[list[str]]:
        """The planned steps as command lines; `VOLUME...` stands for the volumes that the backup will have saved."""
        for arguments in self._saving():
            yield ["lamella", *arguments]
        images = ["VOLUME..."] if self._profile.sources else []
        for name in self.repositories:
            yield from (["lamella", *arguments] for arguments in self._care(name, ["VOLUME..."], images))
        for to in self.copy_to:
            yield ["lamella", *self._copy_arguments(self.repositories[0], to)]

    # -- arguments ----------------------------------------------------------------------------------------------------

    def _saving(self) -> Iterator[list[str]]:
        """The steps that save something: sources and directories to all repositories at once, qubes to each."""
        profile = self._profile
        destinations = [word for name in self.repositories for word in ("-r", name)]
        scrub = [word for pattern in profile.scrub for word in ("--scrub", pattern)]
        if profile.sources:
            exclude = [word for pattern in profile.exclude for word in ("--exclude", pattern)]
            yield ["backup", "--if-available", *destinations, *exclude, *scrub, "--", *profile.sources]
        if profile.qubes is not None:
            for name in self.repositories:
                yield ["qubes", "backup", "--if-available", "-r", name, *scrub, *profile.qubes.arguments]
        if profile.files is not None:
            yield ["files", "backup", "--if-available", *destinations, *profile.files.arguments]

    def _care(self, name: str, volumes: Sequence[str], images: Sequence[str]) -> Iterator[list[str]]:
        """The steps after a backup in the same repository; `images` are the volumes that could boot."""
        profile = self._profile
        if profile.prune is not None:
            yield ["prune", "-y", "-r", name, *profile.rules, "--", *volumes]
        if profile.verify in LEVELS:
            yield ["verify", "-r", name, "--level", profile.verify]
        elif profile.verify is not None:
            yield ["verify", "-r", name, "--budget", profile.verify]
        if profile.drill is not None and (wanted := profile.drill.volumes or images):
            kernel = ["--kernel", profile.drill.kernel] if profile.drill.kernel else []
            often = ["--every", profile.drill.every, "--budget", profile.drill.budget]
            yield ["drill", "-r", name, *often, *kernel, "--", *wanted]

    def _copy_arguments(self, name: str, to: str) -> list[str]:
        return ["copy", "-r", name, "--to", to]

    # -- running ------------------------------------------------------------------------------------------------------

    def _saves(self) -> Iterator[StepResult]:
        """A result for each repository and step that saves something."""
        for arguments in self._saving():
            step = _step_of(arguments)
            if step == "qubes backup":
                yield self._run(arguments, arguments[arguments.index("-r") + 1])
                continue
            whole = self._run(arguments, self.repositories[0])
            rows = whole.document.get("repositories")
            if rows is None:
                yield from (replace(whole, repository=name) for name in self.repositories)
                continue
            found = [
                _of_destination(step, name, row, whole.seconds)
                for name, row in zip(self.repositories, rows, strict=True)
            ]
            # What was wrong with the source itself, such as files that cannot be read, is in no destination's row.
            everywhere = whole.code if not any(row.code for row in found) else 0
            yield from (replace(row, code=everywhere, text=whole.text) if everywhere else row for row in found)

    def _after(self, name: str, saved: Sequence[StepResult]) -> Iterator[StepResult]:
        volumes = [volume for row in saved for volume in row.volumes]
        for arguments in self._care(
            name, volumes, [one for row in saved if row.step == "backup" for one in row.volumes]
        ):
            yield self._run(arguments, name)

    def _not_done(self, name: str, saved: Sequence[StepResult]) -> Iterator[StepResult]:
        """A step that is left out is said: nobody should believe that it was done."""
        away = all(row.code == ABSENT for row in saved)
        code, why = (ABSENT, "") if away else (SKIPPED, "the backup there failed")
        for arguments in self._care(name, [], []):
            yield StepResult(arguments[0], name, code, why)

    def _copies(self, sources: Sequence[str]) -> Iterator[StepResult]:
        for to in self.copy_to:
            if sources:
                yield self._run(self._copy_arguments(sources[0], to), to)
            else:
                yield StepResult("copy", to, SKIPPED, "no backup was made that could be copied")

    def _run(self, arguments: Sequence[str], repository: str) -> StepResult:
        """One command, in this process. What it raises is its result; only an interruption ends the run."""
        step = _step_of(arguments)
        out, started, text = StepOutput(self._context.out, step), time.monotonic(), ""
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
            text = _reason(step, code, out.fields)
        return StepResult(step, repository, code, text, round(time.monotonic() - started, 3), out.fields)


def well_saved(rows: Sequence[StepResult]) -> list[str]:
    """The repositories in which every step of a run that saves something is done."""
    saves = [row for row in rows if row.step in SAVING]
    return [name for name in dict.fromkeys(row.repository for row in saves) if _is_well(saves, name)]


def _is_well(saves: Sequence[StepResult], name: str) -> bool:
    return all(row.code == 0 for row in saves if row.repository == name)


def _step_of(arguments: Sequence[str]) -> str:
    """The name of a step: of its command, with the action of one that has any."""
    return " ".join(arguments[:2]) if arguments[0] in ("qubes", "files") else arguments[0]


def _of_destination(step: str, name: str, row: Mapping[str, Any], seconds: float) -> StepResult:
    error = row.get("error")
    if error is not None:
        return StepResult(step, name, int(error["exit"]), str(error["message"]), seconds, row)
    code = 0 if row.get("result") in ("complete", "changed") else INCOMPLETE
    return StepResult(step, name, code, _reason(step, code, row) if code else "", seconds, row)


def _reason(step: str, code: int, document: Mapping[str, Any]) -> str:
    """Why a step that raised nothing did not end with 0."""
    if step in SAVING:
        failed = [
            f"{row['volume']} ({row['error'] or row['reason']})"
            for row in document.get("volumes", ())
            if row.get("result") == "failed"
        ]
        other = "some files could not be read" if step == "files backup" else f"ended with {code}"
        return f"not saved: {', '.join(failed)}" if failed else other
    if step == "verify":
        count = len(document.get("findings", ()))
        return f"{count} finding{'' if count == 1 else 's'}; see: lamella verify"
    if step == "drill":
        return "; ".join(map(str, document.get("failed", ())))
    if step == "copy":
        return f"{document.get('failed', 0)} snapshots could not be copied"
    return f"ended with {code}"
