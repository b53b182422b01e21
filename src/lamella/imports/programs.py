"""Archives that only their own program opens: it lists them, and gives each volume as a stream (docs/decisions/0095).

What it prints is as hostile as the archive that it read: lines are bounded, and so is their number.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from lamella.base.errors import KeyRefused, LamellaError, NoRepository, SourceError, UsageError, printable
from lamella.imports.history import ForeignVolume, shown_name
from lamella.run.spawn import run, stream
from lamella.run.user_command import UserCommand
from lamella.sources.stream import FrozenStream, StreamSource

MOST_BYTES: Final = 1 << 47
"""128 TiB: no volume is larger."""
MOST_ROWS: Final = 200_000
"""Volumes in all sessions together."""
_LINE_MOST, _LIST_MOST = 1 << 16, 64 << 20
"""Bytes of a line, and of a list that is one document."""
_LIST_SECONDS: Final = 24 * 3600.0
_VERSION_SECONDS: Final = 60.0
_SAID_MOST: Final = 500
"""Characters of what a program says when it fails."""
_LOCALE: Final = "C.UTF-8"
_VERSION: Final = re.compile(r"(\d{1,9})\.(\d{1,9})")
_SAID: Final[Sequence[tuple[re.Pattern[str], type[LamellaError]]]] = (
    (re.compile(r"[Rr]epository .{0,4096}does not exist|is not a valid repository"), NoRepository),
    (re.compile(r"[Ii]s there a repository at the following location"), NoRepository),
    (re.compile(r"[Pp]assphrase supplied in .{0,4096} is incorrect|wrong password or no key found"), KeyRefused),
)
"""What borg 1.2 to 2.0.0b21 and restic 0.14 to 0.19 say of an archive that does not open, and which error that is."""

Wanted = Callable[[str], bool]
"""Whether a path is wanted: an archive may hold millions."""


class ForeignStream(StreamSource):
    """A volume at one session, as a program writes it; it has the same identity in all sessions."""

    @property
    def identity(self) -> bytes:
        """What its history calls it: `machine` holds the archive, `name` the volume."""
        return f"{self.machine}:{self.name}".encode("utf-8", "surrogateescape")

    @contextmanager
    def freeze(self) -> Iterator[FrozenStream]:
        """Nothing is started before the first piece is asked for."""
        frozen = _Told(self)
        try:
            yield frozen
        finally:
            frozen.close()


_LOST: Final = re.compile(r"missing|zero bytes|damaged|corrupt|integrity", re.IGNORECASE)
"""borg 2.0.0b21 writes zeros for a chunk that is gone, says so on its standard error, and ends as if all were well."""


class _ForeignCommand(UserCommand):
    """A program that may end well though it wrote something else than was saved."""

    def finish(self) -> None:
        """As for every command; also raises if the program speaks of damage."""
        try:
            super().finish()
        except SourceError as error:
            raise SourceError(_brief(error.message), obj=error.obj) from None
        said = self._child.said()
        if _LOST.search(said):
            raise SourceError(_brief(f"the archive is damaged: {said}"))


def _brief(message: str) -> str:
    """A message that a person reads: borg 1 prints its own traceback where its repository is damaged."""
    said = message.partition("; Traceback (most recent call last)")[0]
    return said if len(said) <= _SAID_MOST else f"{said[:_SAID_MOST]} ..."


class _Told(FrozenStream):
    """Its size is the one in the archive's list."""

    def _started(self, again: bool) -> UserCommand | None:
        source = self._source
        return self._open.enter_context(_ForeignCommand(source.command, source.locale, SourceError))

    def _failed(self, how: str) -> SourceError:
        error = super()._failed(how)
        return SourceError(error.message.replace(" of --size", " that the archive lists"), obj=error.obj)


