"""Taking a tree over from a store whose packs are of one domain of this repository, and sealed by somebody else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from lamella.base.errors import IntegrityError, ObjectNotFound, SourceError, shown_bytes
from lamella.base.ids import ChunkId, DomainId, VolumeId
from lamella.base.names import PACKS, pack_name
from lamella.base.trust import Opened
from lamella.crypto.chunk_id import identifier
from lamella.crypto.derive import Keys
from lamella.crypto.unseal import PackOpener
from lamella.format.compression import Codec
from lamella.format.container import Kind, max_content
from lamella.format.cursor import u8, u32
from lamella.format.node import DeltaChunk, Shape
from lamella.packs.blobmap import BlobMap, Place
from lamella.packs.cache import Cache
from lamella.packs.packer import Packer
from lamella.packs.packs import Packs
from lamella.packs.tree import SlotRun, Tree, TreeReader
from lamella.packs.tree_changes import changes
from lamella.repository.repository import Repository
from lamella.stores.base import Entry, Store
from lamella.stores.wrap.wrapper import Wrapper

_MOST_PACKS = 1 << 17
_BATCH = 256
_GAP, _MOST_READ = 64 << 10, 8 << 20
_CODECS = {int(codec) for codec in Codec}
_BODY_HEAD = 5


class _OneDomain(Keys):
    """Takes every pack for one of the domain: what its hint says was made with another repository's keys."""

    def __init__(self, keys: Keys, domain_id: DomainId) -> None:
        super().__init__(keys.marker, keys.bundle)
        self._only = domain_id

    def domain_of(self, salt: bytes, hint: bytes) -> DomainId | None:
        """The domain. Whether that is true, the pack's directory says."""
        return self._only


class _PacksAlone(Wrapper):
    """A store of which nothing is looked at but packs, and not too many."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """The packs. Raises SourceError if they are too many."""
        if prefix != PACKS:
            return
        for number, entry in enumerate(super().list(prefix)):
            if number == _MOST_PACKS:
                raise SourceError(f"{self.url} holds more than {_MOST_PACKS} packs", hint="inside: lamella prune")
            yield entry


class InsideStore:
    """The packs in a qube's store that open with the keys of the domain. A context manager."""

    def __init__(self, repo: Repository, store: Store, domain_id: DomainId, volume_id: VolumeId) -> None:
        self.store = _PacksAlone(store)
        self._cache = Cache.open(repo.host.cache_dir / f"{repo.repo_id.hex()}-{volume_id.hex()}" / "cache.sqlite")
        self.map: BlobMap = Packs(self.store, _OneDomain(repo.keys, domain_id), self._cache).map

    def __enter__(self) -> Self:
        """Look at what is there. Raises SourceError, StoreError."""
        self.map.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cache.close()


