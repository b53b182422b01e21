"""The questions of `lamella setup`. Each has an option that answers it, and an answer for who only presses Enter."""

from __future__ import annotations

import os
import re
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from lamella.base.errors import Interrupted, UsageError
from lamella.cli.commands.setup.finding import MARKED_QUBES, Candidate, candidates, destination
from lamella.cli.commands.setup.plan import DESKTOP, NEVER, NOBODY, Answers, absolute_sources, checked_keep
from lamella.cli.context import Context
from lamella.cli.everyday.messages import SENDMAIL
from lamella.cli.everyday.units import require_time
from lamella.cli.places import config_place
from lamella.cli.shown import shown, shown_bytes
from lamella.qubes.admin import SOCKET

Answer = TypeVar("Answer")
_KEEP = "14,8,12"


class Questions:
    """Takes each answer from its option, from the person at the terminal, or else the one that is offered."""

    def __init__(self, context: Context, *, asks: bool) -> None:
        self._context = context
        self._args: Namespace = context.args
        self._env: Mapping[str, str] = context.env
        self._asks = asks

    def answers(self, name: str) -> Answers:
        """All answers. Raises UsageError for one that is wrong, or that only a person could give."""
        folder = config_place(self._env)
        folder = folder.parent if folder.suffix == ".toml" else folder
        args, teller = self._args, self._teller()
        found = Answers(
            name,
            self._sources(),
            self._place(),
            self._ask(args.when, "When does it run? A time such as daily or 'Mon 03:00', or never", "daily", _when),
            self._ask(args.keep, "How many snapshots are kept? days,weeks,months, or all", _KEEP, checked_keep),
            self._ask(args.tell, "Who hears of trouble? A mail address, desktop, or nobody", teller, _teller),
            self._sheet(name),
            Path(args.keyfile).absolute() if args.keyfile else folder.absolute() / f"{name}.key",
            args.domain,
        )
        return replace(found, is_silence_meant=found.tell == NOBODY != teller or args.tell == NOBODY)

    # -- what ---------------------------------------------------------------------------------------------------------

    def _sources(self) -> tuple[str, ...]:
        if self._args.source:
            return absolute_sources(self._args.source)
        is_dom0 = Path(self._env.get("LAMELLA_QUBESD_SOCKET") or SOCKET).exists()
        # The volumes of qubes are saved with their qubes, and by no other way.
        found = [MARKED_QUBES] if is_dom0 else candidates(self._env, self._context.out.say)
        if not found and not self._asks:
            raise UsageError("nothing was found to save", hint="name it: lamella setup SOURCE...")
        self._show(found)
        everything = tuple(text for one in found for text in one.sources)
        return self._ask(
            None,
            "What is to be saved? Numbers, paths or sources, separated by blanks",
            "all" if found else "",
            lambda text: everything if text == "all" else absolute_sources(_picked(text, found)),
        )

    def _show(self, found: Sequence[Candidate]) -> None:
        out = self._context.out
        if found:
            out.say("found on this machine:")
        for number, one in enumerate(found, 1):
            size = f", {shown_bytes(one.size)}" if one.size else ""
            out.say(f"  {number}  {' '.join(one.sources)} ({one.what}{size})")

    def _place(self) -> str:
        named = self._args.repo or self._env.get("LAMELLA_REPO")
        if not named and not self._asks:
            raise UsageError("nobody said where the backups go", hint="give -r REPO")
        return self._ask(named, "Where do the backups go? A directory, ssh://, s3://", destination(self._env), _place)

    # -- who and where ------------------------------------------------------------------------------------------------

    def _teller(self) -> str:
        """Who hears of trouble if nobody says otherwise."""
        if any(Path(place).exists() for place in SENDMAIL):
            return "root" if os.geteuid() == 0 else self._env.get("USER") or NOBODY
        return DESKTOP if os.geteuid() != 0 and shutil.which("notify-send") else NOBODY

    def _sheet(self, name: str) -> Path:
        named = self._args.recovery_sheet
        offered = sheet_place(self._env, name, named)
        given = None if named is None else str(offered)
        return self._ask(given, "Where is the recovery sheet written?", str(offered), _path)

    def _ask(self, given: str | None, question: str, offered: str, read: Callable[[str], Answer]) -> Answer:
        """The answer. A person who answers wrongly is told why, and asked again."""
        if given is not None or not self._asks:
            return read(offered if given is None else given)
        while True:
            text = asked(f"{question} [{shown(offered)}]: ") or offered
            try:
                return read(text)
            except UsageError as error:
                self._context.out.warn(error.message + (f"; {error.hint}" if error.hint else ""))


def sheet_place(env: Mapping[str, str], name: str, named: Path | None) -> Path:
    """Where the recovery sheet goes: to the file that is named, or into the home directory."""
    home = env.get("HOME", "")
    folder = Path(home if Path(home).is_absolute() else ".")
    return (named or folder / f"lamella-{name}-sheet.txt").absolute()


def asked(prompt: str) -> str:
    """A line that the person types, without blanks around. Raises Interrupted at the end of input."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = ""
    try:
        line = sys.stdin.readline()
    finally:
        if not line:  # what is said next begins a line, not the middle of the question
            sys.stderr.write("\n")
    if not line:
        raise Interrupted("nothing was typed: nothing was done")
    return line.strip()


def agreed(question: str) -> bool:
    """Whether the person says yes, or only presses Enter."""
    return asked(f"{question} [Y/n] ").lower() in {"", "y", "yes"}


def _picked(text: str, found: Sequence[Candidate]) -> list[str]:
    """Numbers of what was found, and sources, into sources."""
    chosen: list[str] = []
    for word in text.replace(",", " ").split():
        if word.isdecimal():
            if not 1 <= int(word) <= len(found):
                raise UsageError(f"there is no number {word}", hint=f"write 1 to {len(found)}, or all")
            chosen += found[int(word) - 1].sources
        else:
            chosen.append(word)
    if not chosen:
        raise UsageError("nothing is named")
    return chosen


def _when(text: str) -> str:
    if text != NEVER:
        require_time(text, "--when")
    return text


def _teller(text: str) -> str:
    if not re.fullmatch(r"[^\s@-][^\s@]*(@[^\s@]+)?", text):
        raise UsageError(f"not a mail address: {text}", obj=text, hint=f"write {DESKTOP}, or {NOBODY}")
    return text


def _place(text: str) -> str:
    return text if ":" in text.partition("/")[0] else str(Path(text).absolute())


def _path(text: str) -> Path:
    return Path(text).absolute()