@dataclass(frozen=True, slots=True)
class Program:
    """A program and the options that it needs everywhere. Its secrets and settings come from the environment."""

    words: tuple[str, ...]
    archive: str
    """The prefix of the identity of every volume: the kind, and the id of the repository."""

    def document(self, *words: str) -> object:
        """The JSON document that it prints. Raises SourceError, NoRepository, KeyRefused."""
        command = _quiet(self.words + words)
        with self._named():
            printed = run(command, timeout_seconds=_LIST_SECONDS, max_output=_LIST_MOST, error=SourceError)
        return decoded(printed, self.words[0])

    def lines(self, *words: str) -> Iterator[dict[str, Any]]:
        """The JSON object on each line that it prints. Raises SourceError."""
        kept = b""
        with self._named():
            for piece in stream(_quiet(self.words + words), timeout_seconds=_LIST_SECONDS, error=SourceError):
                *whole, kept = (kept + piece).split(b"\n")
                if len(kept) > _LINE_MOST or any(len(line) > _LINE_MOST for line in whole):
                    raise SourceError(f"{self.words[0]} printed a line that is too long", obj=self.words[0])
                yield from (_row(line, self.words[0]) for line in whole if line)
        if kept:
            yield _row(kept, self.words[0])

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors are those of the program, not of `env`, which starts it."""
        try:
            yield
        except SourceError as error:
            message = error.message
            if message.startswith("env "):
                message = self.words[0] + message.removeprefix("env")
            raise _sorted(message)(_brief(message), obj=self.words[0]) from None

    def volume(self, name: str, size: int, words: Sequence[str], machine: str = "") -> ForeignVolume:
        """A volume that it writes to its standard output when it is called so."""
        command = shlex.join(_quiet((*self.words, *words)))
        source = ForeignStream(name, f"{self.archive}{machine}", command, _LOCALE, size)
        return ForeignVolume(f"{machine}:{name}" if machine else name, source, size)


def _sorted(message: str) -> type[LamellaError]:
    return next((kind for pattern, kind in _SAID if pattern.search(message)), SourceError)


def _quiet(words: Sequence[str]) -> list[str]:
    # Times without a zone are then UTC, and no hour is there twice.
    return ["env", "TZ=UTC", *words]


def _row(line: bytes, name: str) -> dict[str, Any]:
    found = decoded(line, name)
    if not isinstance(found, dict):
        raise SourceError(f"{name} printed what is no list", obj=name)
    return found


def decoded(printed: bytes, name: str) -> object:
    """A JSON document. Raises SourceError."""
    try:
        found: object = json.loads(printed)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{name} printed what is no list", obj=name) from error
    return found


def text_of(row: object, key: str) -> str:
    """A text in a row that can be an argument of a program, or an empty one."""
    found = row.get(key) if isinstance(row, dict) else None
    if not isinstance(found, str) or "\0" in found:
        return ""
    try:
        os.fsencode(found)
    except UnicodeEncodeError:  # half of a character
        return ""
    return found


def size_of(row: dict[str, Any]) -> int:
    """The size in a row; -1 for none that a volume can have."""
    found = row.get("size")
    return found if type(found) is int and 0 <= found <= MOST_BYTES else -1


def version_of(words: Sequence[str]) -> tuple[tuple[int, int], str]:
    """The version of a program, as numbers and as it says it. Raises UsageError where there is none."""
    try:
        said = run(words, timeout_seconds=_VERSION_SECONDS, error=SourceError).decode("utf-8", "replace")
    except SourceError as error:
        raise UsageError(error.message, obj=words[0], hint="install it, or name it with --program") from error
    found = _VERSION.search(said)
    if found is None:
        raise UsageError(f"{words[0]} does not say its version", obj=words[0])
    return (int(found[1]), int(found[2])), shown_name(printable(said.strip().split("\n")[0]))


class Rows:
    """Counts the volumes of all sessions, and says why some are left out."""

    def __init__(self) -> None:
        self._count = 0
        self.warnings: list[str] = []
        self.lacks: list[str] = []

    def add(self) -> None:
        """One more. Raises UsageError for too many."""
        self._count += 1
        if self._count > MOST_ROWS:
            hint = "choose by a pattern, such as '*.img'"
            raise UsageError(f"more than {MOST_ROWS} files in all sessions together", hint=hint)

    def leave_out(self, session: str, path: str, size: int) -> None:
        """A file that is no volume, because it is empty or nobody knows its size."""
        if size == 0:
            self.warnings.append(f"{shown_name(session)}: {shown_name(path)} is left out: it is empty")
        else:
            self.lack(session, path, "its size is not listed")

    def lack(self, session: str, path: str, why: str) -> None:
        """A volume that cannot be imported: the import is not complete."""
        self.lacks.append(f"{shown_name(session)}: {shown_name(path)} is left out: {why}")
