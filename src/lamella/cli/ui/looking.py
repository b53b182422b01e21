"""What the pages show: answers of other runs of this program, kept until something was done or a minute has passed.

A page never waits for a repository, but the first time that something is asked for.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from lamella.base.clock import now_ms
from lamella.cli.everyday.standing import Overview
from lamella.cli.ui.children import QUESTION_SECONDS, ChildRun
from lamella.run.beside import Beside

Row = dict[str, Any]
_FRESH_SECONDS = 60.0
_MOST_KEPT = 500


def program() -> list[str]:
    """How to start this Lamella again, wherever it is installed."""
    script = Path(sys.argv[0]).absolute()
    if script.name == "lamella" and os.access(script, os.X_OK) and script.is_file():
        return [str(script)]
    if script.suffix == ".pyz":  # the program as one file
        return [sys.executable, str(script)]
    return [sys.executable, "-m", "lamella"]


@dataclass(frozen=True)
class Opening:
    """How the children open a repository."""

    name: str
    """As the user named it."""
    options: tuple[str, ...] = ()
    passphrase: str | None = field(default=None, repr=False)
    """Only where the user typed one: everything else the children find by themselves."""


@dataclass(frozen=True)
class Look:
    """Everything as it was at one moment."""

    overview: Overview
    names: tuple[str, ...]
    """The repositories; pages name them by their number."""


class Looking:
    """Keeps the newest look at all repositories, and answers about single snapshots."""

    def __init__(self, openings: Sequence[Opening]) -> None:
        self.openings = tuple(openings)
        self._lock = Lock()
        self._kept: dict[tuple[str, ...], ChildRun] = {}
        self._look: Look | None = None
        self._at = 0.0
        self._busy = False

    def child(self, opening: Opening, words: Sequence[str], passphrase: str | None = None) -> ChildRun:
        """A run that is not started yet, about one repository."""
        secret = passphrase if passphrase is not None else opening.passphrase
        by = [] if secret is None else ["env", "LAMELLA_PASSPHRASE_FD=0"]
        argv = [*by, *program(), *words, "-r", opening.name, *opening.options, "--json-lines"]
        return ChildRun(argv, secret)

    def ask(self, opening: Opening, *words: str) -> ChildRun:
        """The answer to a question, asked once until something is done."""
        key = (opening.name, *words)
        found = self._kept.get(key)
        if found is None:
            found = self.child(opening, words)
            found.pump(QUESTION_SECONDS)
            if found.code == 0:
                self.keep(key, found)
        return found

    def keep(self, key: tuple[str, ...], run: ChildRun) -> None:
        """Remember an answer."""
        with self._lock:
            while len(self._kept) >= _MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = run

    def kept(self, *key: str) -> ChildRun | None:
        """An answer that is remembered."""
        return self._kept.get(key)

    def look(self) -> Look:
        """The newest look; an old one is renewed beside."""
        found = self._look
        if found is None:
            return self.again()
        if time.monotonic() - self._at > _FRESH_SECONDS:
            self.later()
        return found

    def later(self) -> None:
        """Look again, beside; once is enough."""
        with self._lock:
            if self._busy:
                return
            self._busy = True

        def work() -> None:
            try:
                self.again()
            finally:
                self._busy = False

        Beside(work, "lamella-look")

    def forget(self) -> None:
        """Something was done: look again, beside."""
        with self._lock:
            self._kept.clear()
        self.later()

    def again(self) -> Look:
        """Look at everything now."""
        volumes: list[Row] = []
        repositories: list[Row] = []
        profiles: list[Row] = []
        for opening in self.openings:
            report = self.child(opening, ("report", "--json"))
            report.pump(QUESTION_SECONDS)
            found = report.document
            volumes += found.get("volumes", [])
            repositories += found.get("repositories") or [_unknown(opening.name, report.error)]
            profiles = profiles or found.get("profiles", [])
        overview = Overview(now_ms(), volumes, repositories, profiles)
        self._look = Look(overview, tuple(one.name for one in self.openings))
        self._at = time.monotonic()
        return self._look


def _unknown(name: str, why: str) -> Row:
    """The row of a repository about which nothing was said."""
    row: Row = {"repository": name, "also": [], "state": "bad", "reasons": [why or "it gave no answer"]}
    return row | {"stored_bytes": 0, "grown_bytes": 0}
