"""Publishing what a qube saved of its own files with the key that was lent to it (docs/decisions/0107).

Neither the qube nor its store is trusted. What is believed of them: that blobs open under the domain's keys. From the
root that the ticket names the nodes are walked as far as they differ from the last snapshot, and what this repository
lacks is sealed anew as it came. No chunk and no list of files is decoded or parsed here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files as resources
from typing import NamedTuple

from lamella.base.errors import IntegrityError, SourceError, UnknownFormat, UsageError
from lamella.base.events import Progress, Reporter, silent
from lamella.base.ids import NO_CHUNK, SnapId
from lamella.format.node import Shape
from lamella.format.records import NO_REF, AddSnap, Document, Figures, RawRecord, Run, RunVolume, Volume, raw
from lamella.format.sessions import SessionVolume
from lamella.format.ticket import Ticket
from lamella.history.catalogue import Snapshot
from lamella.memory.ledger import forget
from lamella.operations.backup.carrying import Carrying, InsideStore
from lamella.operations.backup.plan import FULL, INCREMENTAL
from lamella.operations.backup.publish import MODES, snapshot_name
from lamella.operations.shared.completeness import is_complete
from lamella.operations.shared.heads import fingerprint
from lamella.operations.shared.lending import Borrower, borrower, opened
from lamella.operations.writing.attachments import put_document, put_tree_note
from lamella.operations.writing.session import WritingSession, unfinished
from lamella.repository.repository import Repository
from lamella.sources.tree import DOCUMENT
from lamella.stores.base import Store

_AHEAD_MS = 10 * 60_000
"""How far the clock of a qube may be ahead of this host's."""
_SAID = b'{"format": "lamella-tree/1", "path": "(saved inside)"}'


class HandedIn(NamedTuple):
    """What became of a ticket. `published` is false for one that was published before."""

    volume: str
    snapshot: str
    published: bool
    mode: str
    size: int
    stored_bytes: int
    metadata_bytes: int
    new_chunks: int
    seconds: float
    fingerprint: str


@dataclass(frozen=True, slots=True)
class HandIn:
    """A ticket that may be published now, under the volume's name."""

    repo: Repository
    borrower: Borrower
    ticket: Ticket
    base: Snapshot | None
    """What is compared with; None: everything is walked."""
    before: Snapshot | None
    """The last snapshot, if it is what the ticket tells: nothing is left to be done."""

    @property
    def shape(self) -> Shape:
        """The shape of the tree."""
        return Shape(self.ticket.volume_id, self.ticket.size, self.ticket.chunk_log2)

    def execute(self, inside: Store, most_bytes: int | None = None, reporter: Reporter = silent) -> HandedIn:
        """Take over from the store `inside` what is lacking, at most so many bytes, and publish the snapshot.

        Raises SourceError for whatever is wrong with what the qube handed in, StoreError, RolledBack.
        """
        started, repo, name = time.monotonic(), self.repo, self.borrower.name
        if self.before is not None:
            return self._result(self.before.name, started)
        domain_id = self.ticket.domain_id
        with WritingSession(repo, unfinished(repo, [self.ticket.volume_id])) as session:
            root, ref = (NO_CHUNK, NO_REF) if self.base is None else (self.base.added.root, self.base.ref)
            session.announce([SessionVolume(self.ticket.volume_id, name, ref, root)])
            with InsideStore(repo, inside, domain_id, self.ticket.volume_id) as there:
                carrying = Carrying(repo, session.packer(domain_id), there, self.shape, most_bytes)
                reporter(Progress("backup", name, 0, 0))
                try:
                    carrying.tree(self.ticket.root, None if self.base is None else repo.tree(self.base))
                except (IntegrityError, UnknownFormat) as error:
                    text = f"what was handed in for {name} cannot be published: {error.message}"
                    hint = "nothing was published; run lamella files backup inside again, there also lamella verify"
                    raise SourceError(text, obj=error.obj, hint=hint) from error
            packer, now = session.packer(domain_id), repo.clock()
            put_tree_note(packer, self.base, self.shape, self.ticket.root, now, name)
            documents = tuple(put_document(packer, *one) for one in _documents().items())
            session.settle()
            added = self._add_snap(session, carrying, snapshot_name(now), documents)
            session.publish([*self._records(added)], [added.snap_id])
            repo.blobs.set_complete([self.ticket.root])
            with repo.memory.may_fail():
                forget(repo.memory, self.borrower.identity)
            repo.reload()
            stored, metadata = session.data_bytes, session.metadata_bytes + repo.blobs.write_segments()
        return self._result(added.name, started, stored, metadata, carrying.new_chunks)

    def _add_snap(
        self, session: WritingSession, carrying: Carrying, name: str, documents: tuple[Document, ...]
    ) -> AddSnap:
        ticket, mode = self.ticket, FULL if self.base is None else INCREMENTAL
        figures = Figures(MODES[mode], 0, session.data_bytes, carrying.changed_chunks, carrying.new_chunks)
        return AddSnap(
            snap_id=SnapId(os.urandom(16)),
            volume_id=ticket.volume_id,
            domain_id=ticket.domain_id,
            chunk_log2=ticket.chunk_log2,
            consistency=ticket.consistency,
            size=ticket.size,
            root=ticket.root,
            time_ms=ticket.time_ms,
            parent=NO_REF if self.base is None else self.base.ref,
            name=name,
            documents=documents,
            packs=session.listed_packs(ticket.domain_id),
            inner=(figures.encode(),),
        )

    def _records(self, added: AddSnap) -> Iterator[RawRecord | Volume]:
        ids, name, identity = self.borrower.ids, self.borrower.name, self.borrower.identity
        if self.borrower.volume is None:
            yield Volume(ids.volume_id, ids.domain_id, added.chunk_log2, name, "", identity, ids.creator, ids.nonce)
        yield raw(added)
        yield raw(Run(added.name, True, (RunVolume(added.volume_id, name, False, ""),)))

    def _result(
        self, snapshot: str, started: float, stored: int = 0, metadata: int = 0, new_chunks: int = 0
    ) -> HandedIn:
        mode, seconds = FULL if self.base is None else INCREMENTAL, round(time.monotonic() - started, 3)
        name, published = self.borrower.name, self.before is None
        heads = fingerprint(self.repo)
        return HandedIn(name, snapshot, published, mode, self.ticket.size, stored, metadata, new_chunks, seconds, heads)


