"""The repositories of a command that works on more than one: each is a context beside the first."""

from __future__ import annotations

from functools import cached_property

from lamella.cli.configuration import Configuration, RepositorySettings
from lamella.cli.context import Context
from lamella.cli.secret import FIRST, SECOND, SecretNames, given_source
from lamella.crypto.slots import Secret
from lamella.memory.host import Host
from lamella.repository.repository import Repository


class OtherContext(Context):
    """A context with another repository, on the same host with the same configuration."""

    def __init__(self, first: Context, text: str, secret_names: SecretNames) -> None:
        super().__init__(first.args, first.env, first.out)
        self.secret_names = secret_names
        self._first = first
        self._text = text

    @cached_property
    def config(self) -> Configuration:
        """The configuration of the first."""
        return self._first.config

    @cached_property
    def host(self) -> Host:
        """This host."""
        return self._first.host

    @cached_property
    def _place(self) -> tuple[str, RepositorySettings | None]:
        return self.named_place(self._text)


class DestinationContext(OtherContext):
    """One of several repositories of a command; a secret that is named for all of them is read once."""

    def __init__(self, first: Context, text: str, secrets: dict[str, Secret]) -> None:
        super().__init__(first, text, FIRST._replace(prompt=f"Passphrase of {text}: "))
        self._secrets = secrets

    def secret(self) -> Secret:
        if given_source(self.args, self.env, None, self.secret_names) is None:
            return super().secret()
        # A descriptor can be read only once.
        return self._secrets.setdefault("", self._secrets.get("") or super().secret())


class SecondContext(OtherContext):
    """The repository that --to names; options and variables of its own name its secret."""

    def __init__(self, first: Context) -> None:
        super().__init__(first, first.args.to, SECOND)

    def require_expected(self, repository: Repository) -> None:
        """--expect is about the first one."""


def named_destinations(context: Context) -> list[str]:
    """All destinations of a backup, as the user named them: by -r, LAMELLA_REPO or the configuration.

    Raises UsageError if there is none.
    """
    if context.args.repos:
        return list(context.args.repos)
    if not context.env.get("LAMELLA_REPO") and context.config.backup.repositories:
        return list(context.config.backup.repositories)
    return [context.named()]
