"""One run's writing, in the order that makes it safe (FORMAT 1, order of writing).

Packs go out while the run reads; `sync`; the commit; `sync`; then the packs are looked up again. Nothing is published
once any write failed. A long run says now and then what it has stored and how far it is: SESSION (FORMAT 8).

The lock of a source is held from a run's beginning to its end. So whoever holds the lock of one of a session's volumes
knows that the run which wrote the session is over, and may take the session's place.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lamella.base.errors import StoreError
from lamella.base.ids import DomainId, SnapId, VolumeId
from lamella.base.names import PACKS, pack_hash, pack_name
from lamella.format.records import MAX_LISTED_PACKS, Confirm, RawRecord, Ref, Signed, raw
from lamella.format.sessions import Abandon, PartialRoot, Session, SessionVolume
from lamella.history.open_sessions import OpenSession
from lamella.history.publish import Published
from lamella.memory.confirmations import Confirmations
from lamella.packs.packer import Packer
from lamella.repository.repository import Repository
from lamella.run.pipeline import Outbox, ordered_map

if TYPE_CHECKING:
    from lamella.operations.writing.reliance import Reliance

_DISTANT_UPLOADS = 16
_DISTANT_BYTES = 48 << 20
_LISTED_FROM = 32
"""From so many packs on one listing is cheaper than asking for each."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The session a run writes under, and the sessions whose place it takes; by default a session of its own."""

    session_id: bytes = field(default_factory=lambda: os.urandom(16))
    continued: bool = False
    """A session of that id is open: what it names need not be named again."""
    earlier: tuple[OpenSession, ...] = ()
    """Whose packs are pinned on: the continued session, and all others with a volume of this run."""
    closing: tuple[bytes, ...] = ()
    """Ids of sessions that pin nothing any more once this run is published."""


def unfinished(repo: Repository, volumes: Collection[VolumeId]) -> Unfinished:
    """The sessions to continue, for a run over `volumes`, whose sources' locks are held."""
    published = _last_published(repo)
    closing: list[OpenSession] = []
    earlier: list[OpenSession] = []
    for session in repo.catalogue.sessions:
        if session.writer != repo.own_writer:
            continue
        left = {row.volume_id for row in session.volumes if published.get(row.volume_id, 0) <= session.seq}
        if not left or left <= set(volumes):
            closing.append(session)
        if left & set(volumes):
            earlier.append(session)
    continued = next((session for session in reversed(closing) if session in earlier), None)
    others = tuple(session.session_id for session in closing if session is not continued)
    if continued is None:
        return Unfinished(earlier=tuple(earlier), closing=others)
    return Unfinished(continued.session_id, True, tuple(earlier), others)


def _last_published(repo: Repository) -> dict[VolumeId, int]:
    """The number of this host's last commit with a snapshot of each volume."""
    found: dict[VolumeId, int] = {}
    for snapshot in repo.catalogue.snapshots:
        if snapshot.ref.writer == repo.own_writer:
            volume_id = snapshot.added.volume_id
            found[volume_id] = max(found.get(volume_id, 0), snapshot.ref.seq)
    return found


