"""Encrypted, deduplicating, incremental backups of virtual machine volumes: the public interface, all of it.

    with lamella.open_repository("/vault", key=lamella.key_file(content), host=host, read_only=False) as repo:
        saved = lamella.plan_backup(repo, [lamella.Request(None, lamella.source("disk.img", host=host))]).execute()
        chosen = lamella.select(repo, [f"disk@{saved.snapshot}"])
        lamella.plan_restore(repo, chosen[0], Path("copy.img")).execute()
        assert not lamella.verify(repo, chosen).damaged

Names are imported when they are first used. Nothing is read from the environment: the caller says in a `Host` what this
host is and where it keeps its state. Names that are not in `__all__` may change at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.base.errors import (
        CheckpointLost,
        IntegrityError,
        Interrupted,
        KeyRefused,
        LamellaError,
        Locked,
        NoRepository,
        NothingMatched,
        ObjectNotFound,
        RepositoryError,
        RolledBack,
        SourceAtRisk,
        SourceError,
        StoreError,
        StoreFull,
        StoreRefused,
        StoreUnavailable,
        UnknownFormat,
        UsageError,
    )
    from lamella.base.events import Event, Progress, Reporter, Warned
    from lamella.crypto.slots import Secret, key_file, passphrase, recovery_key
    from lamella.memory.host import Host, machine_name
    from lamella.operations.backup.story import (
        BackupOptions,
        BackupPlan,
        BackupResult,
        FailedRequest,
        Outcome,
        Pace,
        Request,
        VolumeResult,
        execute_together,
        plan_backup,
    )
    from lamella.operations.copy.copy import CopyOptions, CopyPlan, CopyResult, plan_copy
    from lamella.operations.look.diff import DiffResult, compare, write_map
    from lamella.operations.look.diff_source import SourceDiff, compare_source
    from lamella.operations.look.sizes import Sizes, Totals, sizes_of, totals_of
    from lamella.operations.mirror.mirror import MirrorResult
    from lamella.operations.moments.monitor import MonitorResult, monitor
    from lamella.operations.prune.retaining import Policy, RetentionPlan, plan_retention
    from lamella.operations.prune.retention import Age, Retention, Thinning
    from lamella.operations.restore.restore import (
        RestoreOptions,
        RestorePlan,
        RestoreResult,
        plan_restore,
        read_document,
    )
    from lamella.operations.shared.change_map import ChangeMap, read_map
    from lamella.operations.shared.findings import Finding, VerifyResult
    from lamella.operations.shared.heads import fingerprint
    from lamella.operations.shared.selection import Selected, select
    from lamella.operations.verify.verify import VerifyOptions, verify
    from lamella.repository.create import Created, SlotWanted
    from lamella.repository.repository import Repository
    from lamella.sources.base import Source

__all__ = [
    "Age",
    "BackupOptions",
    "BackupPlan",
    "BackupResult",
    "ChangeMap",
    "CheckpointLost",
    "CopyOptions",
    "CopyPlan",
    "CopyResult",
    "Created",
    "DiffResult",
    "Event",
    "FailedRequest",
    "Finding",
    "Host",
    "IntegrityError",
    "Interrupted",
    "KeyRefused",
    "LamellaError",
    "Locked",
    "MirrorResult",
    "MonitorResult",
    "NoRepository",
    "NothingMatched",
    "ObjectNotFound",
    "Outcome",
    "Pace",
    "Policy",
    "Progress",
    "Reporter",
    "Repository",
    "RepositoryError",
    "Request",
    "RestoreOptions",
    "RestorePlan",
    "RestoreResult",
    "Retention",
    "RetentionPlan",
    "RolledBack",
    "Secret",
    "Selected",
    "Sizes",
    "SlotWanted",
    "Source",
    "SourceAtRisk",
    "SourceDiff",
    "SourceError",
    "StoreError",
    "StoreFull",
    "StoreRefused",
    "StoreUnavailable",
    "Thinning",
    "Totals",
    "UnknownFormat",
    "UsageError",
    "VerifyOptions",
    "VerifyResult",
    "VolumeResult",
    "Warned",
    "compare",
    "compare_source",
    "create_repository",
    "execute_together",
    "fingerprint",
    "key_file",
    "machine_name",
    "mirror",
    "monitor",
    "open_repository",
    "passphrase",
    "plan_backup",
    "plan_copy",
    "plan_restore",
    "plan_retention",
    "read_document",
    "read_map",
    "recovery_key",
    "select",
    "sizes_of",
    "source",
    "totals_of",
    "verify",
    "write_map",
]

_HOMES = {
    "lamella.crypto.slots": "Secret key_file passphrase recovery_key",
    "lamella.base.errors": "CheckpointLost IntegrityError Interrupted KeyRefused LamellaError Locked NoRepository"
    " NothingMatched ObjectNotFound RepositoryError RolledBack SourceAtRisk SourceError StoreError StoreFull"
    " StoreRefused StoreUnavailable UnknownFormat UsageError",
    "lamella.base.events": "Event Progress Reporter Warned",
    "lamella.operations.backup.story": "BackupOptions BackupPlan BackupResult FailedRequest Outcome Pace"
    " Request VolumeResult execute_together plan_backup",
    "lamella.operations.copy.copy": "CopyOptions CopyPlan CopyResult plan_copy",
    "lamella.operations.look.diff": "DiffResult compare write_map",
    "lamella.operations.look.diff_source": "SourceDiff compare_source",
    "lamella.operations.shared.change_map": "ChangeMap read_map",
    "lamella.operations.shared.findings": "Finding VerifyResult",
    "lamella.operations.shared.heads": "fingerprint",
    "lamella.operations.mirror.mirror": "MirrorResult",
    "lamella.operations.moments.monitor": "MonitorResult monitor",
    "lamella.operations.restore.restore": "RestoreOptions RestorePlan RestoreResult plan_restore read_document",
    "lamella.operations.prune.retaining": "Policy RetentionPlan plan_retention",
    "lamella.operations.shared.selection": "Selected select",
    "lamella.operations.look.sizes": "Sizes Totals sizes_of totals_of",
    "lamella.operations.verify.verify": "VerifyOptions verify",
    "lamella.repository.create": "Created SlotWanted",
    "lamella.memory.host": "Host machine_name",
    "lamella.repository.repository": "Repository",
    "lamella.operations.prune.retention": "Age Retention Thinning",
    "lamella.sources.base": "Source",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}


if not TYPE_CHECKING:  # a type checker knows the names from above, and must not believe that there are others

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used."""
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found: object = getattr(import_module(home), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    """The public names, also those not imported yet."""
    return sorted({*globals(), *__all__})


@contextmanager
def open_repository(
    url: str, *, key: Secret, host: Host, read_only: bool = True, lock_wait: float = 0.0, whole: bool = False
) -> Iterator[Repository]:
    """Open the repository at `url` while the context lasts; `whole` reads its history from the first commit.

    Waits up to `lock_wait` seconds for the lock. Raises NoRepository, KeyRefused, Locked, IntegrityError, StoreError,
    UsageError.
    """
    from lamella.repository.repository import Repository
    from lamella.stores.url import open_store
    from lamella.stores.wrap import RetryingStore

    with (
        closing(RetryingStore(open_store(url, read_only=read_only))) as store,
        Repository.open(store, key, host, lock_wait=lock_wait, whole=whole) as repository,
    ):
        yield repository


def create_repository(url: str, *, slots: Sequence[SlotWanted], host: Host) -> Created:
    """Make a repository at `url`, opened by these slots; at least one should be an admin's.

    Raises RepositoryError if something is there already, StoreError, UsageError.
    """
    from lamella.base.clock import now_ms
    from lamella.repository.create import create_repository as create
    from lamella.stores.url import open_store
    from lamella.stores.wrap import RetryingStore

    with closing(RetryingStore(open_store(url, create=True))) as store:
        return create(store, host, slots, now_ms)


def mirror(url: str, to: str, *, host: Host, reporter: Reporter | None = None, lock_wait: float = 0.0) -> MirrorResult:
    """Bring everything that the repository at `url` has to the place `to`, byte for byte and without a key.

    Raises NoRepository, RepositoryError, RolledBack, Locked, IntegrityError, StoreError, UsageError.
    """
    from lamella.base.events import silent
    from lamella.operations.mirror.mirror import mirror as run
    from lamella.stores.url import open_store
    from lamella.stores.wrap import RetryingStore

    with (
        closing(RetryingStore(open_store(url, read_only=True))) as source,
        closing(RetryingStore(open_store(to, create=True))) as target,
    ):
        return run(source, target, host, reporter=reporter or silent, lock_wait=lock_wait)


def source(text: str, *, host: Host, driver: str | None = None, checkpoint_dir: Path | None = None) -> Source:
    """The local volume that `text` means: a path, or `driver:place`. Raises UsageError, SourceError.

    Where changes can be tracked, the moments kept for that lie in `checkpoint_dir`, or in `.lamella` at the top of the
    image's subvolume or mount.
    """
    from lamella.sources.keeping import Keeping
    from lamella.sources.registry import open_kept_source

    keeping = Keeping(host.owner, checkpoint_dir, records=host.source_records)
    return open_kept_source(text, host.machine, keeping, driver)
