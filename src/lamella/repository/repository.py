"""An open repository: its store, its keys, what its history adds up to, and where its blobs lie."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

from lamella.base.clock import Clock, now_ms
from lamella.base.errors import (
    IntegrityError,
    Locked,
    ObjectNotFound,
    RepositoryError,
    RolledBack,
    StoreError,
    UnknownFormat,
)
from lamella.base.ids import CATALOGUE, ChunkId, DomainId, RepoId, WriterId
from lamella.base.trust import Opened
from lamella.crypto.derive import Keys
from lamella.crypto.slots import Secret
from lamella.format.commit import Entry
from lamella.format.commit import Head as CommitHead
from lamella.format.container import MAX_OBJECT, Kind
from lamella.format.deletion import Forgo
from lamella.format.known import Signed
from lamella.format.node import Shape
from lamella.format.records import Checkpoint, RawRecord, SegmentPlace
from lamella.history import state
from lamella.history.catalogue import Catalogue, Snapshot
from lamella.history.chains import HistoryReader
from lamella.history.compaction import AUDITS_KEPT, Ended
from lamella.history.condemned import Condemned, condemned
from lamella.history.history import Chain, History
from lamella.history.places import judge
from lamella.history.publish import Published, Publisher
from lamella.history.tombstones import ended
from lamella.memory.host import Host
from lamella.memory.pins import Pins, Places, Problem, Sightings, suffix
from lamella.packs.blobmap import BlobMap, pack_name
from lamella.packs.cache import Cache
from lamella.packs.containers import open_whole
from lamella.packs.contents import Contents
from lamella.packs.suspects import Suspects
from lamella.packs.tree import Tree, TreeReader
from lamella.repository.slots import Unlocked, unlock
from lamella.stores.base import Held, Store


class Repository:
    """Use `Repository.open` and a `with` block, which holds the store's lock: nobody else deletes meanwhile."""

    def __init__(self, store: Store, unlocked: Unlocked, host: Host, clock: Clock) -> None:
        self.store = store
        self.unlocked = unlocked
        self.keys: Keys = unlocked.keys
        self.host = host
        self.clock = clock
        self.repo_id: RepoId = self.keys.marker.repo_id
        self.places = Places(host.memory(self.repo_id))
        self.place = self.places.get(store.url)
        apart = suffix(store.url) if self.place.own or self.place.mirror else ""
        self.memory = host.memory(self.repo_id, apart if self.place.own else "")
        self.pins = Pins(self.memory)
        self.sightings = Sightings(self.memory)
        # A mirror has other packs: one map for both places would be rebuilt at every turn.
        folder = self.repo_id.hex() + (f"-{apart}" if apart else "")
        self.cache = Cache.open(host.cache_dir / folder / "cache.sqlite")
        self.blobs = BlobMap(self.cache, self.keys, store)
        self.suspects = Suspects(self.cache)
        self.contents = Contents(store, self.keys, self.blobs, self.suspects)
        self._reader = HistoryReader(store, self.keys, self.cache, self._segment)
        self.history = History()
        self.older: list[Problem] = []
        """What a mirror lacks and this host saw at another place."""
        self._problems: list[Problem] = []
        self.catalogue = Catalogue()
        self._map_is_fresh = False
        self._may_be_lost = False
        self._held = ExitStack()
        self._lock: Held | None = None
        self.condemned = Condemned()
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
    ) -> Self:
        """Unlock, take the lock and read the history: all of it with `whole`, from the store itself with `stored`.

        The lock is shared unless `exclusive` is wanted and the store can prove it (`Repository.exclusive` says so).
        Raises NoRepository, KeyRefused, Locked, IntegrityError, StoreError.
        """
        repository = cls(store, unlock(store, secret), host, clock)
        return repository._begun(lock_wait, whole=whole, stored=stored, exclusive=exclusive)

    @classmethod
    def open_damaged(
        cls, store: Store, secret: Secret, host: Host, *, clock: Clock = now_ms, lock_wait: float = 0.0
    ) -> Self:
        """The same with the whole history, which may have been lost altogether: for repairs."""
        repository = cls(store, unlock(store, secret), host, clock)
        repository._may_be_lost = True
        return repository._begun(lock_wait, whole=True)

    def _begun(self, lock_wait: float, *, whole: bool, stored: bool = False, exclusive: bool = False) -> Self:
        try:
            alone = exclusive and self.store.abilities.exclusive_lock
            self._lock = self._held.enter_context(self.store.lock(exclusive=alone, wait_seconds=lock_wait))
            self.exclusive = alone
            self.reload(whole=whole, stored=stored)
        except BaseException:
            self.close()
            raise
        return self

    def reload(self, *, whole: bool = False, stored: bool = False) -> None:
        """Read the history again.

        With `stored` each commit is read from the store once in this process, now and from now on: the cache shows what
        may have rotted since.
        """
        before = self.history.heads
        self.history = self._reader.read(self.pins, whole=whole, stored=stored)
        # Commits that are new to this process may refer to packs that are, too.
        self._map_is_fresh = self._map_is_fresh and self.history.heads == before
        if not self.history.heads and not self._may_be_lost:
            error = RolledBack if self.history.problems else IntegrityError
            hint = "bring back what is still somewhere with: lamella check --repair"
            raise error("the repository lists no commit that opens: its history is lost", obj="w/", hint=hint)
        self.catalogue = state.build(self.keys, self.history)
        self.condemned = condemned(self.keys, list(self.history.chains.values()))
        self.blobs.condemned = self.condemned.packs
        self.sightings.look(self.history.heads, self.clock())
        self._problems, self.older = judge(self.place, self.history)
        if not self.problems:
            self.pins.remember(self.history.heads)
            with self.memory.may_fail():
                self.places.seen(self.store.url, self.history.heads)

    @property
    def losses(self) -> int:
        """How often the connection to the store was lost, and with it the lock, since this lock is held."""
        return 0 if self._lock is None else self._lock.losses

    def lock_exclusively(self, wait_seconds: float = 0.0) -> None:
        """Exchange the shared lock for the exclusive one, and look at everything again. Raises Locked, StoreError.

        In between others may have written; when it fails, no lock is held any more.
        """
        self._held.close()
        self._lock = self._held.enter_context(self.store.lock(exclusive=True, wait_seconds=wait_seconds))
        self.exclusive = True
        self.look_again()

    def look_again(self) -> None:
        """Read the whole history and the listing of packs again, whatever was known. Raises StoreError."""
        self._map_is_fresh = False
        self.reload(whole=True)
        with suppress(IntegrityError):  # no packs at all: the snapshots will show it
            self.refresh_map()

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
    def problems(self) -> list[Problem]:
        """What is wrong with the history and not yet accepted by the user; what lacks the same commit is told once."""
        found: dict[object, Problem] = {}
        for problem in self._problems:
            if problem.key not in self.pins.accepted:
                found.setdefault(problem.lacks or problem.key, problem)
        return list(found.values())

    @property
    def lacking(self) -> set[CommitHead]:
        """The commits that are known and cannot be read, accepted or not."""
        return {problem.lacks for problem in [*self._problems, *self.older] if problem.lacks is not None}

    def require_sound_history(self) -> None:
        """Raises RolledBack naming the first problem, with the command that ends it."""
        self._require_none(self.problems)

    def _require_none(self, problems: Sequence[Problem]) -> None:
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise RolledBack(problems[0].message + more, obj=self.store.url, hint=problems[0].remedy)

    def checkpoint_entries(self, chain: Chain) -> list[Entry]:
        """What the newest checkpoint of a chain carries. Raises IntegrityError, StoreError."""
        if chain.carried is None:
            return []
        return list(self._reader.checkpoint_entries(chain.carried, f"a checkpoint of writer {chain.writer.hex()[:8]}"))

    def require_writable(self) -> None:
        """Raises Locked at a mirror that its user has not taken as a repository to go on with."""
        if self.place.mirror and not self.place.own:
            age = f" and lacks {len(self.older)} chains' newest commits" if self.older else ""
            hint = "write to the place it mirrors; to go on here instead: lamella check --accept-rollback"
            raise Locked(f"this place is a mirror made by copy --mirror{age}", obj=self.store.url, hint=hint)

    def audited_checkpoints(self, writer: WriterId) -> list[Checkpoint]:
        """The newest audited checkpoints of a chain: it begins with the last one that can be read."""
        found = [self._reader.load(History(), head) for head in self.history.audits.get(writer, [])[-AUDITS_KEPT:]]
        carried = [commit.checkpoint for commit in found if commit is not None]
        return [checkpoint for checkpoint in carried if checkpoint is not None]

    def ancestors(self, head: CommitHead) -> list[CommitHead]:
        """The commits in the store that lead to this one without a gap, oldest first. Raises StoreError."""
        return self._reader.ancestors(head)

    def accept_history(self) -> list[Problem]:
        """Take the history that is here as the right one, at this place; returns what was accepted.

        A mirror, or a place unknown so far while another one is known, is from then on a repository of its own to this
        host: with a writer of its own, so that joining the places later forks nothing, and what was seen at the other
        place is still expected there.
        """
        accepted = [*self.problems, *self.older]
        url = self.store.url
        own, memory = self.own_writer, self.memory
        if self.place.mirror or (not self.places.known(url) and self.places.elsewhere(url)):
            self.memory = self.host.memory(self.repo_id, suffix(url))
            self.pins, self.sightings = Pins(self.memory), Sightings(self.memory)
            self.places.accepted(url, self.history.heads, own=True)
        else:
            self.places.accepted(url, self.history.heads, own=False)
        self.pins.accept(self.history.heads, self._problems)
        self.place, self.older = self.places.get(url), []
        if own is not None and memory is self.memory and self._is_behind(own):
            # Later the pins do not tell any more that this host used more numbers than are here.
            with memory.lock():
                memory.new_writer_key()
        return accepted

    def _is_behind(self, writer: WriterId) -> bool:
        """Whether a commit of this writer is known that is newer than all that are here."""
        chain = self.history.chains.get(writer)
        newest = 0 if chain is None or chain.head is None else chain.head.seq
        return newest < self.history.known.get(writer, 0)

    def accept_seen(self, writer: str) -> list[str]:
        """Take what this writer (the first 8 digits) saw and is not here as lost; returns what was accepted."""
        rows = [problem for problem in self._problems if problem.kind == "seen"]
        rows = [problem for problem in rows if problem.key.rpartition(":")[2].startswith(writer[:8])]
        accepted = [problem for problem in rows if problem.key not in self.pins.accepted]
        self.pins.excuse(accepted)
        return [problem.message for problem in accepted]

    def give_up(self, heads: Sequence[CommitHead]) -> Published:
        """Publish that nobody waits for these commits any more: they are excused for every host. Needs the prune key.

        Other commits may be missing, too. Raises RolledBack for any other problem, and as `publish`.
        """
        self._require_may_publish([problem for problem in self.problems if problem.lacks is None])
        despite = {problem.key for problem in self._problems if problem.lacks is not None}
        return self._publish([Forgo(head) for head in heads], despite)

    @property
    def own_writer(self) -> WriterId | None:
        """The id under which this host publishes here, if it did before."""
        key = self.memory.writer_key()
        return None if key is None else key.id

    def publish(self, records: Sequence[RawRecord | Signed]) -> Published:
        """Append one durable commit. Raises RolledBack, Locked at a mirror, RepositoryError, StoreError."""
        self._require_may_publish(self.problems)
        return self._publish(records)

    def _require_may_publish(self, problems: Sequence[Problem]) -> None:
        newer = self.catalogue.read_only or self.own_writer in self.catalogue.unread
        if newer or not self.keys.marker.writable:
            raise RepositoryError(
                "a newer version of lamella wrote here: this version may only read", obj=self.store.url
            )
        self._require_none(problems)
        self.require_writable()
        self._require_lock()

    def _publish(self, records: Sequence[RawRecord | Signed], despite: Collection[str] = ()) -> Published:
        if self.own_writer in self.catalogue.retired:
            # Whoever retired this host took its silence for the end: it comes back as another writer.
            with self.memory.lock():
                self.memory.new_writer_key()
        publisher = Publisher(self.store, self.keys, self.memory, self.pins, self._reader)
        published = publisher.publish(self.history, records, self.clock, self._ended, despite=despite)
        with self.memory.may_fail():
            self.places.wrote_there(self.store.url, [published.head])
        return published

    def _require_lock(self) -> None:
        """Go on after the lock was lost for a while, if nothing was removed meanwhile. Raises StoreError otherwise."""
        lock = self._lock
        while lock is not None and lock.lost:
            losses, before = lock.losses, self.blobs.vanished
            self.blobs.refresh()
            if self.exclusive or self.blobs.vanished != before:
                raise StoreError(
                    "the connection broke, and others changed the repository before it was back",
                    obj=self.store.url,
                    hint="run the command again: what is stored already is used",
                )
            lock.renew(losses)

    def _ended(self) -> Ended:
        return ended(self.store, self._reader, self.history, self.catalogue, self.own_writer, self.clock())

    # -- contents -----------------------------------------------------------------------------------------------------

    def refresh_map(self, *, again: bool = False) -> None:
        """Make the blob map agree with the store, once. Raises IntegrityError if all packs are gone, StoreError."""
        if self._map_is_fresh and not again:
            return
        own = self.own_writer
        published = (pack for shot in self.catalogue.snapshots if shot.ref.writer == own for pack in shot.added.packs)
        begun = (pack for session in self.catalogue.sessions if session.writer == own for pack in session.packs)
        listed = self.blobs.refresh([*published, *begun], self.condemned.reaped)
        if not listed and self.catalogue.snapshots:
            raise IntegrityError("the repository lists no packs although it has snapshots", obj="p/")
        self.suspects.apply(self.catalogue.bad, self.blobs)
        self._map_is_fresh = True

    def tree(self, snapshot: Snapshot) -> Tree:
        """The manifest of a snapshot."""
        added = snapshot.added
        return Tree(Shape(added.volume_id, added.size, added.chunk_log2), added.root)

    def tree_reader(self, domain_id: DomainId) -> TreeReader:
        """Reads manifests of one domain; the map must be fresh."""

        def fetch(kind: Kind, id_: ChunkId) -> Opened:
            return self.contents.get(domain_id, kind, id_)

        return TreeReader(fetch)

    def _segment(self, place: SegmentPlace) -> Opened:
        """A catalogue segment: at its hinted pack, fetched whole, else wherever the map finds it."""
        name = pack_name(place.pack)
        try:
            size = self.store.stat(name)
            if size > MAX_OBJECT:
                raise IntegrityError("a container of impossible size", obj=name)
            head, contents = open_whole(self.keys, name, self.store.get(name, 0, size))
            for blob, content in zip(head.blobs, contents, strict=True):
                if (blob.kind, blob.id) == (Kind.SEGMENT, place.id) and head.domain_id == CATALOGUE:
                    return content
        except (IntegrityError, ObjectNotFound, UnknownFormat):
            pass
        self.blobs.refresh()
        return self.contents.get(CATALOGUE, Kind.SEGMENT, place.id)
