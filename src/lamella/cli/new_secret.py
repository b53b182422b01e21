"""Where a secret that is about to be set comes from: as `secret` says, but typed twice, and by options of its own."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping

from lamella.base.errors import UsageError
from lamella.cli.configuration import RepositorySettings
from lamella.cli.secret import (
    SecretSource,
    from_command,
    from_descriptor,
    from_key_file,
    from_passphrase_file,
    only_one,
    option,
    passphrase_variables,
    secret_source,
)
from lamella.cli.terminal import ask_secret, has_terminal
from lamella.crypto import recovery, slots
from lamella.crypto.slots import Secret

SHORTEST = 8
"""Characters of a new passphrase: whoever copies the repository may guess for years."""


def first_secret_source(args: Namespace, env: Mapping[str, str], settings: RepositorySettings | None) -> SecretSource:
    """The source of a new repository's secret: as `secret_source`, but typed twice. A key file must exist."""
    found = secret_source(args, env, settings)
    return SecretSource(found.label, _typed_twice) if found.label == "terminal" else found


def new_secret_source(args: Namespace, env: Mapping[str, str]) -> SecretSource:
    """The source of a further secret, for `key add` and `key change`. Raises UsageError as `secret_source` does."""
    named = [
        *passphrase_variables(env, "LAMELLA_NEW_PASSPHRASE"),
        *option("--new-passphrase-file", args.new_passphrase_file, from_passphrase_file),
        *option("--new-passphrase-command", args.new_passphrase_command, from_command),
        *option("--new-passphrase-fd", args.new_passphrase_fd, from_descriptor),
        *option("--new-keyfile", args.new_keyfile, from_key_file),
    ]
    if args.recovery:
        named.append(SecretSource("--recovery", recovery.new_recovery_key))
    found = only_one(named)
    if found is not None:
        return found
    if not has_terminal():
        raise UsageError(
            "no new secret is given, and there is no terminal to ask for one",
            hint="give --new-passphrase-file, --new-keyfile or --recovery",
        )
    return SecretSource("terminal", _typed_twice)


def _typed_twice() -> Secret:
    """A new passphrase from the terminal. Raises UsageError when it is empty or short, or the two entries differ."""
    first = ask_secret("New passphrase: ")
    if not first:
        raise UsageError("the passphrase is empty")
    if len(first) < SHORTEST:
        hint = "several words that do not belong together are easy to remember and hard to guess"
        raise UsageError(f"the passphrase has fewer than {SHORTEST} characters", hint=hint)
    if ask_secret("New passphrase again: ") != first:
        raise UsageError("the two entries of the passphrase differ")
    return slots.passphrase(first)
