"""What a setup will do: the answers, the files that follow from them, and the commands that use these."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lamella.base.errors import UsageError
from lamella.cli.configuration import Configuration
from lamella.cli.configuration_files import read
from lamella.cli.everyday.profiles import Profile

NEVER: Final = "never"
ALL: Final = "all"
NOBODY: Final = "nobody"
DESKTOP: Final = "desktop"
QUBES: Final = "qubes:"
"""As a source of setup: the qubes that are marked for backups; with a name behind it that qube."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Everything that a person or the options decide."""

    name: str
    """Of the repository, the profile, the configuration file and the key file."""
    sources: tuple[str, ...]
    place: str
    """The repository's, as `-r` takes it."""
    when: str
    """As systemd.time(7) has it, or NEVER."""
    keep: str
    """`DAYS,WEEKS,MONTHS`, or ALL."""
    tell: str
    """An address for mail, DESKTOP, or NOBODY."""
    sheet: Path
    keyfile: Path
    domain: str | None = None
    is_silence_meant: bool = False
    """Whether somebody chose NOBODY, instead of taking what was offered where nobody can be told."""


@dataclass(frozen=True, slots=True)
class SetupPlan:
    """The answers and the configuration file; `exists`: the file is there already, and says the same or more."""

    answers: Answers
    config: Path
    exists: bool = False
    is_default: bool = False
    """Whether the configuration makes the repository the default."""

    @property
    def text(self) -> str:
        """The configuration file."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        answers, name = self.answers, self.answers.name
        yield "# Written by: lamella setup. Change what you like, then: lamella config validate"
        yield "# Every key is explained in: man lamella-configuration"
        if self.is_default:
            yield from ("", "# The repository of commands that name none.", f"default_repository = {quoted(name)}")
        yield from ("", f"[repositories.{name}]", f"url = {quoted(answers.place)}")
        yield "# Whoever has this file can read the backups. The recovery sheet opens them without it."
        yield f"keyfile = {quoted(str(answers.keyfile))}"
        yield from ("", f"# lamella run {name}", f"[profiles.{name}]")
        qubes = [one.removeprefix(QUBES) for one in answers.sources if one.startswith(QUBES)]
        sources = [one for one in answers.sources if not one.startswith(QUBES)]
        if sources:
            yield "# Also patterns, directories, lvm:VG/LV, zfs:POOL/VOL, libvirt:DOMAIN, and NAME=SOURCE."
            yield f"sources = [{', '.join(map(quoted, sources))}]"
        yield f"repositories = [{quoted(name)}]"
        if not sources:
            yield "# Every qube has a domain of its own."
        elif answers.domain is None:
            yield f"# Equal contents of several volumes are stored once in one domain: domain = {quoted(name)}"
        else:
            yield f"domain = {quoted(answers.domain)}"
        yield from self._care()
        if qubes:
            yield from ("", f"[profiles.{name}.qubes]")
            yield "# Without names, tags or labels: the qubes that are marked for backups. Also exclude = [...]."
            names = [one for one in qubes if one]
            yield f"names = [{', '.join(map(quoted, names))}]" if names else '# tags = ["personal"]'

    def _care(self) -> Iterator[str]:
        answers, name = self.answers, self.answers.name
        if answers.keep == ALL:
            yield from ("# Every snapshot is kept.", "prune = false")
        else:
            days, weeks, months = answers.keep.split(",")
            yield "# Which snapshots are kept: the last three, and one of each of so many days, weeks and months."
            yield f"prune = {{ keep_last = 3, keep_daily = {days}, keep_weekly = {weeks}, keep_monthly = {months} }}"
        yield "# So much is read back after each run, what was unread for the longest time first."
        yield from ('verify = "10GiB"', "# So long without a good backup, and somebody is told.", 'stale_after = "3d"')
        yield from ("", f"[profiles.{name}.notify]")
        if answers.tell == NOBODY:
            yield '# Nobody is told of trouble. One of: mail = "root", desktop = true, command = "...", ping = "https://..."'
            yield from ["nobody = true"] if answers.is_silence_meant else []
        else:
            yield "desktop = true" if answers.tell == DESKTOP else f"mail = {quoted(answers.tell)}"
        yield from ("", f"[profiles.{name}.schedule]")
        if answers.when == NEVER:
            yield f"# Nothing runs by itself until: lamella schedule install {name}"
            yield '# when = "daily"'
        else:
            yield f"when = {quoted(answers.when)}"

    def checked(self, configured: Configuration) -> Profile:
        """The profile in the file, as every command will read it, beside the other files.

        Raises UsageError for anything wrong in it.
        """
        if self.exists:
            return configured.profiles[self.answers.name]
        with tempfile.TemporaryDirectory(prefix="lamella-setup-") as folder:
            path = Path(folder) / self.config.name
            path.write_text(self.text, "utf-8")
            found = read(configured.place, [*configured.files, path])
        if found.problems:
            raise UsageError(found.problems[0].replace(f"{folder}/", ""), hint="nothing was written")
        return found.profiles[self.answers.name]

    def commands(self) -> Iterator[list[str]]:
        """What is run once the key file and the configuration are there; `VOLUME` stands for the smallest one."""
        name = self.answers.name
        yield ["lamella", "init", "-r", name, "--recovery-sheet", str(self.answers.sheet)]
        if self.answers.when != NEVER:
            yield ["lamella", "schedule", "install", name]
        yield ["lamella", "run", name]
        yield ["lamella", "restore", "-r", name, "VOLUME", "--to", "TEMPORARY"]
        yield ["lamella", "verify", "-r", name, "VOLUME", "--level", "source"]
        yield ["lamella", "status", "-r", name]


def quoted(text: str) -> str:
    """A basic string of TOML, which JSON's are where they are all ASCII."""
    return json.dumps(text).replace("\x7f", "\\u007f")


