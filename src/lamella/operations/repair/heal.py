"""Filling gaps: content with the missing id is looked for at the donors and stored again, in packs of this run.

What a donor gives is content to be tried, never a promise: chunks and nodes are stored under the id that is computed
from them. A missing node says nothing of the ids below it; it is found again by building that part of the manifest from
what a donor holds there.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

from lamella.base.errors import IntegrityError
from lamella.base.ids import ChunkId, DomainId
from lamella.crypto.chunk_id import identifier
from lamella.format import document, node
from lamella.format.container import Kind
from lamella.format.encoder import Encoder
from lamella.format.node import FAN_OUT, Node, Shape, Slot, SlotValue
from lamella.operations.repair.donors import Donors, DonorView
from lamella.operations.shared.gaps import MissingBlob
from lamella.operations.shared.ranges import is_zero
from lamella.operations.shared.selection import Selected
from lamella.operations.writing.session import WritingSession
from lamella.packs.building import raw_body
from lamella.repository.repository import Repository


class Depot:
    """Takes blobs to be stored again. A context manager; `settle` makes them durable. With `dry` it only counts."""

    def __init__(self, repo: Repository, *, dry: bool) -> None:
        self._dry = dry
        self._session = WritingSession(repo)
        self._encoder = Encoder()
        self._taken: set[tuple[DomainId, Kind, ChunkId]] = set()
        self.blobs = 0
        self.chunk_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.__exit__(kind, error, trace)

    def has(self, domain_id: DomainId, kind: Kind, id_: ChunkId) -> bool:
        """Whether this run took the blob on."""
        return (domain_id, kind, id_) in self._taken

    def store(self, domain_id: DomainId, kind: Kind, id_: ChunkId, content: bytes) -> None:
        """Store a content under its id, once."""
        if self.has(domain_id, kind, id_):
            return
        self._taken.add((domain_id, kind, id_))
        self.blobs += 1
        self.chunk_bytes += len(content) if kind == Kind.CHUNK else 0
        if self._dry:
            return
        body = self._encoder.encode(content) if kind == Kind.CHUNK else raw_body(content)
        self._session.packer(domain_id).store_blob(kind, id_, len(content), lambda: body)

    def settle(self) -> None:
        """Everything stored so far is durable, and its packs are there. Raises StoreError."""
        if not self._dry:
            self._session.settle()


class _Unlike(Exception):
    """The donor cannot give this part."""


class _Part(NamedTuple):
    """A part of a manifest built from a donor: the slot for it, and how many DATA chunks lie below."""

    slot: SlotValue
    data: int


class Healer:
    """Fills gaps of snapshots from donors."""

    def __init__(self, repo: Repository, donors: Donors, depot: Depot) -> None:
        self._repo = repo
        self._donors = donors
        self._depot = depot
        self._failed: set[tuple[DomainId, ChunkId]] = set()

    def heal(self, one: Selected, gap: MissingBlob) -> bool:
        """Fill a gap, if any donor can; a copy of this repository may leave gaps below it, to be looked for again."""
        domain_id = one.snapshot.added.domain_id
        if self._depot.has(domain_id, gap.kind, gap.id):
            return True
        content = self._donors.by_id(domain_id, gap.kind, gap.id)
        if content is not None:
            self._depot.store(domain_id, gap.kind, gap.id, content)
            return True
        key = (domain_id, gap.id)
        if gap.kind != Kind.CHUNK and key in self._failed:
            return False  # building it once was enough
        filled = any(_Filling(self._repo, self._depot, one, view).fill(gap) for view in self._donors.views(one))
        if not filled:
            self._failed.add(key)
        return filled


class _Filling:
    """One donor's view of one snapshot's volume."""

    def __init__(self, repo: Repository, depot: Depot, one: Selected, view: DonorView) -> None:
        added = one.snapshot.added
        self._depot = depot
        self._repo = repo
        self._domain_id = added.domain_id
        self._domain = repo.keys.domain(added.domain_id)
        self._shape = Shape(added.volume_id, added.size, added.chunk_log2)
        self._view = view
        self._keeps = False
        self._zeros: Slot | None = None

    def fill(self, gap: MissingBlob) -> bool:
        """Store what is missing if the donor has it."""
        if gap.document:
            return self._document(gap)
        if gap.kind == Kind.CHUNK:
            content = self._chunk(gap.first)
            if content is None or self._id(Kind.CHUNK, content) != gap.id:
                return False
            self._depot.store(self._domain_id, Kind.CHUNK, gap.id, content)
            return True
        return any(self._builds(gap, zeros) for zeros in (None, Slot.HOLE, Slot.ZERO))

    def _builds(self, gap: MissingBlob, zeros: Slot | None) -> bool:
        """Whether the donor's content makes the missing node; `zeros` is what zeros count as, None: as the donor says.

        A donor with another grid or another allocation cannot know which zeros had space behind them.
        """
        self._zeros = zeros
        # Twice: nothing is stored until the whole part is known to be the missing one.
        for keeps in (False, True):
            self._keeps = keeps
            try:
                built = self._node(gap.level, gap.first)
            except (_Unlike, IntegrityError):
                return False
            if built.slot != gap.id:
                return False
        return True

    def _document(self, gap: MissingBlob) -> bool:
        content = self._view.document(gap.document)
        for part in document.parts(content) if content is not None else ():
            if self._id(Kind.DOCUMENT, part) == gap.id:
                self._depot.store(self._domain_id, Kind.DOCUMENT, gap.id, part)
                return True
        return False

    def _id(self, kind: Kind, content: bytes) -> ChunkId:
        return identifier(self._domain, kind)(content)

    def _chunk(self, chunk: int) -> bytes | None:
        return self._view.read(chunk << self._shape.chunk_log2, self._shape.chunk_length(chunk))

    def _node(self, level: int, first: int) -> _Part:
        """The part of the manifest at a level and chunk, as a backup would have built it."""
        parts = list(self._parts(level, first))
        data = sum(part.data for part in parts)
        slots = [part.slot for part in parts]
        is_root = first == 0 and level == self._shape.depth - 1
        if not is_root and not isinstance(slots[0], bytes) and len(set(slots)) == 1:
            return _Part(slots[0], 0)
        padded = (*slots, *([Slot.HOLE] * (FAN_OUT - len(slots))))
        made = Node(level, first, data, padded)
        content = node.encode(made, self._shape)
        id_ = self._id(made.kind, content)
        self._keep(made.kind, id_, content)
        return _Part(id_, data)

    def _parts(self, level: int, first: int) -> Iterator[_Part]:
        step = FAN_OUT**level
        for begin in range(first, min(first + FAN_OUT * step, self._shape.chunks), step):
            yield self._node(level - 1, begin) if level else self._slot(begin)
        if not self._shape.chunks:
            yield _Part(Slot.HOLE, 0)

    def _slot(self, chunk: int) -> _Part:
        content = self._chunk(chunk)
        if content is None:
            raise _Unlike
        if is_zero(memoryview(content)):
            if self._zeros is not None:
                return _Part(self._zeros, 0)
            start = chunk << self._shape.chunk_log2
            unallocated = self._view.unallocated(start, start + len(content))
            return _Part(Slot.HOLE if unallocated else Slot.ZERO, 0)
        id_ = self._id(Kind.CHUNK, content)
        self._keep(Kind.CHUNK, id_, content)
        return _Part(id_, 1)

    def _keep(self, kind: Kind, id_: ChunkId, content: bytes) -> None:
        if self._keeps and not self._repo.blobs.has(kind, id_):
            self._depot.store(self._domain_id, kind, id_, content)