class Carrying:
    """Takes over what a repository lacks of a tree, at most `most_bytes`."""

    def __init__(
        self, repo: Repository, packer: Packer, inside: InsideStore, shape: Shape, most_bytes: int | None
    ) -> None:
        self._repo = repo
        self._packer = packer
        self._inside = inside
        self._shape = shape
        self._most_bytes = most_bytes
        self._domain = repo.keys.domain(packer.domain_id)
        self.changed_chunks = 0
        self.new_chunks = 0

    def tree(self, root: ChunkId, base: Tree | None) -> None:
        """Take the tree over, where it differs from the base. Raises IntegrityError, UnknownFormat, StoreError."""
        tree, reader = Tree(self._shape, root), TreeReader(self._node)
        runs = reader.runs(tree) if base is None else self._differing(reader, base, tree)
        wanted: dict[ChunkId, int] = {}
        for run in runs:
            self.changed_chunks += run.end - run.first
            if isinstance(run.slot, DeltaChunk):
                raise IntegrityError("a chunk that is stored as a difference", obj=run.slot.hex())
            if isinstance(run.slot, bytes):
                length = self._shape.chunk_length(run.first)
                if wanted.setdefault(run.slot, length) != length:
                    raise IntegrityError("a chunk of two lengths", obj=run.slot.hex())
            if len(wanted) == _BATCH:
                self._chunks(wanted)
                wanted = {}
        self._chunks(wanted)

    def _differing(self, reader: TreeReader, base: Tree, tree: Tree) -> Iterator[SlotRun]:
        """What differs, and what has another length with another size, which an honest id would tell."""
        for run, _ in changes(reader, base, tree):
            yield run
        if base.shape.size != tree.shape.size:
            for last in {base.shape.chunks - 1, tree.shape.chunks - 1}:
                yield from reader.runs(tree, max(last, 0), last + 1)

    # -- nodes --------------------------------------------------------------------------------------------------------

    def _node(self, kind: Kind, id_: ChunkId) -> Opened:
        """A node, of this repository or the other store; here it is stored, too."""
        for place in self._own(kind, [id_]).get(id_, []):
            try:
                content = self._content(self._repo.store, place)
            except (IntegrityError, ObjectNotFound):
                continue  # whoever verifies says so
            self._repo.blobs.relied.add(place.pack)
            return content
        fault = f"{kind.name.lower()} {id_.hex()[:16]} is in no pack of {self._inside.store.url}"
        for place in self._inside.map.find(kind, id_):
            try:
                content = self._content(self._inside.store, place)
            except (IntegrityError, ObjectNotFound) as error:
                fault = error.message
                continue
            self._packer.store_node(kind, content)
            return content
        raise IntegrityError(fault, obj=id_.hex())

    def _content(self, store: Store, place: Place) -> Opened:
        """A node that is not compressed: here nothing is decoded that others encoded. Raises IntegrityError."""
        blob, name = place.blob, pack_name(place.pack)
        if place.header is None or blob.content_length > max_content(blob.kind):
            raise IntegrityError("a node that is too large", obj=name)
        sealed = store.get(name, blob.offset, blob.sealed_length)
        body = PackOpener(self._domain, place.header, name).body(blob, sealed)
        content = Opened(body[_BODY_HEAD:])
        if body[:_BODY_HEAD] != u8(Codec.RAW) + u32(len(content)):
            raise IntegrityError("a node that is compressed, or has another length than it says", obj=name)
        if identifier(self._domain, blob.kind)(content) != blob.id:
            raise IntegrityError("a node whose content is not what its id says", obj=name)
        return content

    def _own(self, kind: Kind, ids: Sequence[ChunkId]) -> dict[ChunkId, list[Place]]:
        """The places in packs of this host that may be relied on."""
        blobs, domain_id = self._repo.blobs, self._packer.domain_id
        return {
            id_: good
            for id_, places in blobs.find_many(kind, ids).items()
            if (good := [one for one in places if one.own and one.header and one.domain_id == domain_id
                         and one.pack not in blobs.condemned])
        }  # fmt: skip

    # -- chunks -------------------------------------------------------------------------------------------------------

    def _chunks(self, wanted: dict[ChunkId, int]) -> None:
        own = self._own(Kind.CHUNK, list(wanted))
        lacking: dict[ChunkId, int] = {}
        for id_, length in wanted.items():
            fitting = [one for one in own.get(id_, ()) if one.blob.content_length == length]
            if fitting:
                self._repo.blobs.relied.add(fitting[0].pack)
            else:
                lacking[id_] = length
        places: list[Place] = []
        there = self._inside.map.find_many(Kind.CHUNK, list(lacking))
        for id_, length in lacking.items():
            fitting = [one for one in there.get(id_, ()) if one.blob.content_length == length]
            if not fitting:
                text = f"chunk {id_.hex()[:16]} is in no pack of {self._inside.store.url}"
                raise IntegrityError(text, obj=id_.hex())
            places.append(fitting[0])
        for run in _runs(places):
            self._take(run)

    def _take(self, run: Sequence[Place]) -> None:
        """Read neighbours in a pack together, and store each as it came. Raises IntegrityError, StoreError."""
        name, start = pack_name(run[0].pack), run[0].blob.offset
        end = run[-1].blob.offset + run[-1].blob.sealed_length
        try:
            stored = self._inside.store.get(name, start, end - start)
        except ObjectNotFound as error:
            raise IntegrityError("a pack that went while it was read", obj=name) from error
        for place in run:
            blob = place.blob
            if place.header is None:
                raise IntegrityError("a pack without a head", obj=name)
            sealed = stored[blob.offset - start : blob.offset - start + blob.sealed_length]
            body = PackOpener(self._domain, place.header, name).body(blob, sealed)
            if body[0] not in _CODECS or body[1:_BODY_HEAD] != u32(blob.content_length):
                raise IntegrityError("a chunk in a form that nobody reads", obj=name)
            self._packer.store_blob(Kind.CHUNK, blob.id, blob.content_length, partial(bytes, body))
            self.new_chunks += 1
            if self._most_bytes is not None and self._packer.data_bytes > self._most_bytes:
                hint = "allow more with --max-size"
                raise SourceError(f"more than {shown_bytes(self._most_bytes)} would be stored", obj=name, hint=hint)


def _runs(places: Sequence[Place]) -> Iterator[list[Place]]:
    """Places that are worth one read each, pack by pack."""
    run: list[Place] = []
    for place in sorted(places, key=lambda one: (one.pack, one.blob.offset)):
        if run:
            last, first = run[-1].blob, run[0]
            near = place.blob.offset - last.offset - last.sealed_length <= _GAP
            small = place.blob.offset + place.blob.sealed_length - first.blob.offset <= _MOST_READ
            if place.pack == first.pack and near and small:
                run.append(place)
                continue
            yield run
        run = [place]
    if run:
        yield run
