"""Secrets that come from a program or through a file descriptor."""

from __future__ import annotations

import os

from lamella.base.errors import LamellaError, UsageError
from lamella.cli.secret import MAX_PASSPHRASE
from lamella.run.spawn import run, shell_words

_COMMAND_SECONDS = 120.0


def command(text: str) -> bytes:
    """The output of a command. Raises LamellaError, UsageError."""
    return run(shell_words(text), timeout_seconds=_COMMAND_SECONDS, error=LamellaError)


def descriptor(number: str) -> bytes:
    """The content of a file descriptor. Raises UsageError."""
    if not number.isdecimal():
        raise UsageError(f"not a file descriptor: {number!r}")
    try:
        with os.fdopen(int(number), "rb") as file:
            content = file.read(MAX_PASSPHRASE + 1)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot read the passphrase from file descriptor {number}: {error}") from error
    if len(content) > MAX_PASSPHRASE:
        raise UsageError("the passphrase is longer than 1 MiB")
    return content