def plan_hand_in(repo: Repository, name: str, content: bytes) -> HandIn:
    """Judge a ticket for the volume `name`.

    Raises SourceError for one that cannot be believed, UsageError, StoreError, RolledBack.
    """
    repo.require_sound_history()
    repo.refresh_map()
    found = borrower(repo, name)
    try:
        ticket = opened(content, repo.keys.domain(found.ids.domain_id))
    except IntegrityError as error:
        hint = f"the key inside must be one of: lamella key export-domain {name} --inside --to FILE"
        raise SourceError(f"{error.message}: not the key that was lent as {name}?", obj=name, hint=hint) from error
    if ticket.volume_id != found.ids.volume_id:
        raise SourceError(f"the ticket is for another volume than {name}", obj=name)
    record = None if found.volume is None else found.volume.record
    if record is not None and record.chunk_log2 != ticket.chunk_log2:
        wanted = 1 << record.chunk_log2 - 10
        hint = f"inside: lamella files backup --chunk-size {wanted}K"
        raise UsageError(f"the chunk size of {name} is {wanted} KiB since its first backup", obj=name, hint=hint)
    last = _last(repo, found, ticket)
    if last is not None and (last.added.root, last.added.time_ms) == (ticket.root, ticket.time_ms):
        return HandIn(repo, found, ticket, last, last)
    fits = last is not None and last.added.usable and is_complete(repo, last)
    return HandIn(repo, found, ticket, last if fits else None, None)


def _last(repo: Repository, found: Borrower, ticket: Ticket) -> Snapshot | None:
    """This host's last snapshot of the volume. Raises SourceError if the ticket is not of a later moment."""
    if ticket.time_ms > repo.clock() + _AHEAD_MS:
        text = f"the ticket for {found.name} is of a time that is not yet: is a clock wrong?"
        raise SourceError(text, obj=found.name)
    own = [one for one in (found.volume.snapshots if found.volume else ()) if one.counts and not one.conflict]
    last = max(own, key=lambda one: one.added.time_ms, default=None)
    if last is None or ticket.time_ms > last.added.time_ms:
        return last
    if (last.added.root, last.added.time_ms) != (ticket.root, ticket.time_ms):
        text = f"the ticket is not of a later moment than {last.name} of {found.name}: it was published or passed over"
        raise SourceError(text, obj=found.name, hint="make a new one: lamella files backup --ticket FILE")
    return last


def _documents() -> Mapping[str, bytes]:
    program = resources("lamella").joinpath("unpack.py").read_bytes()
    return {DOCUMENT: _SAID, "unpack.py": program}
