"""The functions of the public interface that tie a place to what works on it: open, create, mirror, read a source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from lamella.base.clock import now_ms
from lamella.base.events import Reporter, silent
from lamella.crypto.slots import Secret
from lamella.memory.host import Host
from lamella.operations.mirror import mirror as mirroring
from lamella.operations.mirror.mirror import MirrorResult
from lamella.repository import create
from lamella.repository.create import Created, SlotWanted
from lamella.repository.repository import Repository
from lamella.sources.base import Keeping, Source
from lamella.sources.registry import open_kept_source
from lamella.stores.url import open_store
from lamella.stores.wrap.retrying import RetryingStore


@contextmanager
def open_repository(
    url: str, *, key: Secret, host: Host, read_only: bool = True, lock_wait: float = 0.0, whole: bool = False
) -> Iterator[Repository]:
    """Open the repository at `url` while the context lasts; `whole` reads its history from the first commit.

    Waits up to `lock_wait` seconds for the lock. Raises NoRepository, KeyRefused, Locked, IntegrityError, StoreError,
    UsageError.
    """
    with (
        closing(RetryingStore(open_store(url, read_only=read_only))) as store,
        Repository.open(store, key, host, lock_wait=lock_wait, whole=whole) as repository,
    ):
        yield repository


def create_repository(url: str, *, slots: Sequence[SlotWanted], host: Host) -> Created:
    """Make a repository at `url`, opened by these slots; at least one should be an admin's.

    Raises RepositoryError if something is there already, StoreError, UsageError.
    """
    with closing(RetryingStore(open_store(url, create=True))) as store:
        return create.create_repository(store, host, slots, now_ms)


def mirror(url: str, to: str, *, host: Host, reporter: Reporter | None = None, lock_wait: float = 0.0) -> MirrorResult:
    """Bring everything that the repository at `url` has to the place `to`, byte for byte and without a key.

    Raises NoRepository, RepositoryError, RolledBack, Locked, IntegrityError, StoreError, UsageError.
    """
    with (
        closing(RetryingStore(open_store(url, read_only=True))) as source,
        closing(RetryingStore(open_store(to, create=True))) as target,
    ):
        return mirroring.mirror(source, target, host, reporter=reporter or silent, lock_wait=lock_wait)


def source(text: str, *, host: Host, driver: str | None = None, checkpoint_dir: Path | None = None) -> Source:
    """The local volume that `text` means: a path, or `driver:place`. Raises UsageError, SourceError.

    Where changes can be tracked, the moments kept for that lie in `checkpoint_dir`, or in `.lamella` at the top of the
    image's subvolume or mount.
    """
    keeping = Keeping(host.owner, checkpoint_dir, records=host.source_records)
    return open_kept_source(text, host.machine, keeping, driver)
