"""The far side: finds contents in sealed packs, opens and decodes them, with the keys of one domain and nothing else.

It runs in a disposable qube, sent along by dom0 as one text (`stores/pipe/bundle.py`), and ends when its input does.
What it says is believed by nobody: whoever takes it over can give no content but those it was asked for.
"""

from __future__ import annotations

import resource
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from lamella.base.errors import IntegrityError, LamellaError
from lamella.base.ids import ChunkId, DomainId
from lamella.base.trust import Opened
from lamella.crypto.chunk_id import identifier
from lamella.crypto.derive import DomainKeys
from lamella.crypto.unseal import PackOpener
from lamella.format import compression, container, domain_key
from lamella.format.container import Blob, Header, Kind
from lamella.format.difference import apply
from lamella.qubes.paranoid import words
from lamella.qubes.paranoid.words import Word
from lamella.stores.pipe.frames import FrameSink, FrameSource, ProtocolError

_GAP = 64 * 1024
_MAX_READ = 8 * 1024 * 1024


class _Place(NamedTuple):
    pack: bytes
    header: Header
    blob: Blob


def main(source: int = 0, sink: int = 1) -> None:
    """Serve dom0 on two descriptors until it has gone."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it holds a key
    try:
        FarSide(source, sink).run()
    except (EOFError, BrokenPipeError):
        return


class FarSide:
    """One conversation, as the far side leads it."""

    def __init__(self, source: int, sink: int) -> None:
        self._source = FrameSource(source, words.NEAR_LIMITS, lambda: None)
        self._sink = FrameSink(sink)
        self._request = 0
        self._unread: deque[bytes] = deque()
        self._complete = False
        """No further packs will be named."""
        self._places: dict[tuple[int, bytes], list[_Place]] = {}

    def run(self) -> None:
        """Answer until the input ends. Raises EOFError then, ProtocolError, OSError."""
        exported = domain_key.decode_keys(self._payload(Word.KEY))
        self._keys = DomainKeys(
            DomainId(exported.domain_id), exported.r, exported.id_alg, exported.enc, exported.id_key
        )
        self._say(Word.READY, words.READY.pack(words.VERSION))
        self._hear_of_packs()
        while True:
            length, kind, self._request = self._source.header()
            if kind not in (Word.WANT, Word.MAKE):
                raise ProtocolError("a frame out of turn")
            wanted = bytes(self._source.exactly(length))
            ids = [ChunkId(wanted[at : at + 24]) for at in range(kind == Word.WANT, length, 24)]
            try:
                if kind == Word.WANT:
                    self._answer(Kind(wanted[0]), ids)
                for at in range(0, len(ids) if kind == Word.MAKE else 0, 3):
                    self._say(Word.CONTENT, self._made(*ids[at : at + 3]))
            except LamellaError as error:
                self._say(Word.FAULT, error.message.encode("utf-8", "replace")[: words.FAR_LIMITS[Word.FAULT]])

    # -- talking ------------------------------------------------------------------------------------------------------

    def _say(self, word: int, payload: bytes = b"") -> None:
        self._sink.frame(word, self._request, payload)

    def _payload(self, word: int) -> bytes:
        length, kind, _ = self._source.header()
        if kind != word:
            raise ProtocolError("a frame out of turn")
        return bytes(self._source.exactly(length))

    def _hear_of_packs(self) -> None:
        while names := self._payload(Word.PACKS):
            self._unread.extend(names[at : at + 32] for at in range(0, len(names), 32))

    def _fetched(self, pack: bytes, offset: int, length: int) -> bytes:
        """Bytes of a pack, fewer where it ends before. Raises IntegrityError if they cannot be had."""
        self._say(Word.FETCH, words.FETCH.pack(pack, offset, length))
        answer = self._payload(Word.BYTES)
        if answer[:1] != b"\1":
            raise IntegrityError("a pack that is gone, or cannot be read", obj=pack.hex())
        return answer[1:]

    # -- finding ------------------------------------------------------------------------------------------------------

    def _found(self, kind: Kind, id_: ChunkId, known: int = 0) -> list[_Place]:
        """More than `known` places of a content, as far into the packs as that takes. Raises IntegrityError."""
        while len(self._places.get((kind, id_), ())) <= known:
            if self._unread:
                self._look_into(self._unread.popleft())
            elif self._complete:
                raise IntegrityError(
                    f"{kind.name.lower()} {id_.hex()[:16]} cannot be read: no pack holds it", obj=id_.hex()
                )
            else:
                self._say(Word.MORE)
                self._hear_of_packs()
                self._complete = True
        return self._places[kind, id_]

    def _look_into(self, pack: bytes) -> None:
        """Learn what a pack has. One of another domain does not open, and a damaged one is as good as none."""
        try:
            head = self._fetched(pack, 0, container.FIRST_READ)
            header = container.decode_header(head[: container.HEADER_SIZE], pack.hex())
            rest = container.HEADER_SIZE + header.directory_length - len(head)
            if rest > 0:
                head += self._fetched(pack, len(head), rest)
            content = PackOpener(self._keys, header, pack.hex()).directory(head, header)
            blobs = container.decode_directory(content, header, pack.hex())
        except IntegrityError:
            return
        for blob in blobs:
            self._places.setdefault((blob.kind, blob.id), []).append(_Place(pack, header, blob))

    # -- answering ----------------------------------------------------------------------------------------------------

    def _answer(self, kind: Kind, ids: Sequence[ChunkId]) -> None:
        opened: dict[ChunkId, Opened] = {}
        first = {id_: self._found(kind, id_)[0] for id_ in ids}
        for run in _runs(sorted(first.values(), key=lambda place: (place.pack, place.blob.offset))):
            for place, content in self._opened(run):
                opened[place.blob.id] = content
        for id_ in ids:
            self._say(Word.CONTENT, opened[id_] if id_ in opened else self._elsewhere(kind, id_))

    def _opened(self, run: list[_Place]) -> Iterator[tuple[_Place, Opened]]:
        """The contents of neighbours in one pack, those that are what they should be."""
        start = run[0].blob.offset
        try:
            sealed = self._fetched(run[0].pack, start, _end(run[-1]) - start)
        except IntegrityError:
            return
        opener = PackOpener(self._keys, run[0].header, run[0].pack.hex())
        for place in run:
            blob, name = place.blob, place.pack.hex()
            try:
                body = opener.body(blob, sealed[blob.offset - start : _end(place) - start])
                content = compression.decode(body, blob.content_length, name)
            except IntegrityError:
                continue
            if identifier(self._keys, blob.kind)(content) == blob.id:
                yield place, content

    def _made(self, own: ChunkId, base: ChunkId, difference: ChunkId) -> Opened:
        """A chunk that is stored as a difference, or in full after all (FORMAT 6). Raises IntegrityError."""
        if (Kind.CHUNK, own) in self._places:
            with suppress(IntegrityError):
                return self._elsewhere(Kind.CHUNK, own)
        with suppress(IntegrityError):
            listed = self._elsewhere(Kind.CHUNK, difference)
            made = apply(self._elsewhere(Kind.CHUNK, base), listed, own.hex())
            if identifier(self._keys, Kind.CHUNK)(made) == own:
                return made
        return self._elsewhere(Kind.CHUNK, own)

    def _elsewhere(self, kind: Kind, id_: ChunkId) -> Opened:
        """A content that its first place does not have, from any other. Raises IntegrityError."""
        known = 0
        while True:
            places = self._found(kind, id_, known)
            for place in places[known:]:
                for _, content in self._opened([place]):
                    return content
            known = len(places)


def _end(place: _Place) -> int:
    return place.blob.offset + place.blob.sealed_length


def _runs(places: Sequence[_Place]) -> Iterator[list[_Place]]:
    """Neighbours in one pack that are worth one read."""
    run: list[_Place] = []
    for place in places:
        last = run[-1] if run else place
        apart = place.pack != last.pack or place.blob.offset - _end(last) > _GAP
        if run and (apart or _end(place) - run[0].blob.offset > _MAX_READ):
            yield run
            run = []
        run.append(place)
    if run:
        yield run
