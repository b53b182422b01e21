"""The output of a command: results on standard output, everything else on standard error (design: output, errors)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from lamella.base.errors import LamellaError, StoreFull
from lamella.base.events import Event, Progress, Warned
from lamella.cli.shown import shown

if TYPE_CHECKING:
    from lamella.cli.progress import Bar, ProgressLines

SCHEMA = "lamella/1"
INCOMPLETE = 3
"""The exit code of a command that did a part of its work; what it committed is safe."""


class Output:
    """The two streams of one command, in the form its options ask for.

    A command `answers` if its lines are what the user wants to know, and not a report of what was done.
    With `as_json` standard output holds exactly one document. With `as_events` every line on standard error is a JSON
    object: progress, messages, warnings and the error.
    """

    def __init__(
        self,
        command: str,
        *,
        as_json: bool = False,
        as_events: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        answers: bool = False,
    ) -> None:
        self.command = command
        self._reports = answers or not quiet
        self.as_json = as_json
        self.as_events = as_events
        self.quiet = quiet
        self.verbose = verbose
        self._document_written = False
        shows_bar = not quiet and is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"
        self._shows_progress = as_events or shows_bar
        self._drawn: Bar | ProgressLines | None = None
        self.to_terminal = is_terminal(sys.stdout)
        self.rounds = 1
        """The number of times that a stage goes through all volumes: a backup does so for each destination."""

    # -- results ------------------------------------------------------------------------------------------------------

    def line(self, text: str = "") -> None:
        """A line that reports what was done, for people; nothing with --json or, unless it `answers`, --quiet."""
        if self._reports:
            self.answer(text)

    def answer(self, text: str) -> None:
        """A line that was asked for, or tells of damage: for people, whatever --quiet says."""
        if not self.as_json:
            self._result(shown(text))

    def table(self, rows: Iterable[Sequence[object]]) -> None:
        """Rows of cells, the first one the heading, in columns."""
        cells = [[shown(str(cell)) for cell in row] for row in rows]
        if self.to_terminal:
            from lamella.cli.folding import folded  # only where lines have an end

            cells = folded(cells)
        widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
        for row in cells:
            self.answer("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def document(self, fields: Mapping[str, Any]) -> None:
        """The result as one versioned JSON document; nothing without --json."""
        if self.as_json and not self._document_written:
            self._document_written = True
            self._result(json.dumps({"schema": SCHEMA, "command": self.command, **fields}, indent=2), "error" in fields)

    def _result(self, text: str, failed: bool = False) -> None:
        """Raises LamellaError where it cannot be written, but of a command that `failed`: that has a line to come."""
        self.clear()
        try:
            print(text, flush=True)
        except OSError as error:
            from lamella.cli.nowhere import drop

            drop(sys.stdout)
            if not (failed or isinstance(error, BrokenPipeError)):
                raise LamellaError(f"cannot write the result: {error.strerror}") from error

    # -- messages -----------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A message, unless --quiet."""
        if not self.quiet:
            self._message("message", text)

    def detail(self, text: str) -> None:
        """A message for --verbose."""
        if self.verbose:
            self._message("message", text)

    def warn(self, text: str, obj: str = "") -> None:
        """A warning, whatever the options are."""
        self._message("warning", f"{obj}: {text}" if obj and obj not in text else text)

    def failure(self, error: LamellaError, exit_code: int) -> int:
        """Report an error on one line, and as the document with --json. Returns `exit_code`."""
        fields = {"exit": exit_code, "kind": error.kind, "object": error.obj, "hint": error.hint}
        self.document({"error": {**fields, "message": error.message}})
        # The marker of a repository is an object called lamella, like this program.
        obj = "the marker" if error.obj == "lamella" else error.obj
        # Whichever object found no room says nothing.
        prefix = f"{obj}: " if obj and obj not in error.message and not isinstance(error, StoreFull) else ""
        self._message("error", f"{prefix}{error.message}" + (f"; {error.hint}" if error.hint else ""), fields)
        return exit_code

    def _message(self, event: str, text: str, fields: Mapping[str, Any] | None = None) -> None:
        self.clear()
        if self.as_events:
            self.event(event, {"message": text, **(fields or {})})
        else:
            self._aside(f"lamella: {'warning: ' if event == 'warning' else ''}{shown(text)}")

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """One JSON object on standard error, for --json-lines."""
        self._aside(json.dumps({"schema": SCHEMA, "command": self.command, "event": event, **fields}))

    def _aside(self, text: str) -> None:
        try:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            from lamella.cli.nowhere import drop

            drop(sys.stderr)

    # -- progress -----------------------------------------------------------------------------------------------------

    def report(self, event: Event) -> None:
        """A reporter for operations (lamella.base.events)."""
        if isinstance(event, Warned):
            self.warn(event.message, event.obj)
        elif self._shows_progress and isinstance(event, Progress):
            if self._drawn is None:
                from lamella.cli.progress import progress_of  # only where somebody sees it

                self._drawn = progress_of(self)
            self._drawn.update(event)

    def clear(self) -> None:
        """Remove the bar."""
        if self._drawn is not None:
            self._drawn.clear()


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person sees this stream."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False
