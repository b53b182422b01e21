"""Asking the person at the terminal."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from lamella.base.errors import Interrupted, KeyRefused
from lamella.cli.output import is_terminal

if TYPE_CHECKING:
    from lamella.crypto.slots import Secret

Opened = TypeVar("Opened")
_TRIES = 3


def has_terminal() -> bool:
    """Whether the process has a terminal to ask for a secret, whatever its streams are."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def ask_secret(prompt: str) -> str:
    """Read a secret without showing it. Needs a terminal. Raises Interrupted at the end of input, and for Ctrl-C."""
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise Interrupted("nothing was typed") from None
    except KeyboardInterrupt:
        print(file=sys.stderr)  # the cursor stands behind the prompt
        raise Interrupted("interrupted") from None


def ask_existing_secret(prompt: str) -> Secret:
    """A passphrase, or a recovery key in the form in which the sheet shows it. Raises KeyRefused, UsageError."""
    from lamella.crypto.recovery import is_nearly_a_key, recovery_key
    from lamella.crypto.slots import passphrase

    text = ask_secret(prompt)
    try:
        return recovery_key(text)
    except KeyRefused:
        if is_nearly_a_key(text):
            raise
    return passphrase(text)


def tried(
    place: str, opens: Callable[[Secret], Opened], ask: Callable[[], Secret], warn: Callable[[str], None]
) -> Opened:
    """The result of `opens` with the kept key, else with a secret that is asked for: a person may be wrong twice.

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
