"""Where the secret comes from (design: secret): exactly one source, or the terminal."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lamella.base.errors import UsageError
from lamella.crypto import slots
from lamella.crypto.slots import Secret

if TYPE_CHECKING:
    from lamella.cli.configuration import RepositorySettings

MAX_PASSPHRASE = 1 << 20


class SecretSource(NamedTuple):
    """One place a secret can be read from, and its name as the user knows it."""

    label: str
    read: Callable[[], Secret]
    path: str = ""
    """The file that holds it."""


class SecretNames(NamedTuple):
    """The names of the sources of one repository's secret: a command that opens two has two sets of names."""

    variables: str
    options: str
    credential: str
    prompt: str


FIRST = SecretNames("LAMELLA_", "", "lamella.passphrase", "Passphrase of the repository: ")
DONOR = SecretNames("LAMELLA_FROM_", "from_", "lamella.from-passphrase", "")
SECOND = SecretNames("LAMELLA_TO_", "to_", "lamella.to-passphrase", "Passphrase of the repository to copy to: ")


def given_source(
    args: Namespace, env: Mapping[str, str], settings: RepositorySettings | None, names: SecretNames = FIRST
) -> SecretSource | None:
    """The one source of the repository's secret that options, variables or the configuration name; None without any.

    Nothing is read yet. Raises UsageError when several are named.
    """
    recovery = f"{names.variables}RECOVERY_KEY_FILE"
    named = [
        *passphrase_variables(env, f"{names.variables}PASSPHRASE"),
        *_argument(args, f"{names.options}keyfile", from_key_file),
        *_argument(args, f"{names.options}recovery_key_file", _from_recovery_file),
        *option(recovery, env.get(recovery), _from_recovery_file),
        *_credential(env, names.credential),
    ]
    return only_one(named) or only_one(_configured(settings))


def secret_source(
    args: Namespace, env: Mapping[str, str], settings: RepositorySettings | None, names: SecretNames = FIRST
) -> SecretSource:
    """The one source of the repository's secret, the terminal if none is given.

    Raises UsageError when several are named, or none is and there is no terminal.
    """
    found = given_source(args, env, settings, names)
    if found is not None:
        return found
    from lamella.cli.terminal import ask_existing_secret, has_terminal  # only where nothing names a secret

    if not has_terminal():
        option = f"--{names.options.replace('_', '-')}"
        raise UsageError(
            "no secret is given, and there is no terminal to ask for one",
            hint=f"set {names.variables}PASSPHRASE_FILE, or give {option}keyfile or {option}recovery-key-file",
        )
    return SecretSource("terminal", lambda: ask_existing_secret(names.prompt))


def only_one(sources: list[SecretSource]) -> SecretSource | None:
    """The only source of a list, None for an empty one. Raises UsageError naming them all when there are several."""
    if len(sources) > 1:
        names = ", ".join(source.label for source in sources)
        raise UsageError(f"more than one secret is given: {names}", hint="leave one")
    return sources[0] if sources else None


def passphrase_variables(env: Mapping[str, str], prefix: str) -> list[SecretSource]:
    """The sources named by PREFIX and PREFIX_FILE, _COMMAND, _FD; an empty variable counts as unset."""
    readers = {"": slots.passphrase, "_FILE": from_passphrase_file, "_COMMAND": from_command, "_FD": from_descriptor}
    found: list[SecretSource] = []
    for suffix, reader in readers.items():
        found += option(prefix + suffix, env.get(prefix + suffix), reader)
    return found


def option(label: str, value: str | None, reader: Callable[[str], Secret]) -> list[SecretSource]:
    """The source that an option, a variable or a key of the configuration names, if it is set."""
    path = value if value and reader in (from_passphrase_file, from_key_file, _from_recovery_file) else ""
    return [SecretSource(label, lambda: reader(value), path)] if value else []


def _argument(args: Namespace, name: str, reader: Callable[[str], Secret]) -> list[SecretSource]:
    return option(f"--{name.replace('_', '-')}", getattr(args, name), reader)


def _credential(env: Mapping[str, str], name: str) -> list[SecretSource]:
    directory = env.get("CREDENTIALS_DIRECTORY")
    path = Path(directory, name) if directory else None
    if path is None or not path.exists():
        return []
    return [SecretSource(f"credential {name}", lambda: from_passphrase_file(str(path)))]


def _configured(settings: RepositorySettings | None) -> list[SecretSource]:
    if settings is None:
        return []
    return [
        *option("keyfile in the configuration", settings.keyfile, from_key_file),
        *option("passphrase_file in the configuration", settings.passphrase_file, from_passphrase_file),
        *option("passphrase_command in the configuration", settings.passphrase_command, from_command),
    ]


def from_passphrase_file(path: str) -> Secret:
    """The passphrase in a file. Raises UsageError."""
    return _passphrase_of(_content(path, MAX_PASSPHRASE))


def from_command(text: str) -> Secret:
    """The passphrase that a command prints. Raises LamellaError, UsageError."""
    from lamella.cli.secret_channels import command  # most secrets are in a file

    return _passphrase_of(command(text))


def from_descriptor(text: str) -> Secret:
    """The passphrase that a file descriptor yields. Raises UsageError."""
    from lamella.cli.secret_channels import descriptor

    return _passphrase_of(descriptor(text))


def from_key_file(path: str) -> Secret:
    """The content of a key file. Raises UsageError."""
    return slots.key_file(_content(path, slots.MAX_KEY_FILE))


def _from_recovery_file(path: str) -> Secret:
    from lamella.crypto.recovery import recovery_key  # only where one is given

    return recovery_key(_content(path, MAX_PASSPHRASE).decode("ascii", "replace"))


def _content(path: str, limit: int) -> bytes:
    from lamella.cli.files import read_file

    return read_file(path, limit)


def _passphrase_of(content: bytes) -> Secret:
    """What editors add belongs to the file, not to the passphrase: a byte order mark, and one line end (CRLF, too)."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError("the passphrase is in UTF-16", hint="save the file as UTF-8")
    text = content.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").removesuffix(b"\r")
    return slots.passphrase(text.decode("utf-8", "surrogateescape"))
