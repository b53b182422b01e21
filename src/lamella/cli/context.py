"""What a command is given: its arguments, this host, the configuration, the repository."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from lamella.base.errors import Absent, Interrupted, Locked, NoRepository, RolledBack, StoreUnavailable, UsageError
from lamella.cli import configuration
from lamella.cli.configuration import Configuration, RepositorySettings
from lamella.cli.output import Output
from lamella.cli.places import config_place, this_host
from lamella.cli.secret import FIRST, SECOND, given_source, secret_source
from lamella.cli.terminal import can_confirm, confirm
from lamella.crypto.slots import Secret
from lamella.memory.host import Host
from lamella.operations.shared.heads import require_fingerprint
from lamella.repository.repository import Repository
from lamella.repository.slots import read_marker
from lamella.sources.base import Source
from lamella.sources.keeping import Keeping, PoolLimits
from lamella.sources.registry import open_kept_source
from lamella.stores.base import Store
from lamella.stores.url import open_store
from lamella.stores.wrap import LimitedStore, RetryingStore, TokenBucket


class Context:
    """One run of one command. What is not asked for is not read."""

    secret_names = FIRST

    def __init__(self, args: Namespace, env: Mapping[str, str], out: Output) -> None:
        self.args = args
        self.env = env
        self.out = out

    @cached_property
    def config(self) -> Configuration:
        """The configuration. Raises UsageError for anything wrong in it."""
        found = configuration.load(config_place(self.env))
        found.require_valid()
        return found

    @cached_property
    def host(self) -> Host:
        """This host."""
        return this_host(self.env)

    @cached_property
    def _place(self) -> tuple[str, RepositorySettings | None]:
        return self.named_place(self._named())

    def _named(self) -> str:
        """REPO as it was named."""
        text = self.args.repo or self.env.get("LAMELLA_REPO") or self.config.default_repository
        if not text:
            raise UsageError("no repository is named", hint="give -r REPO, or set LAMELLA_REPO")
        return str(text)

    def named_place(self, text: str) -> tuple[str, RepositorySettings | None]:
        """Where a repository named on the command line is, and what is configured for it."""
        settings = self.config.repositories.get(text) if configuration.is_name(text) else None
        return (text, None) if settings is None else (settings.url, settings)

    @property
    def destinations(self) -> list[str]:
        """All repositories that a backup goes to, as they were named: by -r, LAMELLA_REPO or the configuration.

        Raises UsageError if there is none.
        """
        if self.args.repos:
            return list(self.args.repos)
        if not self.env.get("LAMELLA_REPO") and self.config.backup.repositories:
            return list(self.config.backup.repositories)
        return [self._named()]

    @property
    def place(self) -> str:
        """REPO: -r, LAMELLA_REPO or the configured default, names replaced by what they stand for."""
        return self._place[0]

    @property
    def settings(self) -> RepositorySettings | None:
        """What is configured for REPO, if it was given by name."""
        return self._place[1]

    def source(self, text: str, driver: str | None = None) -> Source:
        """The source at a path, with the driver that fits it or the one named. Raises SourceError, UsageError."""
        return open_kept_source(text, self.host.machine, self.keeping, driver)

    @cached_property
    def keeping(self) -> Keeping:
        """What is configured about kept moments, and whose they are."""
        configured, lvm = self.config.backup.checkpoint_dir, self.config.lvm
        return Keeping(
            self.host.owner,
            None if configured is None else Path(configured),
            records=self.host.source_records,
            limits=PoolLimits(lvm.data_percent, lvm.metadata_percent),
        )

    @contextmanager
    def store(self, *, create: bool = False, read_only: bool = False) -> Iterator[Store]:
        """The store at REPO, retried and limited. Raises NoRepository, StoreError, UsageError, Absent."""
        with self._may_be_absent():
            opened = open_store(self.place, create=create, read_only=read_only, environment=self.env)
        with closing(RetryingStore(self._limited(opened))) as store:
            yield store

    def _limited(self, store: Store) -> Store:
        configured = None if self.settings is None else self.settings.limit_rate
        rate = self.args.limit_rate or configured
        return store if rate is None else LimitedStore(store, TokenBucket(rate))

    @contextmanager
    def _may_be_absent(self) -> Iterator[None]:
        """With --if-available, a place that cannot be reached is Absent."""
        try:
            yield
        except (NoRepository, StoreUnavailable) as error:
            if not self.args.if_available:
                raise
            raise Absent(f"{self.place} is not available: {error.message}", obj=self.place) from error

    def _require_marker(self, store: Store) -> None:
        """Raises NoRepository; with --if-available Absent where nothing at all is, as below an empty mount point."""
        nothing = False
        try:
            with self._may_be_absent():
                nothing = self.args.if_available and next(iter(store.list("")), None) is None
            read_marker(store)
        except NoRepository as error:
            if nothing and not isinstance(error, Absent):
                raise Absent(f"{self.place} is not available: nothing is there", obj=self.place) from error
            raise

    @contextmanager
    def repository(
        self, *, read_only: bool = True, whole: bool = False, stored: bool = False, exclusive: bool = False
    ) -> Iterator[Repository]:
        """The open repository. A missing one is reported before a secret is asked for.

        `exclusive`: nobody else may use it meanwhile, where the destination can promise that. `whole` and `stored` as
        for `Repository.open`.

        Raises NoRepository, KeyRefused, Locked, IntegrityError, RolledBack, StoreError, UsageError.
        """
        self.check_secret()  # a contradiction on the command line comes first
        with self.store(read_only=read_only) as store:
            self._require_marker(store)
            secret = self._secret()
            with self._opened(store, secret, whole, stored, exclusive) as repository:
                self.require_expected(repository)
                for note in repository.catalogue.notes:
                    self.out.detail(note)
                self._note_unexplained(repository)
                for lack in repository.log.older:
                    self.out.warn(f"an older copy: {lack.message}", store.url)
                yield repository

    def _note_unexplained(self, repository: Repository) -> None:
        """Junk and a commit of which nothing is left look the same."""
        names = repository.history.unexplained
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            hint = "if it was one, its host brings it back with: lamella check --repair"
            self.out.say(f"note: {names[0]}{more} is no commit, and nothing shows that it ever was; {hint}")

    def _secret(self) -> Secret:
        return secret_source(self.args, self.env, self.settings, self.secret_names).read()

    def check_secret(self) -> None:
        """Raises UsageError if several sources of the secret are named."""
        given_source(self.args, self.env, self.settings, self.secret_names)

    def _opened(self, store: Store, secret: Secret, whole: bool, stored: bool, exclusive: bool) -> Repository:
        wait = self.args.lock_wait
        with _locking(store):
            return Repository.open(
                store, secret, self.host, lock_wait=wait, whole=whole, stored=stored, exclusive=exclusive
            )

    def require_expected(self, repository: Repository) -> None:
        """Raises RolledBack unless the repository is in the state that --expect names."""
        require_fingerprint(repository, self.args.expect)

    def lock_exclusively(self, repository: Repository) -> None:
        """Exchange the shared lock for the exclusive one. Raises Locked, StoreError."""
        with _locking(repository.store):
            repository.lock_exclusively(self.args.lock_wait)

    @contextmanager
    def sound_repository(self, *, read_only: bool = True) -> Iterator[Repository]:
        """The open repository, for commands that must not build on a history that is wrong, or write to a mirror.

        Raises as `repository`, and RolledBack.
        """
        with self.repository(read_only=read_only) as repository:
            repository.require_sound_history()
            if not read_only:
                repository.log.require_writable()
            yield repository

    def warn_of_problems(self, repository: Repository) -> int:
        """Say what is wrong with the history. Returns the exit code of a command that did its work all the same."""
        for problem in repository.problems:
            self.out.warn(f"{problem.message}; {problem.remedy}")
        return RolledBack.exit_code if repository.problems else 0

    @property
    def asks(self) -> bool:
        """Whether there is a person to ask, and neither --yes nor --json is given."""
        return not (self.args.yes or self.args.json) and can_confirm()

    def confirm(self, question: str) -> None:
        """Ask if there is anybody to ask. Raises Interrupted for a no."""
        if self.asks and not confirm(question):
            raise Interrupted("not confirmed: nothing was done")


@contextmanager
def _locking(store: Store) -> Iterator[None]:
    """Say of a lock that others hold where it is, and what can be done."""
    try:
        yield
    except Locked as error:
        error.obj, error.hint = store.url, "try again later, or wait with --lock-wait SECONDS"
        raise


class DestinationContext(Context):
    """One of several repositories of a command; a secret that is named for all of them is read once."""

    def __init__(self, first: Context, text: str, secrets: dict[str, Secret]) -> None:
        super().__init__(first.args, first.env, first.out)
        self.secret_names = replace(FIRST, prompt=f"Passphrase of {text}: ")
        self._text = text
        self._secrets = secrets
        self.__dict__.update(config=first.config, host=first.host)

    @cached_property
    def _place(self) -> tuple[str, RepositorySettings | None]:
        return self.named_place(self._text)

    def _secret(self) -> Secret:
        if given_source(self.args, self.env, None, self.secret_names) is None:
            return super()._secret()
        # A descriptor can be read only once.
        return self._secrets.setdefault("", self._secrets.get("") or super()._secret())


class SecondContext(Context):
    """The other repository of a command that works on two: named by --to, its secret by options and variables of
    its own.
    """

    secret_names = SECOND

    def __init__(self, first: Context) -> None:
        super().__init__(first.args, first.env, first.out)

    def require_expected(self, repository: Repository) -> None:
        """--expect is about the first one."""

    @cached_property
    def _place(self) -> tuple[str, RepositorySettings | None]:
        return self.named_place(self.args.to)
