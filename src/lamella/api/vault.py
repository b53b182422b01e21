"""A repository for programs: each thing that a person does with a command is one call (docs/guide/scripts.md).

Every call does what the command of the same name does, by the same operations; nothing is printed, asked or guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lamella import facade
from lamella.api.host import LocalHost
from lamella.base.clock import moment_of
from lamella.base.errors import LamellaError, UsageError
from lamella.base.events import Reporter, Warned, silent
from lamella.cli.commands._deleting import OTHERS_DELAY_MS
from lamella.cli.found_sources import all_files
from lamella.cli.policy import read_rules
from lamella.cli.secret import from_key_file
from lamella.crypto.recovery import recovery_key as read_recovery_key
from lamella.crypto.slots import Secret
from lamella.crypto.slots import passphrase as read_passphrase
from lamella.history.catalogue import Snapshot
from lamella.memory.host import Host
from lamella.operations.backup.story import BackupOptions, BackupResult, FailedRequest, Request, plan_backup
from lamella.operations.look.listing import CONSISTENCY
from lamella.operations.prune.health import Health
from lamella.operations.prune.plan import PruneOptions
from lamella.operations.prune.prune import run_prune
from lamella.operations.prune.retaining import Policy, plan_retention
from lamella.operations.restore.restore import RestoreOptions, RestoreResult, plan_restore
from lamella.operations.shared.findings import VerifyResult
from lamella.operations.shared.selection import find_volume, select
from lamella.operations.verify.verify import VerifyOptions, verify
from lamella.repository.exclusive import lock_exclusively
from lamella.repository.repository import Repository
from lamella.sources.base import Keeping
from lamella.sources.names import split_name
from lamella.sources.registry import open_kept_source


@dataclass(frozen=True, slots=True)
class VolumeSnapshot:
    """A snapshot of one volume."""

    volume: str
    snapshot: str
    """The name of the snapshot, which all volumes of one run share."""
    time: datetime
    """The moment that it shows, in UTC. A record may claim any: what no calendar has is 1970, or the end of 9999."""
    size: int
    """Bytes of the volume, whatever they take in the repository."""
    consistency: str
    """unknown, live, quiesced, halted, committed or changed."""
    tags: tuple[str, ...] = ()
    pinned: bool = False
    whole: bool = True
    """Whether nothing is known that would keep it from being restored."""

    @property
    def text(self) -> str:
        """`VOLUME@SNAPSHOT`, as `restore` and `verify` take it."""
        return f"{self.volume}@{self.snapshot}"


@dataclass(frozen=True, slots=True)
class PrunedSnapshots:
    """What a prune removed, or would remove: texts `VOLUME@SNAPSHOT`."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    freed_bytes: int = 0
    """Bytes that came back at the destination; 0 for a dry run."""


@contextmanager
def open(  # noqa: PLR0913 - the name that callers read: lamella.open; all but the first by name
    url: str,
    *,
    passphrase: str | None = None,
    keyfile: str | Path | None = None,
    recovery_key: str | None = None,
    host: Host | None = None,
    read_only: bool = False,
    lock_wait: float = 0.0,
    report: Reporter = silent,
) -> Iterator[Vault]:
    """Open the repository at `url` by exactly one secret, while the context lasts.

    `host` is Host.here() unless given; `report` hears of progress and warnings. Waits up to `lock_wait` seconds for a
    lock. Raises UsageError, NoRepository, KeyRefused, Locked, IntegrityError, StoreError.
    """
    secret = _only_secret(passphrase, keyfile, recovery_key)
    with Vault(url, secret, host or LocalHost.here(), read_only, lock_wait, report) as vault:
        yield vault


def _only_secret(passphrase: str | None, keyfile: str | Path | None, recovery_key: str | None) -> Secret:
    given = [one for one in (passphrase, keyfile, recovery_key) if one is not None]
    if len(given) != 1:
        raise UsageError(f"{len(given)} secrets are given", hint="give one of passphrase, keyfile and recovery_key")
    if passphrase is not None:
        return read_passphrase(passphrase)
    return from_key_file(str(keyfile)) if recovery_key is None else read_recovery_key(recovery_key)


