"""The log of one repository as this host reads it, judges it and continues it (FORMAT 8, 9)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from lamella.base.clock import Clock
from lamella.base.errors import IntegrityError, Locked, RolledBack
from lamella.base.ids import RepoId, WriterId
from lamella.base.names import COMMITS
from lamella.crypto.derive import Keys
from lamella.format.commit import ChainEntry, Head
from lamella.format.known import CONDEMN, REAPED
from lamella.history import state
from lamella.history.catalogue import Catalogue, Snapshot
from lamella.history.chains import HistoryReader, Listed, ReadSegment
from lamella.history.history import Chain, History
from lamella.history.places import judge
from lamella.memory.host import Host
from lamella.memory.pins import Pins, Places, Problem, Sightings, suffix
from lamella.packs.cache import Cache
from lamella.stores.base import Store

if TYPE_CHECKING:
    from lamella.history.condemned import Condemned


class Log:
    """The truth about a repository: its chains, the state they add up to, and the commits this host misses."""

    def __init__(self, store: Store, keys: Keys, host: Host, clock: Clock) -> None:
        self.store = store
        self.keys = keys
        self.host = host
        self.clock = clock
        self.repo_id: RepoId = keys.marker.repo_id
        self.places = Places(host.memory(self.repo_id))
        self.recall_place()
        self.apart = suffix(store.url) if self.place.own or self.place.mirror or not self.place.first else ""
        """Names what this host found at this place, apart from what it found at the first one."""
        self.history = History()
        self.catalogue = Catalogue()
        self.found: list[Problem] = []
        """Every problem of the history, accepted or not."""
        self.older: list[Problem] = []
        """The problems that only say: this mirror is older than another place."""
        self._condemned: Condemned | None = None

    def recall_place(self) -> None:
        """Read again what this host remembers, as it is now."""
        self.place = self.places.get(self.store.url)
        self.recall(suffix(self.store.url) if self.place.own else "")

    def recall(self, apart: str) -> None:
        """Take up what this host remembers of the repository, or of this place apart from it."""
        self.memory = self.host.memory(self.repo_id, apart)
        self.pins = Pins(self.memory)
        self.sightings = Sightings(self.memory)

    def connect(self, cache: Cache, read_segment: ReadSegment) -> None:
        """Set the cache of commits, and the reader of checkpoint segments."""
        self.reader = HistoryReader(self.store, self.keys, cache, read_segment)

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self, *, whole: bool, stored: bool, may_be_lost: bool, listed: Listed | None = None) -> None:
        """Read the history, add it up and judge it; `listed` are the commits that were listed just now.

        With `stored` each commit is read from the store once in this process, now and from now on: the cache shows what
        may have rotted since. Raises IntegrityError or RolledBack for a lost history unless it `may_be_lost`.
        """
        self.history = self.reader.read(self.pins, whole=whole, stored=stored, listed=listed)
        if not self.history.heads and not may_be_lost:
            error = RolledBack if self.history.problems else IntegrityError
            hint = "recover what still exists with: lamella repair"
            raise error("the repository lists no commit that opens: its history is lost", obj=COMMITS, hint=hint)
        self.catalogue = state.build(self.keys, self.history, self.own_writer)
        self._condemned = None
        self.sightings.look(self.history.heads, self.clock())
        found, self.older = judge(self.place, self.history)
        self.found = [problem for problem in found if not self._is_excluded(problem)]
        if not self.problems:
            self.pins.remember(self.history.heads)
            with self.memory.may_fail():
                self.places.seen(self.store.url, self.history.heads)

    def _is_excluded(self, problem: Problem) -> bool:
        """Whether a problem concerns commits of an expelled writer that do not count."""
        head = self.catalogue.expelled.get(problem.writer)
        return head is not None and (problem.kind == "fork" or problem.lacks is None or problem.lacks.seq > head.seq)

    @property
    def condemned_packs(self) -> frozenset[bytes]:
        """The packs that nothing new may rely on."""
        return self.condemned.packs if self._collected else frozenset()

    @property
    def reaped_packs(self) -> Collection[bytes]:
        """The packs that collectors said they deleted."""
        return self.condemned.reaped if self._collected else ()

    @property
    def _collected(self) -> bool:
        """Whether anybody ever condemned a pack here, or said that one is deleted."""
        return self.history.holds((CONDEMN, REAPED))

    @property
    def condemned(self) -> Condemned:
        """The packs that collectors have condemned, as the history that was read last says."""
        if self._condemned is None:
            from lamella.history.condemned import condemned

            self._condemned = condemned(self.keys, list(self.history.chains.values()))
        return self._condemned

    def checkpoint_entries(self, chain: Chain) -> list[ChainEntry]:
        """The entries in the newest checkpoint of a chain. Raises IntegrityError, StoreError."""
        if chain.carried is None:
            return []
        return list(self.reader.carried.entries(chain.carried, f"a checkpoint of writer {chain.writer.hex()[:8]}"))

    # -- judging -------------------------------------------------------------------------------------------------------

    @property
    def problems(self) -> list[Problem]:
        """The problems that the user has not accepted. Problems that lack the same commit count as one."""
        found: dict[object, Problem] = {}
        for problem in self.found:
            if problem.key not in self.pins.accepted:
                found.setdefault(problem.lacks or problem.key, problem)
        return list(found.values())

    @property
    def lacking(self) -> set[Head]:
        """The commits that are known and cannot be read, accepted or not."""
        return {problem.lacks for problem in [*self.found, *self.older] if problem.lacks is not None}

    def require_none(self, problems: Sequence[Problem]) -> None:
        """Raises RolledBack naming the first of these problems, with the command that ends it."""
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise RolledBack(problems[0].message + more, obj=self.store.url, hint=problems[0].remedy)

    def require_writable(self) -> None:
        """Raises Locked at a mirror that its user has not taken on, RepositoryError where this host is not admitted."""
        if self.place.mirror and not self.place.own:
            age = f" and lacks {len(self.older)} chains' newest commits" if self.older else ""
            hint = "write to the place it mirrors; to go on here instead: lamella check --accept-rollback"
            raise Locked(f"this place is a mirror made by lamella mirror{age}", obj=self.store.url, hint=hint)
        if self.history.admission is not None and self.keys.prune_seed is None:
            from lamella.history.admission import require_admitted

            require_admitted(self)

    @property
    def own_writer(self) -> WriterId | None:
        """The id under which this host publishes here, if it did before."""
        key = self.memory.writer_key()
        return None if key is None else key.id

    def believed_ms(self, snapshot: Snapshot) -> int:
        """The time of a snapshot: its own word, unless that cannot be true by when this host first saw it."""
        ref, said = snapshot.ref, snapshot.added.time_ms
        sight = None if snapshot.revived or ref.writer == self.own_writer else self.sightings.of(ref.writer, ref.seq)
        return said if sight is None else sight.believed_ms(said)
