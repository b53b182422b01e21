"""A volume of a wyng archive at each of its sessions: which chunk counts where, and what changed between two.

A session's volume is the newest line of each address among the manifests up to its own, as far as its size reaches.
"""

from __future__ import annotations

import hmac
import re
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lamella.base.chunkset import ChunkSet
from lamella.base.delta import Delta
from lamella.base.errors import CheckpointLost, SourceError
from lamella.base.extents import Extent
from lamella.imports.foreign_files import read_foreign, unpacked
from lamella.imports.wyng.archive import WyngArchive, WyngSession, WyngVolume, raw_hash
from lamella.sources.base import Consistency

_LINE: Final = re.compile(rb"(0|[\w-]{43}=) x([0-9a-f]{16})\n")
_HASH_SIZE: Final = 32
_NONCE: Final = 24
_NONE, _HOLE = 0, 0xFFFF


class VolumeAtSessions:
    """Which session has the chunk that counts at each address, rolled forward from session to session.

    Memory: 34 bytes a chunk of the archive.
    """

    def __init__(self, archive: WyngArchive, volume: WyngVolume) -> None:
        self.archive = archive
        self.volume = volume
        self._forget()

    def _forget(self) -> None:
        self._applied = -1
        self._named = 0
        """The lines of all manifests so far."""
        self._owners = array("H")
        self._hashes = bytearray()

    @contextmanager
    def open(self, session: WyngSession) -> Iterator[FrozenWyng]:
        """The volume at a session. One session is open at a time. Raises SourceError."""
        index = self.volume.sessions.index(session)
        if index < self._applied:
            self._forget()
        while self._applied < index:
            self._apply(self._applied + 1)
        frozen = FrozenWyng(self, session)
        frozen.check()
        yield frozen

    def _apply(self, index: int) -> None:
        session, log2 = self.volume.sessions[index], self.archive.chunk_size.bit_length() - 1
        # What fails half way is done again from the beginning.
        before, self._applied = self._applied, len(self.volume.sessions)
        owner = index + 1
        for digest, address in self._lines(session):
            chunk = address >> log2
            self._named += 1
            if chunk >= self._named:  # addresses ascend: nothing fills the gap, and it may be as large as a volume
                raise SourceError(f"no session has the chunk at some place before {address} of {self.volume.name}")
            if chunk >= len(self._owners):
                self._grow(chunk + 1)
            if digest == b"0":
                self._owners[chunk] = _HOLE
            else:
                self._owners[chunk] = owner
                self._hashes[chunk * _HASH_SIZE : (chunk + 1) * _HASH_SIZE] = raw_hash(digest.decode("ascii"))
        self._applied = before + 1

    def _grow(self, chunks: int) -> None:
        more = max(chunks - len(self._owners), 1024)
        self._owners.frombytes(bytes(2 * more))
        self._hashes += bytes(_HASH_SIZE * more)

    def _lines(self, session: WyngSession) -> Iterator[tuple[bytes, int]]:
        """Each hash and address of a manifest. Raises SourceError unless they ascend and lie in the volume."""
        text, position, least = self.archive.manifest(self.volume.id, session), 0, 0
        size = self.archive.chunk_size
        for match in _LINE.finditer(text):
            address = int(match[2], 16)
            if match.start() != position or address < least or address % size or address > session.size:
                break
            position, least = match.end(), address + size
            yield match[1], address
        if position != len(text):
            raise SourceError(f"the manifest of session {session.name} is not what wyng writes", obj=self.volume.name)

    def changed(self, base: str, session: WyngSession, grain: int) -> ChunkSet:
        """Chunks of `grain` bytes that a manifest after `base` names, up to a session. Raises CheckpointLost."""
        names = [one.name for one in self.volume.sessions]
        last = names.index(session.name)
        if base not in names or names.index(base) > last:
            raise CheckpointLost("the archive no longer has the session that was imported before")
        found, size = ChunkSet(), self.archive.chunk_size
        for one in self.volume.sessions[names.index(base) + 1 : last + 1]:
            for _, address in self._lines(one):
                found.add(address // grain, -(-(address + size) // grain))
        return found

    def size_at(self, name: str) -> int:
        """Bytes of the volume at a session. Raises CheckpointLost."""
        for session in self.volume.sessions:
            if session.name == name:
                return session.size
        raise CheckpointLost("the archive no longer has the session that was imported before")

    def owner(self, chunk: int) -> int:
        """The number of the session that has a chunk, from 1; 0 if none has, 65535 for a hole."""
        return self._owners[chunk] if chunk < len(self._owners) else _NONE

    def read_chunk(self, chunk: int, length: int) -> bytes:
        """The content of a chunk that is no hole: authenticated, then unpacked. Raises SourceError."""
        archive, session = self.archive, self.volume.sessions[self._owners[chunk] - 1]
        address = f"{chunk * archive.chunk_size:016x}"
        path = archive.place / self.volume.id / session.name / address[:9] / f"x{address}"
        packed = read_foreign(path, archive.chunk_size + archive.chunk_size // 64 + _NONCE)
        if archive.keys is not None:
            if len(packed) < _NONCE:
                raise _damaged(path)
            packed = archive.keys.open_chunk(packed)
        known = self._hashes[chunk * _HASH_SIZE : (chunk + 1) * _HASH_SIZE]
        if not hmac.compare_digest(archive.chunk_hash(packed), known):
            raise _damaged(path)
        content = unpacked(archive.codec, packed, length, path.name)
        if len(content) != length:
            raise _damaged(path)
        return content


def _damaged(path: Path) -> SourceError:
    place = "/".join(path.parts[-4:])
    return SourceError(f"chunk {place} of the archive is damaged", obj=str(path))


class FrozenWyng:
    """A volume at one session, as a backup reads it."""

    def __init__(self, volume: VolumeAtSessions, session: WyngSession) -> None:
        self._volume = volume
        self._session = session
        self._chunk_size = volume.archive.chunk_size

    @property
    def size(self) -> int:
        """Bytes."""
        return self._session.size

    @property
    def checkpoint(self) -> str:
        """The session's name."""
        return self._session.name

    def consistency(self) -> Consistency:
        """UNKNOWN: wyng does not say whether the volume was in use."""
        return Consistency.UNKNOWN

    def check(self) -> None:
        """Raises SourceError unless every chunk is somewhere."""
        for chunk in range(-(-self.size // self._chunk_size)):
            if self._volume.owner(chunk) == _NONE:
                at = chunk * self._chunk_size
                raise SourceError(f"no session has the chunk at {at} of {self._volume.volume.name}")

    def allocated(self) -> Iterator[Extent]:
        """What is no hole."""
        start = 0
        chunks = -(-self.size // self._chunk_size)
        for chunk in range(chunks + 1):
            if chunk < chunks and self._volume.owner(chunk) != _HOLE:
                continue
            if start < chunk:
                yield Extent(start * self._chunk_size, min(chunk * self._chunk_size, self.size))
            start = chunk + 1

    def delta_since(self, base: str, grain: int) -> Delta:
        """What the manifests after the base name."""
        base_size = self._volume.size_at(base)
        changed = self._volume.changed(base, self._session, grain)
        return Delta.bounded(grain, base_size, self.size, changed, ChunkSet())

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from the chunks it touches."""
        end, position = offset + len(buffer), offset
        if offset < 0 or end > self.size:
            raise SourceError(f"nothing to read beyond the end of {self._volume.volume.name}")
        while position < end:
            chunk = position // self._chunk_size
            start = chunk * self._chunk_size
            length = min(self._chunk_size, self.size - start)
            stop = min(end, start + length)
            view = buffer[position - offset : stop - offset]
            if self._volume.owner(chunk) == _HOLE:
                view[:] = bytes(len(view))
            else:
                view[:] = memoryview(self._volume.read_chunk(chunk, length))[position - start : stop - start]
            position = stop