class Vault:
    """An open repository. Made by `lamella.open`; every call raises LamellaError where its command would fail."""

    def __init__(
        self, url: str, secret: Secret, host: Host, read_only: bool, lock_wait: float, report: Reporter
    ) -> None:
        self.url = url
        self._secret = secret
        self._host = host
        self._read_only = read_only
        self._lock_wait = lock_wait
        self._report = report
        self._held = ExitStack()
        self._opened: Repository | None = None

    def __enter__(self) -> Vault:
        self.repository  # noqa: B018 - what is wrong is found here, and not at the first call
        return self

    def __exit__(self, *ended: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the lock. A later call opens the repository again."""
        self._opened = None
        self._held.close()

    @property
    def repository(self) -> Repository:
        """The open repository, for the functions of `lamella` that take one."""
        if self._opened is None:
            opening = facade.open_repository(
                self.url, key=self._secret, host=self._host, read_only=self._read_only, lock_wait=self._lock_wait
            )
            self._opened = self._held.enter_context(opening)
        return self._opened

    @property
    def problems(self) -> list[str]:
        """What is wrong with the history, as `lamella check` says it; empty if it is sound."""
        return [f"{problem.message}; {problem.remedy}" for problem in self.repository.problems]

    def volumes(self) -> list[str]:
        """The names of the volumes that have snapshots."""
        return sorted({row.volume for row in self.snapshots()})

    def snapshots(self, volume: str | None = None) -> list[VolumeSnapshot]:
        """The snapshots of every volume, or of one, oldest first. Raises NothingMatched for an unknown volume."""
        repo = self.repository
        shown = repo.catalogue.shown_names()
        chosen = [find_volume(repo, volume)] if volume is not None else repo.catalogue.volumes.values()
        rows = [_row(shown[one.volume_id], snapshot) for one in chosen for snapshot in one.snapshots]
        return sorted(rows, key=lambda row: (row.time, row.volume, row.snapshot))

    def backup(
        self,
        *sources: str | Path,
        exclude: Sequence[str] = (),
        domain: str | None = None,
        documents: Mapping[str, bytes] | None = None,
    ) -> BackupResult:
        """Back up sources as one snapshot: paths, patterns, directories, `lvm:VG/LV`, `NAME=SOURCE` and so on.

        A source that cannot be opened raises before anything is read; one that fails later is in the result, which is
        then not `complete`. Raises UsageError, NothingMatched, SourceError, RolledBack, StoreError.
        """
        repo = self._sound()
        repo.log.require_writable()
        requests: list[Request | FailedRequest] = []
        errors: list[LamellaError] = []
        keeping = Keeping(self._host.owner, records=self._host.source_records)
        found = all_files(list(map(str, sources)), exclude, requests, errors, self._tell, keeping)
        if errors:
            raise errors[0]
        for text, names in found:
            name, place = (None, text) if names else split_name(text)
            source = open_kept_source(place, self._host.machine, keeping)
            requests.append(Request(name, source, domain, names=names))
        if not requests:
            raise UsageError("no source is named")
        return plan_backup(repo, requests, BackupOptions(documents=documents or {})).execute(self._report)

    def restore(self, volume: str, to: str | Path, *, overwrite: bool = False) -> RestoreResult:
        """Restore `VOLUME[@SNAPSHOT]` into a file or onto a device, read everything back and compare.

        Raises NothingMatched, UsageError if the target exists and `overwrite` is not given, RolledBack, IntegrityError,
        SourceError for the target, StoreError.
        """
        repo = self._sound()
        (selected,) = select(repo, [volume])
        return plan_restore(repo, selected, Path(to), RestoreOptions(overwrite=overwrite)).execute(self._report)

    def verify(
        self, *volumes: str, level: str = "sample", percent: float | None = None, budget: int | None = None
    ) -> VerifyResult:
        """Prove that snapshots, by default all, can be restored; `damaged` says whether any cannot.

        Raises NothingMatched, UsageError, RolledBack, StoreError.
        """
        repo = self._sound()
        return verify(repo, select(repo, volumes), VerifyOptions(level, percent, budget), self._report)

    def prune(self, *volumes: str, dry_run: bool = False, **rules: object) -> PrunedSnapshots:
        """Remove the snapshots of these volumes, or of all, that no rule keeps, and free their space.

        Rules are those of `[prune]` in the configuration: keep_last, keep_hourly, keep_daily, keep_weekly,
        keep_monthly, keep_yearly (a number or "all"), keep_within="30d", keep_tags=[...], thin_older=[...]. Without any
        UsageError is raised. The repository is opened again, alone. Raises RepositoryError if the secret may not delete
        anything, Locked, RolledBack, StoreError, and IntegrityError for what could not be judged, which then stays.
        """
        try:
            policy = Policy(read_rules(rules))
        except (KeyError, ValueError) as error:
            raise UsageError(f"not a rule: {error}") from error
        self.close()
        with (
            facade.open_repository(
                self.url,
                key=self._secret,
                host=self._host,
                read_only=dry_run,
                lock_wait=self._lock_wait,
                whole=True,
            ) as repo,
            Health(repo, self._report) as health,
        ):
            if not dry_run and repo.store.abilities.exclusive_lock:
                lock_exclusively(repo, self._lock_wait)
            repo.require_sound_history()
            plan = plan_retention(repo, policy, volumes, health=health)
            going = {row.selected.snapshot.ref: row.selected.text for row in plan.removed}
            reasons = {row.selected.snapshot.ref: ", ".join(row.verdict.reasons) for row in plan.removed}
            kept = tuple(row.selected.text for row in plan.kept)
            if dry_run:
                return PrunedSnapshots(tuple(going.values()), kept)
            result = run_prune(repo, reasons, PruneOptions(others_delay_ms=OTHERS_DELAY_MS), health, self._report)
            if result.blocked:
                raise result.blocked[0]
            gone = set(result.removed)
            stayed = tuple(text for ref, text in going.items() if ref not in gone)
            removed = tuple(text for ref, text in going.items() if ref in gone)
            return PrunedSnapshots(removed, (*kept, *stayed), result.freed_bytes)

    def _sound(self) -> Repository:
        """The repository, unless its history lacks something: then a restore would give older data without a word."""
        self.repository.require_sound_history()
        return self.repository

    def _tell(self, text: str) -> None:
        self._report(Warned(text))


def _row(volume: str, snapshot: Snapshot) -> VolumeSnapshot:
    added = snapshot.added
    return VolumeSnapshot(
        volume,
        snapshot.name,
        moment_of(added.time_ms),
        added.size,
        CONSISTENCY[added.consistency],
        tuple(sorted(snapshot.tags)),
        snapshot.pinned is not None,
        snapshot.lost is None and not snapshot.conflict and not snapshot.marked_removed,
    )
