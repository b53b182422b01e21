"""An open repository: its store, its keys, what its history adds up to, and where its blobs lie."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lamella.base.clock import Clock, now_ms
from lamella.base.ids import DomainId, RepoId, WriterId
from lamella.crypto.derive import Keys
from lamella.crypto.slots import Secret
from lamella.format.records import RawRecord, Signed
from lamella.history.catalogue import Catalogue, Snapshot
from lamella.history.history import History
from lamella.history.log import Log
from lamella.memory.host import Host, HostMemory
from lamella.memory.pins import Pins, Problem
from lamella.packs.cache import Cache
from lamella.repository.slots import Unlocked, unlock
from lamella.stores.base import Store

if TYPE_CHECKING:
    from lamella.base.trust import Opened
    from lamella.format.records import SegmentPlace
    from lamella.history.answers import KeptAnswer
    from lamella.history.publish import Published
    from lamella.packs.blobmap import BlobMap
    from lamella.packs.contents import Contents
    from lamella.packs.packs import Packs
    from lamella.packs.suspects import Suspects
    from lamella.packs.tree import Tree, TreeReader
    from lamella.stores.held import Held


class Repository:
    """Use `Repository.open` and a `with` block, which holds the store's lock: nobody else deletes meanwhile."""

    def __init__(self, store: Store, unlocked: Unlocked, host: Host, clock: Clock) -> None:
        self.store = store
        self.unlocked = unlocked
        self.keys: Keys = unlocked.keys
        self.host = host
        self.clock = clock
        self.log = Log(store, self.keys, host, lambda: self.clock())
        self.repo_id: RepoId = self.log.repo_id
        # A mirror has other packs: one map for both places would be rebuilt at every turn.
        folder = self.repo_id.hex() + (f"-{self.log.apart}" if self.log.apart else "")
        self.cache = Cache.open(host.cache_dir / folder / "cache.sqlite")
        self._packs: Packs | None = None
        self.log.connect(self.cache, self._catalogue_segment)
        self._may_be_lost = False
        self._elsewhere: Packs | None = None
        self._held = ExitStack()
        self.lock: Held | None = None
        """The store's lock, where that can be lost."""
        self.exclusive = False
        """Nobody else reads or writes the repository: the store's kernel says so."""

    @classmethod
    def open(  # noqa: PLR0913 - all but the first three by name
        cls,
        store: Store,
        secret: Secret,
        host: Host,
        *,
        clock: Clock = now_ms,
        lock_wait: float = 0.0,
        whole: bool = False,
        stored: bool = False,
        exclusive: bool = False,
        may_be_lost: bool = False,
        answer: KeptAnswer | None = None,
    ) -> Self:
        """Unlock, take the lock and read the history: all of it with `whole`, from the store itself with `stored`.

        With `may_be_lost` the history may have been lost altogether: for repairs. The lock is shared unless `exclusive`
        is wanted and the store can prove it (`Repository.exclusive` says so). Where this host knows the `answer`, the
        history is not read.
        Raises NoRepository, KeyRefused, Locked, IntegrityError, StoreError.
        """
        repository = cls(store, unlock(store, secret), host, clock)
        repository._may_be_lost = may_be_lost
        try:
            alone = exclusive and store.abilities.exclusive_lock
            repository.hold(exclusive=alone, wait_seconds=lock_wait)
            log = repository.log
            listed = None if answer is None else log.reader.names("")
            if answer is None or listed is None or not answer.find(log, repository.cache, listed):
                log.read(whole=whole, stored=stored, may_be_lost=may_be_lost, listed=listed)
        except BaseException:
            repository.close()
            raise
        return repository

    def reload(self, *, whole: bool = False, stored: bool = False) -> None:
        """Read the history again (see `Log.read`)."""
        before = self.history.heads
        self.log.read(whole=whole, stored=stored, may_be_lost=self._may_be_lost)
        if self._packs is not None:
            # Commits that are new to this process may refer to packs that are new, too.
            self._packs.fresh = self._packs.fresh and self.history.heads == before
            self._packs.map.condemned = self.log.condemned_packs

    def hold(self, *, exclusive: bool, wait_seconds: float) -> None:
        """Take the store's lock instead of the one that is held. Raises Locked: then no lock is held any more."""
        self._held.close()
        self.lock = self._held.enter_context(self.store.lock(exclusive=exclusive, wait_seconds=wait_seconds))
        self.exclusive = exclusive

    @property
    def losses(self) -> int:
        """How often the connection to the store was lost, and with it the lock, since this lock is held."""
        return 0 if self.lock is None else self.lock.losses

    def close(self) -> None:
        """Release the lock and the cache."""
        self._held.close()
        self.cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- history ------------------------------------------------------------------------------------------------------

    @property
    def history(self) -> History:
        """The chains as they were read last."""
        return self.log.history

    @property
    def catalogue(self) -> Catalogue:
        """The state that the chains add up to."""
        return self.log.catalogue

    @property
    def problems(self) -> list[Problem]:
        """The problems of the history that the user has not accepted."""
        return self.log.problems

    @property
    def memory(self) -> HostMemory:
        """This host's memory of the repository."""
        return self.log.memory

    @property
    def proofs(self) -> HostMemory:
        """What verifications and drills found here: a mirror's packs prove nothing about those of its source."""
        return self.host.memory(self.repo_id, self.log.apart) if self.log.apart else self.memory

    @property
    def pins(self) -> Pins:
        """The heads that this host saw, and the problems its user accepted."""
        return self.log.pins

    @property
    def own_writer(self) -> WriterId | None:
        """The id under which this host publishes here, if it did before."""
        return self.log.own_writer

    def require_sound_history(self) -> None:
        """Raises RolledBack naming the first problem, with the command that ends it."""
        self.log.require_none(self.problems)

    def publish(self, records: Sequence[RawRecord | Signed]) -> Published:
        """Append one durable commit. Raises RolledBack, Locked at a mirror, RepositoryError, StoreError."""
        from lamella.repository.publishing import publish  # most commands only read

        return publish(self, records)

    # -- packs --------------------------------------------------------------------------------------------------------

    @property
    def packs(self) -> Packs:
        """Where blobs lie. Made when it is first asked for: what reads only the history does without."""
        if self._packs is None:
            from lamella.packs.packs import Packs

            self._packs = Packs(self.store, self.keys, self.cache)
            self._packs.map.condemned = self.log.condemned_packs
        return self._packs

    @property
    def blobs(self) -> BlobMap:
        """The map of packs."""
        return self.packs.map

    @property
    def suspects(self) -> Suspects:
        """Places at which a blob did not open."""
        return self.packs.suspects

    @property
    def contents(self) -> Contents:
        """Reads contents by id."""
        return (self._elsewhere or self.packs).contents

    def read_elsewhere(self, packs: Packs) -> None:
        """Have volumes and documents from somebody who looks into packs for us; only the history is still read here."""
        self._elsewhere = packs

    def _catalogue_segment(self, place: SegmentPlace) -> Opened:
        from lamella.packs.catalogue_segments import catalogue_segment  # only long histories have any

        return catalogue_segment(self.store, self.keys, self.packs, place)

    def refresh_map(self, *, again: bool = False) -> None:
        """Make the blob map agree with the store, once. Raises IntegrityError if all packs are gone, StoreError."""
        if self._elsewhere is not None or (self.packs.fresh and not again):
            return
        own, catalogue = self.own_writer, self.catalogue
        published = (pack for shot in catalogue.snapshots if shot.ref.writer == own for pack in shot.added.packs)
        begun = (pack for session in catalogue.sessions if session.writer == own for pack in session.packs)
        some = bool(catalogue.snapshots)
        self.packs.refresh([*published, *begun], self.log.reaped_packs, catalogue.bad, expected=some)

    def tree(self, snapshot: Snapshot) -> Tree:
        """The manifest of a snapshot."""
        from lamella.format.node import Shape
        from lamella.packs.tree import Tree

        added = snapshot.added
        return Tree(Shape(added.volume_id, added.size, added.chunk_log2), added.root)

    def tree_reader(self, domain_id: DomainId) -> TreeReader:
        """Reads manifests of one domain; the map must be fresh."""
        return (self._elsewhere or self.packs).tree_reader(domain_id)
