"""A group of a datastore as a history: each snapshot is a session, each disk image in it a volume."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, NoRepository, SourceError, UsageError
from lamella.base.extents import Extent
from lamella.imports.foreign_files import read_foreign
from lamella.imports.history import (
    ForeignHistory,
    ForeignSession,
    ForeignSource,
    ForeignVolume,
    claimed,
    shown_name,
    unreadable,
)
from lamella.imports.pbs.blob import OVERHEAD, PbsKey, blob_content
from lamella.imports.pbs.snapshot import (
    MANIFEST,
    PbsFile,
    PbsIndex,
    disks_of,
    read_index,
    read_manifest,
    read_small_files,
)
from lamella.sources.base import Consistency, FrozenVolume

KIND: Final = "pbs"
_GROUP: Final = re.compile(r"(?:ns/[A-Za-z0-9_][A-Za-z0-9_.-]*/)*(?:vm|ct|host)/[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SNAPSHOT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_SUM_BYTES: Final = 16
"""Of the checksum of an index, in a checkpoint: another datastore may have a snapshot of the same name."""
_MAX_DOCUMENT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Datastore:
    """A datastore, a group in it, and the key of what is encrypted."""

    place: Path
    group: str
    key: PbsKey | None

    @property
    def folder(self) -> Path:
        """The directory of the group."""
        return self.place / self.group

    @property
    def archive(self) -> str:
        """By what the group is known: a datastore has no id of its own, so the name of its directory is part of it."""
        return f"{self.place.resolve().name}/{self.group}"

    def chunk(self, digest: bytes, length: int, *, encrypted: bool) -> bytes:
        """The content of a chunk, which has its digest; one that was encrypted is authentic. Raises SourceError."""
        name = digest.hex()
        blob = read_foreign(self.place / ".chunks" / name[:4] / name, length + OVERHEAD)
        content = blob_content(blob, self.key, length, f"chunk {name}", encrypted=encrypted)
        if not hmac.compare_digest(self.digest(content, encrypted=encrypted), digest) or len(content) != length:
            raise SourceError(f"chunk {name} is not what its name says", obj=name)
        return content

    def digest(self, content: bytes, *, encrypted: bool) -> bytes:
        """The digest of a content."""
        if encrypted and self.key is not None:
            return self.key.digest(content)
        return hashlib.sha256(content).digest()


def pbs_history(store: Datastore) -> ForeignHistory:
    """The history of a group. Raises UsageError for what is no name of a group, NoRepository, SourceError."""
    if not _GROUP.fullmatch(store.group):
        hint = "as its directory is called: vm/100, or ns/NAMESPACE/vm/100"
        raise UsageError(f"not a group: {store.group!r}", obj=store.group, hint=hint)
    if not (store.place / ".chunks").is_dir():
        where = shown_name(str(store.place))
        raise NoRepository(f"there is no datastore at {where}: it has no directory .chunks", obj=str(store.place))
    try:
        names = sorted(one.name for one in store.folder.iterdir() if _SNAPSHOT.fullmatch(one.name))
    except OSError as error:
        raise NoRepository(f"the datastore has no group {store.group}", obj=store.group) from error
    sessions: list[ForeignSession] = []
    warnings: list[str] = []
    lacks: list[str] = []
    for name in names:
        if not (store.folder / name / MANIFEST).exists():
            warnings.append(f"snapshot {name} has no manifest: its backup did not end")
            continue
        try:
            session, signed = _session(store, name)
        except SourceError as error:
            lacks.append(f"snapshot {name} of the group cannot be read: {error.message}")
            continue
        sessions.append(session)
        if store.key is not None and not signed:
            warnings.append(f"snapshot {name} is not signed: whoever can write into the datastore can have made it")
    return ForeignHistory(KIND, store.archive, tuple(sessions), tuple(warnings), tuple(lacks))


def _name(text: str) -> str:
    """The name of a snapshot. Raises SourceError for anything else."""
    if not _SNAPSHOT.fullmatch(text):
        raise SourceError(f"no name of a snapshot: {shown_name(text)!r}")
    return text


def _session(store: Datastore, name: str) -> tuple[ForeignSession, bool]:
    """A snapshot, and whether it is signed."""
    place = store.folder / name
    files, signed = read_manifest(place, store.key)
    documents, trouble = dict[str, bytes](), ""
    try:
        documents = read_small_files(place, files, store.key, _MAX_DOCUMENT)
    except SourceError as error:
        trouble = error.message
    volumes: list[ForeignVolume] = []
    for file in disks_of(files):
        disk = file.name.removesuffix(".fidx").removesuffix(".img")
        called = f"{store.group.rpartition('/')[2]}:{disk}"
        identity = f"{KIND}:{store.archive}:{disk}".encode("utf-8", "surrogateescape")
        opens = partial(unreadable, trouble) if trouble else partial(_opened, store, name, file)
        source = ForeignSource(KIND, identity, called, opens)
        volumes.append(ForeignVolume(called, source, file.size, documents, proof=file.checksum.hex()))
    try:
        moment = claimed(datetime.fromisoformat(name[:-1] + "+00:00").timestamp())
    except ValueError:  # the 31st of February
        moment = None
    return ForeignSession(name, tuple(volumes), moment), signed


def _sum(file: PbsFile) -> str:
    return file.checksum[:_SUM_BYTES].hex()


def _opened(store: Datastore, name: str, file: PbsFile) -> AbstractContextManager[FrozenVolume]:
    if file.encrypted and store.key is None:
        raise SourceError("the disk is encrypted: name its key with --from-keyfile", obj=file.name)
    return nullcontext(FrozenPbs(store, name, file, read_index(store.folder / name, file)))


class FrozenPbs:
    """A disk at a snapshot, as a backup reads it."""

    def __init__(self, store: Datastore, name: str, file: PbsFile, index: PbsIndex) -> None:
        self._store = store
        self._name = name
        self._file = file
        self._index = index

    @property
    def size(self) -> int:
        """Bytes."""
        return self._index.size

    @property
    def checkpoint(self) -> str:
        """The snapshot's name, and what its index is known by."""
        return f"{self._name}.{_sum(self._file)}"

    def consistency(self) -> Consistency:
        """UNKNOWN: a datastore does not say."""
        return Consistency.UNKNOWN

    def allocated(self) -> Iterator[Extent]:
        """What is not the chunk of zeros, which is known by its digest."""
        index, start = self._index, 0
        zeros = self._store.digest(bytes(index.chunk_size), encrypted=index.encrypted)
        for chunk in range(index.chunks + 1):
            if chunk < index.chunks and index.digest(chunk) != zeros:
                continue
            if start < chunk:
                yield Extent(start * index.chunk_size, min(chunk * index.chunk_size, index.size))
            start = chunk + 1

    def delta_since(self, base: str, grain: int) -> Delta:
        """The chunks whose digests differ. Raises CheckpointLost if that snapshot is gone, or cannot be compared."""
        name, _, known = base.partition(".")
        try:
            files, _ = read_manifest(self._store.folder / _name(name), self._store.key)
            file = next(one for one in files if (one.name, _sum(one)) == (self._file.name, known))
            before = read_index(self._store.folder / name, file)
        except (SourceError, StopIteration) as error:
            raise CheckpointLost("the datastore no longer has the snapshot that was imported before") from error
        now = self._index
        if (before.chunk_size, before.encrypted) != (now.chunk_size, now.encrypted):
            raise CheckpointLost("the disk was saved in another way then")
        changed, size = ChunkSet(), now.chunk_size
        for chunk in range(now.chunks):
            if chunk >= before.chunks or now.digest(chunk) != before.digest(chunk):
                changed.add(chunk * size // grain, -(-(chunk + 1) * size // grain))
        return Delta.bounded(grain, before.size, now.size, changed, ChunkSet())

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from the chunks it touches."""
        index, end, position = self._index, offset + len(buffer), offset
        if offset < 0 or end > index.size:
            raise SourceError(f"nothing to read beyond the end of {shown_name(self._file.name)}")
        while position < end:
            chunk = position // index.chunk_size
            start = chunk * index.chunk_size
            length = min(index.chunk_size, index.size - start)
            stop = min(end, start + length)
            content = self._store.chunk(index.digest(chunk), length, encrypted=index.encrypted)
            buffer[position - offset : stop - offset] = memoryview(content)[position - start : stop - start]
            position = stop
