"""One run's writing, in the order that makes it safe (FORMAT 1, order of writing).

Packs go out while the run reads; `sync`; the commit; `sync`; then the packs are looked up again. Nothing is published
once any write failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from lamella.errors import RepositoryError, StoreError
from lamella.format.records import Confirm, RawRecord, Ref, Volume, raw
from lamella.ids import DomainId, SnapId, WriterId
from lamella.pipeline import Outbox
from lamella.repository.blobmap import pack_name
from lamella.repository.packer import Packer
from lamella.repository.publish import Published
from lamella.repository.repository import Repository

_CONFIRMED = "confirmed.json"


class Session:
    """Packs and records of one run. A context manager: leaving it stops the uploads."""

    def __init__(self, repo: Repository) -> None:
        self._repo = repo
        self._outbox = Outbox()
        self._packers: dict[DomainId, Packer] = {}
        self.commit_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outbox.__exit__(kind, error, trace)

    def packer(self, domain_id: DomainId) -> Packer:
        """The packer of a domain."""
        if domain_id not in self._packers:
            self._packers[domain_id] = Packer(
                self._repo.keys, domain_id, self._repo.store, self._repo.blobs, self._outbox
            )
        return self._packers[domain_id]

    def settle(self) -> None:
        """Every pack is put and durable when this returns. Raises StoreError."""
        for packer in self._packers.values():
            packer.flush()
        self._outbox.drain()
        self._repo.store.sync()
        self._check_packs()

    def _check_packs(self) -> None:
        """The packs of this run are there, as large as they were put."""
        for packer in self._packers.values():
            for sha256 in packer.packs:
                if self._repo.store.stat(pack_name(sha256)) != packer.sizes[sha256]:
                    raise StoreError("a pack that was put has another size now", obj=pack_name(sha256))

    def publish(self, records: Sequence[RawRecord | Volume], snapshots: Sequence[SnapId]) -> Published:
        """Publish the run, look its packs up again, and remember that its snapshots are whole. Raises StoreError."""
        confirmations = Confirmations(self._repo)
        earlier = confirmations.take()
        news: list[RawRecord | Volume] = [raw(Confirm(tuple(earlier)))] if earlier else []
        published = self._repo.publish([*news, *records])
        self._note(lambda: confirmations.drop(earlier))
        self.commit_bytes = published.stored_bytes
        self._check_packs()
        head = published.head
        self._note(lambda: confirmations.add(Ref(head.writer, head.seq, snap_id) for snap_id in snapshots))
        return published

    def _note(self, write: Callable[[], None]) -> None:
        """Write to the state directory. The snapshot is safe by now: failing here costs a later run some time."""
        try:
            write()
        except RepositoryError as error:
            self._repo.pins.unsaved = error.message

    @property
    def data_bytes(self) -> int:
        """Sealed data chunks put."""
        return sum(packer.data_bytes for packer in self._packers.values())

    @property
    def metadata_bytes(self) -> int:
        """Everything else put."""
        return sum(packer.put_bytes for packer in self._packers.values()) - self.data_bytes + self.commit_bytes

    def packs(self, domain_id: DomainId) -> tuple[bytes, ...]:
        """The packs this run wrote into a domain."""
        packer = self._packers.get(domain_id)
        return tuple(packer.packs) if packer is not None else ()


class Confirmations:
    """This host's snapshots whose packs were seen after publication, not yet said so in a commit."""

    def __init__(self, repo: Repository) -> None:
        self._memory = repo.memory
        self._known = {snapshot.ref for snapshot in repo.catalogue.snapshots if snapshot.confirmed}
        self._own = repo.own_writer

    def waiting(self) -> list[Ref]:
        """What is remembered; a damaged memory is a lost one."""
        rows = self._memory.read(_CONFIRMED).get("snapshots")
        refs: list[Ref] = []
        for row in rows if isinstance(rows, list) else []:
            try:
                ref = Ref(WriterId(bytes.fromhex(row[0])), int(row[1]), SnapId(bytes.fromhex(row[2])))
            except (ValueError, TypeError, LookupError, OverflowError):
                continue
            if (len(ref.writer), len(ref.snap_id)) == (16, 16) and 0 < ref.seq < 1 << 64:
                refs.append(ref)
        return refs

    def take(self) -> list[Ref]:
        """What the next commit should confirm: only the author's own word counts."""
        return [ref for ref in self.waiting() if ref not in self._known and ref.writer == self._own]

    def add(self, refs: Iterable[Ref]) -> None:
        """Remember that these are whole."""
        with self._memory.lock():
            self._write({*self.waiting(), *refs})

    def drop(self, refs: Iterable[Ref]) -> None:
        """Forget these: a commit says it now."""
        with self._memory.lock():
            self._write({*self.waiting()} - {*refs})

    def _write(self, refs: set[Ref]) -> None:
        rows = [[ref.writer.hex(), ref.seq, ref.snap_id.hex()] for ref in sorted(refs)]
        self._memory.write(_CONFIRMED, {"snapshots": rows})