class WritingSession:
    """Packs and records of one run, which may continue others. A context manager: leaving it stops the uploads.

    `name` is what the snapshot may be called, for those who look at a run that was interrupted.
    """

    def __init__(self, repo: Repository, unfinished: Unfinished | None = None, name: str = "") -> None:
        self._repo = repo
        self._unfinished = unfinished = unfinished or Unfinished()
        self._name = name
        self._open = unfinished.continued
        self._pinned = dict.fromkeys(pack for session in unfinished.earlier for pack in session.packs)
        # The continued session pins its own packs already; those of the others are taken over with the first SESSION.
        own = [session for session in unfinished.earlier if session.session_id == self.id] if self._open else []
        self._named = {pack for session in own for pack in session.packs}
        # A distant store takes the next packs while the answer for the last one is on its way.
        distant = repo.store.abilities.distant
        self._outbox = Outbox(_DISTANT_UPLOADS, _DISTANT_BYTES) if distant else Outbox()
        self._packers: dict[DomainId, Packer] = {}
        self._earlier: dict[DomainId, dict[bytes, int]] = {}
        self.commit_bytes = 0
        self._reliance: Reliance | None = None
        if not repo.store.abilities.exclusive_lock:
            # Loaded only where packs may be deleted while this run lasts.
            from lamella.operations.writing.reliance import Reliance

            self._reliance = Reliance(repo, self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outbox.__exit__(kind, error, trace)

    @property
    def id(self) -> bytes:
        """Names the session in SESSION and ABANDON."""
        return self._unfinished.session_id

    def packer(self, domain_id: DomainId) -> Packer:
        """The packer of a domain."""
        if domain_id not in self._packers:
            repo = self._repo
            self._packers[domain_id] = Packer(
                repo.keys, domain_id, repo.store, repo.blobs, self._outbox, breaks=self._breaks
            )
            self._earlier[domain_id] = self._earlier_packs(domain_id)
        return self._packers[domain_id]

    def _breaks(self) -> int:
        """How often this run was interrupted: the unfinished ones before it, and connections that were lost since."""
        return len(self._unfinished.earlier) + self._repo.losses

    def _earlier_packs(self, domain_id: DomainId) -> dict[bytes, int]:
        """The packs that unfinished runs stored in a domain and that are still there, with sizes."""
        if not self._pinned:
            return {}
        there = ((pack_hash(entry.name), entry.size) for entry in self._repo.blobs.packs(domain_id))
        return {pack: size for pack, size in there if pack is not None and pack in self._pinned}

    # -- durable before anything is said of it ------------------------------------------------------------------------

    def flush(self) -> None:
        """Every pack begun is put and durable when this returns; workers may keep storing. Raises StoreError."""
        for packer in self._packers.values():
            packer.finish()
        self._outbox.drain()
        self._repo.store.sync()

    def settle(self) -> None:
        """Every pack of the session is put, durable, there, and as large as it was put. Raises StoreError."""
        self.flush()
        self._check_packs()

    def salvage(self) -> None:
        """After an upload failed: what the store has taken is durable when this returns. Raises StoreError."""
        self._outbox.wait()
        self._repo.store.sync()

    def _check_packs(self) -> None:
        wanted = {pack: size for sizes in self._earlier.values() for pack, size in sizes.items()}
        for packer in self._packers.values():
            wanted |= packer.sizes
        found: dict[bytes | None, int] = {}
        if len(wanted) >= _LISTED_FROM:
            found = {pack_hash(entry.name): entry.size for entry in self._repo.store.list(PACKS)}
        # What a listing does not show yet may be there all the same.
        unlisted = [pack for pack, size in wanted.items() if found.get(pack) != size]
        workers = min(len(unlisted), _LISTED_FROM) if self._repo.store.abilities.distant else 1
        for pack, size in zip(unlisted, ordered_map(self._size, unlisted, workers=max(1, workers)), strict=True):
            if size != wanted[pack]:
                raise StoreError("a pack that was put has another size now", obj=pack_name(pack))

    def _size(self, pack: bytes) -> int:
        return self._repo.store.stat(pack_name(pack))

    @property
    def own_packs(self) -> list[bytes]:
        """Everything that was written for this run."""
        return [pack for domain_id in self._packers for pack in self.packs(domain_id)]

    # -- commits ------------------------------------------------------------------------------------------------------

    def note(self, volumes: Sequence[SessionVolume], roots: Sequence[PartialRoot]) -> None:
        """Say in a commit what is stored and how far the run is; all of it must be durable.

        Raises StoreError, RolledBack, RepositoryError.
        """
        taken_over = [pack for pack in self._pinned if pack not in self._named and self._repo.blobs.length(pack)]
        stored = [pack for packer in self._packers.values() for pack in packer.arrived if pack not in self._named]
        packs = [*taken_over, *stored]
        record = Session(self.id, self._name, tuple(volumes), tuple(packs), tuple(roots))
        if self._reliance is not None:
            self._reliance.renew()
        self.commit_bytes += self._repo.publish([raw(record)]).stored_bytes
        self._named.update(packs)
        self._open = True

    def announce(self, volumes: Sequence[SessionVolume] = (), roots: Sequence[PartialRoot] = ()) -> None:
        """Where packs may be deleted meanwhile: say what the run shares from before it looks what there is.

        Does nothing where the store's lock keeps everything in place. Raises StoreError, RolledBack, RepositoryError.
        """
        if self._reliance is not None:
            self.note(volumes, roots)
            self._repo.reload()
            self._repo.refresh_map(again=True)
            self._reliance.require_standing(volumes)

    def publish(
        self, records: Sequence[RawRecord | Signed], snapshots: Sequence[SnapId], *, close: bool = True
    ) -> Published:
        """Publish the run, look its packs up again, and remember that its snapshots are whole. Raises StoreError.

        With `close` the session pins nothing any more.
        """
        repo, confirmations = self._repo, Confirmations(self._repo.memory)
        said = {snapshot.ref for snapshot in repo.catalogue.snapshots if snapshot.confirmed}
        earlier = confirmations.unsaid(repo.own_writer, said)
        news: list[RawRecord | Signed] = [raw(Confirm(tuple(earlier)))] if earlier else []
        closing = [*self._unfinished.closing, *([self.id] if self._open and close else [])]
        if self._reliance is not None:
            self._reliance.renew()
        published = self._repo.publish([*news, *records, *(raw(Abandon(session_id)) for session_id in closing)])
        with repo.memory.may_fail():
            confirmations.drop(earlier)
        self.commit_bytes += published.stored_bytes
        self._check_packs()
        head = published.head
        with repo.memory.may_fail():
            confirmations.add(Ref(head.writer, head.seq, snap_id) for snap_id in snapshots)
        return published

    # -- figures ------------------------------------------------------------------------------------------------------

    @property
    def stored_packs(self) -> int:
        """Packs of this process that the store has taken."""
        return sum(len(packer.arrived) for packer in self._packers.values())

    @property
    def data_bytes(self) -> int:
        """Sealed data chunks put."""
        return sum(packer.data_bytes for packer in self._packers.values())

    @property
    def metadata_bytes(self) -> int:
        """Everything else put."""
        return sum(packer.put_bytes for packer in self._packers.values()) - self.data_bytes + self.commit_bytes

    def packs(self, domain_id: DomainId) -> tuple[bytes, ...]:
        """The packs that were written into a domain for this run and the unfinished ones before it."""
        packer = self._packers.get(domain_id)
        return () if packer is None else (*self._earlier[domain_id], *packer.packs)

    def listed_packs(self, domain_id: DomainId) -> tuple[bytes, ...]:
        """The same as an ADD_SNAP lists them: none where they are too many."""
        packs = self.packs(domain_id)
        return packs if len(packs) <= MAX_LISTED_PACKS else ()
