"""The passphrase of another tool's archive."""

from __future__ import annotations

from lamella.base.errors import UsageError
from lamella.cli.context import Context
from lamella.cli.secret import only_one, passphrase_variables

FOREIGN_SECRETS = """\
The passphrase of an encrypted archive comes from one of LAMELLA_FROM_PASSPHRASE, LAMELLA_FROM_PASSPHRASE_FILE,
LAMELLA_FROM_PASSPHRASE_COMMAND and LAMELLA_FROM_PASSPHRASE_FD, else the command asks at the terminal."""


def foreign_passphrase(context: Context) -> bytes:
    """The passphrase of the archive, as UTF-8. Raises UsageError where nothing names it and nobody can be asked."""
    found = only_one(passphrase_variables(context.env, "LAMELLA_FROM_PASSPHRASE"))
    if found is not None:
        return found.read().value
    from lamella.cli.terminal import ask_secret, has_terminal  # only where nothing names it

    if not has_terminal():
        hint = "set LAMELLA_FROM_PASSPHRASE_FILE"
        raise UsageError("the archive is encrypted, and nothing names its passphrase", hint=hint)
    return ask_secret("Passphrase of the archive: ").encode("utf-8", "surrogateescape")