def checked_keep(text: str) -> str:
    """`DAYS,WEEKS,MONTHS` or `all`. Raises UsageError."""
    plain = "".join(text.split())
    if plain != ALL and not re.fullmatch(r"[1-9]\d{0,4},[1-9]\d{0,4},[1-9]\d{0,4}", plain):
        hint = "write days,weeks,months as 14,8,12, or all"
        raise UsageError(f"not a rule for snapshots: {text}", obj=text, hint=hint)
    return plain


def existing(configured: Configuration, name: str) -> tuple[str, str, tuple[str, ...], str] | None:
    """What an earlier setup of this name configured: place, key file, sources, when; None if it did not.

    Raises UsageError if the configuration has a half of it: that was written by somebody else.
    """
    repository, profile = configured.repositories.get(name), configured.profiles.get(name)
    if repository is None and profile is None:
        return None
    if repository is None or profile is None or profile.repositories != (name,) or not repository.keyfile:
        hint = "give another name: --name NAME"
        raise UsageError(f"{name} is configured already, and not by lamella setup", obj=name, hint=hint)
    # A time that nobody wrote is that of a profile without a timer.
    when = profile.schedule.when if f"profiles.{name}.schedule.when" in configured.origins else NEVER
    return repository.url, repository.keyfile, profile.sources, when


def absolute_sources(texts: Sequence[str]) -> tuple[str, ...]:
    """The sources as a timer can use them, with absolute paths. Raises UsageError or NothingMatched."""
    from lamella.cli.found_sources import files_of
    from lamella.sources.names import split_name

    found = []
    for text in texts:
        name, place = split_name(text)
        if re.match(r"[a-z0-9_+]+:", place) or place.startswith("!"):
            found.append(text)
            continue
        place = str(Path(place).absolute())
        absolute = place if name is None else f"{name}={place}"
        if files_of(absolute, (), lambda _: None) is None and not Path(place).exists():
            raise UsageError(f"there is no {place} to save", obj=place)
        found.append(absolute)
    return tuple(dict.fromkeys(found))
