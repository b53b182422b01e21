"""Packs in the hands of an executor: judged by their own directories, and rewritten (FORMAT 8, Repack).

Caches decide nothing here: a pack's directory is read and opened before the pack is touched. Rewriting goes in batches
that each stand on their own. Every needed blob is opened, decoded and its id recomputed; its body is sealed again,
unchanged, under a new salt. An old pack goes only when everything needed in it was copied in this batch into packs that
were read back after `sync`, or lies in a twin whose bytes were verified and put again in this batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lamella.base.errors import IntegrityError, LamellaError, ObjectCold, ObjectNotFound, StoreError, UnknownFormat
from lamella.base.events import Progress, Reporter
from lamella.base.ids import CATALOGUE, ChunkId, DomainId
from lamella.base.names import pack_name
from lamella.base.trust import Sealed
from lamella.crypto.chunk_id import identifier
from lamella.crypto.unseal import PackOpener
from lamella.format import compression, document
from lamella.format.container import Blob, Kind
from lamella.operations.prune.needed import Needed
from lamella.operations.prune.plan import PruneResult
from lamella.packs import census
from lamella.packs.blobmap import Place
from lamella.packs.containers import PackHead, open_blob, open_head
from lamella.packs.heads import read_head
from lamella.packs.packer import Packer
from lamella.packs.reach import require_alive
from lamella.packs.usage import PackUse
from lamella.repository.repository import Repository
from lamella.run.pipeline import Outbox, default_workers, ordered_map

_GAP = 64 * 1024
_READ = 8 * 1024 * 1024
_NOTE_MOST = 512
"""No tree note is longer."""


@dataclass(slots=True)
class JudgedPack:
    """A pack, its directory as it stands in the store, and the blobs of it that are needed."""

    use: PackUse
    head: PackHead
    needed: list[Blob]


def judge(repo: Repository, needed: Needed, packs: Sequence[PackUse]) -> list[JudgedPack]:
    """Read the heads of these packs and hold them against the mark.

    Packs that do not open, lie in a domain that is not closed, or are pinned by an unfinished run, are left out: they
    stay. Packs that are gone already are left out, too.
    """
    workers = default_workers()
    chosen = [use for use in packs if use.pack not in needed.pinned and use.domain_id in needed.closed]
    heads = ordered_map(lambda use: (use, _head(repo, use)), chosen, workers=workers)
    found = _with_cold(repo, needed, list(heads))
    opened = [(use, head) for use, head in found if head is not None and head.domain_id == use.domain_id]
    live = needed.live.among(blob.id for _, head in opened for blob in head.blobs)
    judged: list[JudgedPack] = []
    for use, head in opened:
        wanted = [blob for blob in head.blobs if blob.id in live]
        notes = [blob for blob in head.blobs if blob.id not in live and _may_be_note(blob)]
        wanted += [blob for blob in notes if head.domain_id != CATALOGUE and _is_note(repo, needed, use, head, blob)]
        if wanted and use.pack in needed.cold:
            continue  # what it holds cannot be copied
        judged.append(JudgedPack(use, head, wanted))
        needed.cold.pop(use.pack, None)
    return judged


def delete_packs(repo: Repository, judged: Sequence[JudgedPack], result: PruneResult) -> None:
    """Delete packs; the caller says so in the history. Raises StoreError."""
    for one in judged:
        repo.store.delete(one.head.name)
    repo.store.sync()
    census.forget(repo.blobs, (one.use.pack for one in judged))
    repo.blobs.drop_stale_segments()
    result.freed_bytes += sum(one.use.length for one in judged)
    result.deleted_packs += len(judged)


Judged = list[tuple[PackUse, PackHead | ObjectCold | None]]


def _with_cold(repo: Repository, needed: Needed, found: Judged) -> list[tuple[PackUse, PackHead | None]]:
    """The same; for packs whose heads must be thawed first, what this host and an index segment both say."""
    cold = [use.pack for use, head in found if isinstance(head, ObjectCold)]
    if not cold:
        return [(use, head) for use, head in found if not isinstance(head, ObjectCold)]
    from lamella.packs.cold_heads import said_twice  # few repositories have any

    needed.cold |= {use.pack: use.length for use, head in found if isinstance(head, ObjectCold)}
    known = said_twice(repo.blobs, repo.store, repo.keys, cold)
    return [(use, known.get(use.pack) if isinstance(head, ObjectCold) else head) for use, head in found]


def _head(repo: Repository, use: PackUse) -> PackHead | ObjectCold | None:
    try:
        return read_head(repo.store, repo.keys, pack_name(use.pack), use.length)
    except ObjectCold as error:
        return error
    except (IntegrityError, UnknownFormat, ObjectNotFound):
        return None
    except StoreError as error:
        require_alive(repo.store, error)
        return None


def _may_be_note(blob: Blob) -> bool:
    return blob.kind == Kind.DOCUMENT and blob.content_length <= _NOTE_MOST


def _is_note(repo: Repository, needed: Needed, use: PackUse, head: PackHead, blob: Blob) -> bool:
    """Whether it is the tree note of a snapshot that stays; what cannot be read is no help to anybody."""
    try:
        content = repo.contents.open_at(Place(use.pack, head.header, head.domain_id, blob, own=False))
    except (IntegrityError, ObjectNotFound):  # where no lock keeps others out, another prune may have deleted it
        return False
    except ObjectCold:
        return True
    return document.note_root(content) in needed.roots.get(head.domain_id, set())


class Rewriting:
    """One batch. `copied_bytes` counts sealed bytes of needed blobs, `put_bytes` the new packs."""

    def __init__(self, repo: Repository, reporter: Reporter, *, twins: bool = True) -> None:
        self._repo = repo
        self._use_twins = twins
        self._reporter = reporter
        self._outbox = Outbox()
        self._packers: dict[tuple[DomainId, bool], Packer] = {}
        """By domain, and where packs of data may become cold, by whether they hold data."""
        self._copied: set[tuple[DomainId, ChunkId]] = set()
        self._twins: dict[bytes, set[ChunkId]] = {}
        self._going: set[bytes] = set()
        self.copied_bytes = 0
        self.bad: list[str] = []
        """Needed blobs that do not open: their packs stay."""

    @property
    def put_bytes(self) -> int:
        """Bytes of the packs that were written."""
        return sum(packer.put_bytes for packer in self._packers.values())

    @property
    def new_packs(self) -> list[bytes]:
        """The packs that were written, in order."""
        return [pack for packer in self._packers.values() for pack in packer.packs]

    def run(self, judged: Sequence[JudgedPack]) -> list[JudgedPack]:
        """Copy what is needed of these packs; returns those that may go. Raises StoreError, IntegrityError."""
        self._going = {one.use.pack for one in judged}
        with self._outbox:
            whole = [one for one in judged if self._copy(one)]
            for packer in self._packers.values():
                packer.finish()
            self._outbox.drain()
        self._repo.store.sync()
        for packer in self._packers.values():
            self._read_back(packer)
        return whole

    def withdraw(self) -> None:
        """Take back what was written: nobody else can have seen it under the exclusive lock."""
        for pack in self.new_packs:
            self._repo.store.delete(pack_name(pack))
        self._repo.store.sync()
        census.forget(self._repo.blobs, self.new_packs)

    def report_to(self, result: PruneResult, gone: Sequence[JudgedPack]) -> None:
        """Add what was written, and what did not open; `gone` are the packs that go for it."""
        result.blocked += [IntegrityError(f"a needed blob is damaged: {text}") for text in self.bad]
        result.freed_bytes -= self.put_bytes
        result.repacked_bytes += self.copied_bytes
        result.dead_bytes -= sum(one.use.blobs - one.use.needed for one in gone)

    def _copy(self, one: JudgedPack) -> bool:
        """Copy the needed blobs of one pack; False if one of them does not open."""
        domain_id = one.head.domain_id
        kept = self._in_twins(one)
        wanted = [blob for blob in one.needed if blob.id not in kept and (domain_id, blob.id) not in self._copied]
        whole = True
        for run in _runs(wanted):
            start, end = run[0].offset, run[-1].offset + run[-1].sealed_length
            try:
                content = self._repo.store.get(one.head.name, start, end - start)
            except StoreError as error:
                require_alive(self._repo.store, error)
                self.bad.append(f"{one.head.name}: {error.message}")
                return False
            for blob in run:
                sealed = content[blob.offset - start : blob.offset - start + blob.sealed_length]
                whole = self._copy_blob(one, blob, sealed) and whole
        return whole

    def _copy_blob(self, one: JudgedPack, blob: Blob, sealed: bytes) -> bool:
        domain_id, name = one.head.domain_id, one.head.name
        domain = self._repo.keys.domain(domain_id)
        try:
            body = PackOpener(domain, one.head.header, name).body(blob, sealed)
            content = compression.decode(body, blob.content_length, name)
            if identifier(domain, blob.kind)(content) != blob.id:
                raise IntegrityError("a blob whose content is not what its id says", obj=name)
        except (IntegrityError, UnknownFormat) as error:
            self.bad.append(f"{name}: {error.message}")
            self._repo.suspects.mark(one.use.pack, [(blob.kind, blob.id)])
            return False
        self._packer(domain_id, blob.kind).store_blob(blob.kind, blob.id, blob.content_length, lambda: body)
        self._copied.add((domain_id, blob.id))
        self.copied_bytes += blob.sealed_length
        self._reporter(Progress("rewrite", "", self.copied_bytes, 0, self.put_bytes))
        return True

    def _packer(self, domain_id: DomainId, kind: Kind = Kind.CHUNK) -> Packer:
        repo = self._repo
        hot = bool(repo.store.abilities.cold_from) and kind != Kind.CHUNK
        if (domain_id, hot) not in self._packers:
            most = repo.store.abilities.cold_from // 2 if hot else None
            self._packers[domain_id, hot] = Packer(
                repo.keys, domain_id, repo.store, repo.blobs, self._outbox, most=most
            )
        return self._packers[domain_id, hot]

    def _read_back(self, packer: Packer) -> None:
        for pack in packer.packs:
            if hashlib.sha256(self._repo.store.get(pack_name(pack))).digest() != pack:
                raise StoreError("a pack that was just written reads back with other bytes", obj=pack_name(pack))

    # -- twins ---------------------------------------------------------------------------------------------------------

    def _in_twins(self, one: JudgedPack) -> set[ChunkId]:
        """The content of verified twins of a pack."""
        held: set[ChunkId] = set()
        if not self._use_twins:
            return held
        for pack in set(one.use.twins) - self._going:
            if pack not in self._twins:
                self._twins[pack] = self._verified(pack, one.head.domain_id)
            held |= self._twins[pack]
        return held

    def _verified(self, pack: bytes, domain_id: DomainId) -> set[ChunkId]:
        """The blobs of a pack that open, after it was put again so that it is durable; empty at any doubt."""
        name = pack_name(pack)
        try:
            content = self._repo.store.get(name)
            head = open_head(self._repo.keys, name, content)
            if hashlib.sha256(content).digest() != pack or head.domain_id != domain_id:
                return set()
            domain = self._repo.keys.domain(domain_id)
            held: set[ChunkId] = set()
            for blob in head.blobs:
                sealed = content[blob.offset : blob.offset + blob.sealed_length]
                open_blob(domain, head.header, blob, sealed, name)
                held.add(blob.id)
            self._repo.store.put(name, Sealed(content))
        except LamellaError as error:
            require_alive(self._repo.store, error)
            return set()
        return held


def _runs(blobs: Sequence[Blob]) -> Iterator[list[Blob]]:
    """Blobs in the order of their places, cut into runs worth one read each."""
    run: list[Blob] = []
    for blob in sorted(blobs, key=lambda blob: blob.offset):
        if run:
            gap = blob.offset - run[-1].offset - run[-1].sealed_length
            if gap > _GAP or blob.offset + blob.sealed_length - run[0].offset > _READ:
                yield run
                run = []
        run.append(blob)
    if run:
        yield run
