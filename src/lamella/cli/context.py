"""The context of a command: its arguments, this host, the configuration, the repository."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from lamella.base.errors import Absent, Interrupted, Locked, NoRepository, RolledBack, StoreUnavailable
from lamella.cli.output import Output
from lamella.cli.places import config_place, is_name, this_host
from lamella.cli.secret import FIRST, SecretSource, given_source, secret_source
from lamella.memory.host import Host, Notices
from lamella.repository.repository import Repository
from lamella.repository.slots import read_marker
from lamella.stores.base import Store
from lamella.stores.url import open_store
from lamella.stores.wrap.retrying import RetryingStore

# Sources, prompts and limits are imported where they are used: most commands that read a repository need none of them.
if TYPE_CHECKING:
    from lamella.cli.configuration import Configuration, RepositorySettings
    from lamella.crypto.slots import Secret
    from lamella.history.answers import KeptAnswer


class Context:
    """One run of one command. Everything is read at first use."""

    secret_names = FIRST

    def __init__(self, args: Namespace, env: Mapping[str, str], out: Output) -> None:
        self.args = args
        self.env = env
        self.out = out
        self._found = False

    @cached_property
    def config(self) -> Configuration:
        """The configuration. Raises UsageError for anything wrong in it."""
        from lamella.cli import configuration  # what names everything on the command line needs none

        found = configuration.load(config_place(self.env))
        found.require_valid()
        return found

    @cached_property
    def host(self) -> Host:
        """This host; what is wrong with its memory is a warning."""
        return replace(this_host(self.env), notices=Notices(self.out.warn))

    @cached_property
    def _place(self) -> tuple[str, RepositorySettings | None]:
        return self.named_place(self.named())

    def named(self) -> str:
        """REPO as the user named it."""
        text = self.args.repo or self.env.get("LAMELLA_REPO") or self.config.default_repository
        if not text:
            from lamella.cli.near import no_repository

            raise no_repository(self.env, self.config)
        return str(text)

    def named_place(self, text: str) -> tuple[str, RepositorySettings | None]:
        """The URL and the settings of a repository that the command line names."""
        if text.startswith("fleet:") or (is_name(text) and text in self.config.media):
            from lamella.cli.other_places import other_place  # few have many hosts, or media that take turns

            return other_place(self, text)
        settings = self.config.repositories.get(text) if is_name(text) else None
        return (text, None) if settings is None else (settings.url, settings)

    @property
    def place(self) -> str:
        """The URL of REPO: -r, LAMELLA_REPO or the configured default."""
        return self._place[0]

    @property
    def settings(self) -> RepositorySettings | None:
        """The settings of REPO, if the user gave its configured name."""
        return self._place[1]

    @contextmanager
    def store(self, *, create: bool = False, read_only: bool = False) -> Iterator[Store]:
        """The store at REPO, retried and limited. Raises NoRepository, StoreError, UsageError, Absent."""
        with self._may_be_absent():
            opened = open_store(self.place, create=create, read_only=read_only, environment=self.store_environment)
        with closing(self.retrying(self._settled(opened), self.place)) as store:
            yield store

    def retrying(self, store: Store, place: str) -> RetryingStore:
        """The store, tried again when it fails; the user hears of the first failure.

        With --if-available only once the repository was found: until then one line says that it is not there.
        """

        def tell(text: str) -> None:
            if self._found or not self.args.if_available:
                self.out.warn(text, place)

        return RetryingStore(store, tell=tell)

    @property
    def store_environment(self) -> Mapping[str, str]:
        """The variables of this process, and what options and the configuration say instead."""
        ssh = self.args.ssh_command or (self.settings and self.settings.ssh_command)
        return {**self.env, "LAMELLA_SSH_COMMAND": ssh} if ssh else self.env

    def _settled(self, store: Store) -> Store:
        if self.settings is None and self.args.limit_rate is None:
            return store
        from lamella.cli.settled import settled  # only where something was configured, or a rate given

        return settled(self, store)

    @contextmanager
    def _may_be_absent(self) -> Iterator[None]:
        """With --if-available, an unreachable place is Absent."""
        try:
            yield
        except (NoRepository, StoreUnavailable) as error:
            if not self.args.if_available:
                raise
            raise Absent(f"{self.place} is not available: {error.message}", obj=self.place) from error

    def _require_marker(self, store: Store) -> None:
        """Raises NoRepository; with --if-available, Absent for an empty place, such as an empty mount point."""
        nothing = False
        try:
            with self._may_be_absent():
                nothing = self.args.if_available and next(iter(store.list("")), None) is None
            read_marker(store)
            self._found = True
        except NoRepository as error:
            if nothing and not isinstance(error, Absent):
                raise Absent(f"{self.place} is not available: nothing is there", obj=self.place) from error
            raise

    @contextmanager
    def repository(
        self,
        *,
        read_only: bool = True,
        whole: bool = False,
        stored: bool = False,
        exclusive: bool = False,
        answer: KeptAnswer | None = None,
    ) -> Iterator[Repository]:
        """The open repository. A missing repository is an error before the command asks for a secret.

        `exclusive`: keep everybody else out, where the destination can do that. `whole`, `stored` and `answer` as
        for `Repository.open`.

        Raises NoRepository, Locked, IntegrityError, RolledBack, StoreError, UsageError.
        """
        self.given_secret()  # report a contradiction on the command line first
        with self.store(read_only=read_only) as store:
            self._require_marker(store)
            with self.with_secret(partial(self._opened, store, whole, stored, exclusive, answer)) as repository:
                self.require_expected(repository)
                if self.out.verbose:
                    names, slot = {one.name for one in repository.catalogue.snapshots}, repository.unlocked.slot.name
                    self.out.detail(f"repository {repository.repo_id.hex()}, {len(names)} snapshots, by {slot}")
                for note in repository.catalogue.notes:
                    self.out.detail(note)
                if repository.history.strangers or repository.history.unexplained:
                    from lamella.cli.unexplained import note_unexplained  # in few repositories

                    note_unexplained(repository.history, self.out)
                for lack in repository.log.older:
                    self.out.warn(f"an older copy: {lack.message}", store.url)
                yield repository

    def secret(self) -> Secret:
        """The secret of REPO, from its one source or the terminal. Raises UsageError, Interrupted."""
        source = secret_source(self.args, self.env, self.settings, self.secret_names)
        if source.path:
            from lamella.cli.files import warn_if_readable

            warn_if_readable(source.path, self.out.warn)
        return source.read()

    def with_secret(self, opens: Callable[[Secret], Repository]) -> Repository:
        """Open with the secret; a person at the terminal may try three times. Raises what `opens` raises."""
        if self.given_secret():
            return opens(self.secret())
        from lamella.cli.terminal import tried  # only where nothing names a secret

        return tried(self.place, opens, self.secret, self.out.warn)

    def given_secret(self) -> SecretSource | None:
        """The source of the secret that the user named, unread. Raises UsageError for several sources."""
        return given_source(self.args, self.env, self.settings, self.secret_names)

    def _opened(
        self, store: Store, whole: bool, stored: bool, exclusive: bool, answer: KeptAnswer | None, secret: Secret
    ) -> Repository:
        wait = self.args.lock_wait
        with _locking(store):
            return Repository.open(
                store, secret, self.host, lock_wait=wait, whole=whole, stored=stored, exclusive=exclusive, answer=answer
            )

    def require_expected(self, repository: Repository) -> None:
        """Raises RolledBack unless the repository is in the state that --expect names."""
        if self.args.expect is not None:
            from lamella.operations.shared.heads import require_fingerprint

            require_fingerprint(repository, self.args.expect)

    def lock_exclusively(self, repository: Repository) -> None:
        """Exchange the shared lock for the exclusive one. Raises Locked, StoreError."""
        with _locking(repository.store):
            from lamella.repository.exclusive import lock_exclusively  # few commands need that

            lock_exclusively(repository, self.args.lock_wait)

    @contextmanager
    def sound_repository(self, *, read_only: bool = True) -> Iterator[Repository]:
        """The open repository, for commands that need a sound history; refuses to write to a mirror.

        Raises as `repository`, and RolledBack.
        """
        with self.repository(read_only=read_only) as repository:
            repository.require_sound_history()
            if not read_only:
                repository.log.require_writable()
            yield repository

    def warn_of_problems(self, repository: Repository) -> int:
        """Warn of every problem of the history. Returns the exit code of a command that did its work nevertheless."""
        for problem in repository.problems:
            self.out.warn(f"{problem.message}; {problem.remedy}")
        return RolledBack.exit_code if repository.problems else 0

    @property
    def asks(self) -> bool:
        """Whether there is a person to ask, and neither --yes nor --json is given."""
        from lamella.cli.terminal import can_confirm

        return not (self.args.yes or self.args.json) and can_confirm()

    def confirm(self, plan: str) -> None:
        """Say what will be done, and ask the person at the terminal, if there is one. Raises Interrupted for a no."""
        if self.asks:
            from lamella.cli.terminal import confirm

            if not confirm(f"{plan} Continue?"):
                raise Interrupted("not confirmed: nothing was done")


@contextmanager
def _locking(store: Store) -> Iterator[None]:
    """Add the place and a hint to the error for a lock that another process holds."""
    try:
        yield
    except Locked as error:
        error.obj, error.hint = store.url, "try again later, or wait with --lock-wait SECONDS"
        raise
