"""Asking the person at the terminal."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from lamella.base.errors import Interrupted, KeyRefused, UsageError
from lamella.cli.output import is_terminal

if TYPE_CHECKING:
    from lamella.crypto.slots import Secret

Opened = TypeVar("Opened")
_TRIES = 3
_RECOVERY_CHARACTERS, _RECOVERY_DASHES = 56, 13
"""Of a recovery key as the sheet shows it."""


def has_terminal() -> bool:
    """Whether the process has a terminal to ask for a secret, whatever its streams are."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def ask_secret(prompt: str) -> str:
    """Read a secret without showing it. Needs a terminal. Raises Interrupted at the end of input."""
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise Interrupted("nothing was typed") from None


def ask_existing_secret(prompt: str) -> Secret:
    """A passphrase, or a recovery key in the form in which the sheet shows it. Raises KeyRefused, UsageError."""
    from lamella.crypto.recovery import recovery_key
    from lamella.crypto.slots import passphrase

    text = ask_secret(prompt)
    if len("".join(text.replace("-", " ").split())) == _RECOVERY_CHARACTERS:
        try:
            return recovery_key(text)
        except KeyRefused:
            if text.count("-") == _RECOVERY_DASHES:
                raise
    return passphrase(text)


def tried(
    place: str, opens: Callable[[Secret], Opened], ask: Callable[[], Secret], warn: Callable[[str], None]
) -> Opened:
    """What `opens` returns, with the key that is kept, or else a secret that is asked for: a person may be wrong twice.

    Raises KeyRefused, and what `ask` raises.
    """
    from lamella.cli.agent import opened_by_kept

    opened = opened_by_kept(place, opens)
    if opened is not None:
        return opened
    for _ in range(_TRIES - 1):
        try:
            return opens(ask())
        except KeyRefused as error:
            warn(f"{error.message}; try again: a recovery key is taken here, too")
    return opens(ask())


def ask_new_secret(word: str) -> str:
    """A new secret, typed twice. Raises UsageError when it is empty or the two differ."""
    first = ask_secret(f"New {word}: ")
    if not first:
        raise UsageError(f"the {word} is empty")
    if ask_secret(f"New {word} again: ") != first:
        raise UsageError(f"the two entries of the {word} differ")
    return first


def can_confirm() -> bool:
    """Whether there is a person to ask: input and messages both go to a terminal."""
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


def confirm(question: str) -> bool:
    """Ask yes or no; anything but yes is no."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def shows_secrets(*, as_json: bool) -> str:
    """The stream that may show a secret, a terminal: "stdout", "stderr", or "" without any."""
    if not as_json and is_terminal(sys.stdout):
        return "stdout"
    return "stderr" if is_terminal(sys.stderr) else ""
