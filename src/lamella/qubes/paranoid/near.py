"""The near side: dom0's part of the conversation. Nothing comes out of it that does not have the id it was asked by.

Before a byte of an answer is taken, it is known how long it may be; every wait has an end; and a far side that says
anything else than what it may is given up for good.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from lamella.base.errors import IntegrityError, SourceError, StoreError, StoreUnavailable, printable
from lamella.base.ids import ChunkId
from lamella.base.names import pack_name
from lamella.base.trust import Opened
from lamella.crypto.chunk_id import identifier
from lamella.crypto.derive import DomainKeys
from lamella.format.container import Kind, max_content
from lamella.format.domain_key import ExportedKeys, encode
from lamella.format.node import DeltaChunk
from lamella.qubes.paranoid import words
from lamella.qubes.paranoid.words import Word
from lamella.run.spawn import Child
from lamella.run.waking import Ending
from lamella.stores.base import Store
from lamella.stores.pipe.frames import HEADER, FrameSource, ProtocolError

SILENCE_SECONDS = 120.0
"""So long nothing at all may come from the far side while something is awaited."""
ANSWER_SECONDS = 900.0
"""One answer may take so long, without the time that this side needs to fetch packs."""
_CAUSE_SECONDS = 2.0
_END_SECONDS = 5.0
_LOOK_SECONDS = 0.25
_LIBRARIES = "install python3-cryptography and python3-zstandard in its template"
_FETCHES_A_PACK, _FETCHES_AN_ID = 3, 4

Packs = Callable[[], Iterator[Sequence[bytes]]]
"""Two lists of packs, by their SHA-256: those that probably have it, and all others."""


class NearSide:
    """A conversation with the program `argv`, which leads into a qube. Safe to use from several threads.

    Raises SourceError when the far side cannot be started, ends, is silent, or breaks the rules of the conversation.
    """

    def __init__(  # noqa: PLR0913 - each is another thing, and there is one caller
        self, qube: str, argv: Sequence[str], boot: bytes, keys: DomainKeys, store: Store, packs: Packs, ending: Ending
    ) -> None:
        self._qube, self._keys, self._store, self._ending = qube, keys, store, ending
        self._lists = packs()
        self._named: set[bytes] = set()
        self._turn = threading.Lock()
        self._broken: SourceError | None = None
        self._request = self._allowed = 0
        self._until = time.monotonic() + ANSWER_SECONDS
        self._child = Child(argv, error=SourceError)
        os.set_blocking(self._child.stdin, False)
        self._source = FrameSource(self._child.stdout, words.FAR_LIMITS, self._wait)
        exported = ExportedKeys(keys.id_alg, keys.root, keys.domain_id, keys.enc, keys.id_key)
        try:
            with self._turn:
                self._kept_to(lambda: self._begin(boot, encode(exported, ())))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the conversation."""
        patience = _END_SECONDS if self._broken is None else 0.0
        self._broken = self._broken or self._error("was closed")
        self._child.end(patience)

    def contents(self, kind: Kind, wanted: Mapping[ChunkId, int | None]) -> dict[ChunkId, Opened]:
        """The contents of these ids, each of the length that its place implies, if that implies one.

        Raises IntegrityError if the far side finds none, or none of that length; SourceError as the class.
        """
        found: dict[ChunkId, Opened] = {}
        with self._turn:
            for made in (False, True):
                ids = [id_ for id_ in wanted if isinstance(id_, DeltaChunk) is made]
                for first in range(0, len(ids), words.MOST_WANTED):
                    part = ids[first : first + words.MOST_WANTED]
                    self._kept_to(lambda part=part: found.update(self._answer(kind, part, wanted)))  # type: ignore[misc]
        return found

    # -- the conversation ---------------------------------------------------------------------------------------------

    def _begin(self, boot: bytes, key: bytes) -> None:
        self._write(boot)
        self._say(Word.KEY, key)
        if words.READY.unpack(self._payload(self._next({Word.READY}))) != (words.VERSION,):
            raise ProtocolError("it speaks another version")
        self._name_packs()

    def _answer(
        self, kind: Kind, ids: Sequence[ChunkId], wanted: Mapping[ChunkId, int | None]
    ) -> Iterator[tuple[ChunkId, Opened]]:
        self._request = self._request % 0xFFFFFFFF + 1
        self._until = time.monotonic() + ANSWER_SECONDS
        made = [id_.encoded() for id_ in ids if isinstance(id_, DeltaChunk)]  # all of them, or none
        self._allowed += _FETCHES_AN_ID * (len(ids) + 2 * len(made))
        self._say(Word.MAKE if made else Word.WANT, b"".join(made) or bytes([kind]) + b"".join(ids))
        identify = identifier(self._keys, kind)
        for id_ in ids:
            length = wanted[id_]
            content = self._content(max_content(kind) if length is None else length)
            if identify(content) != id_:
                raise ProtocolError("it sent something else than was requested")
            if length not in (None, len(content)):
                raise IntegrityError("a content whose length is not what its place implies", obj=id_.hex())
            yield id_, Opened(content)

    def _content(self, limit: int) -> bytes:
        """The next content, after everything that the far side needs for it."""
        while True:
            length, word = self._next({Word.CONTENT, Word.FETCH, Word.MORE, Word.FAULT})
            if word == Word.CONTENT and length > limit:
                raise ProtocolError("it sent more than was requested")
            payload = bytes(self._source.exactly(length))
            if word == Word.CONTENT:
                return payload
            if word == Word.FAULT:
                said = printable(payload.decode("utf-8", "replace"))
                hint = _LIBRARIES if "zstd provider" in said else ""
                raise IntegrityError(f"the disposable {self._qube} says: {said}", obj=self._qube, hint=hint)
            if word == Word.MORE:
                self._name_packs()
            else:
                self._fetch(payload)

    def _name_packs(self) -> None:
        names = next(self._lists, None)
        if names is None:
            raise ProtocolError("it asked for more packs than there are")
        self._named.update(names)
        self._allowed += _FETCHES_A_PACK * len(names)
        for first in range(0, len(names), words.MOST_NAMED):
            self._say(Word.PACKS, b"".join(names[first : first + words.MOST_NAMED]))
        self._say(Word.PACKS)

    def _fetch(self, payload: bytes) -> None:
        if len(payload) != words.FETCH.size:
            raise ProtocolError("a request that is too short")
        pack, offset, length = words.FETCH.unpack(payload)
        self._allowed -= 1
        if pack not in self._named or not words.within_a_pack(offset, length) or self._allowed < 0:
            raise ProtocolError("it requested data that it does not need")
        started = time.monotonic()
        sealed = self._sealed(pack_name(pack), offset, length)
        self._until += time.monotonic() - started
        self._say(Word.BYTES, b"\0" if sealed is None else b"\1" + sealed)

    def _sealed(self, name: str, offset: int, length: int) -> bytes | None:
        """Bytes of a pack, which nobody looks into here. Raises StoreUnavailable."""
        try:
            end = min(offset + length, self._store.stat(name)) if not offset else offset + length
            return self._store.get(name, offset, end - offset)
        except StoreUnavailable:
            raise
        except StoreError:
            return None

    # -- what is believed of it ---------------------------------------------------------------------------------------

    def _kept_to(self, talk: Callable[[], object]) -> None:
        """A part of the conversation; whatever ends it early ends all of it."""
        if self._broken is not None:
            raise self._broken
        try:
            talk()
        except ProtocolError as error:
            self._broken = self._error(f"was not believed: {error}")
            raise self._broken from error
        except (EOFError, OSError) as error:
            self._broken = self._error("ended before it had answered", self._cause())
            raise self._broken from error
        except _Overdue as error:
            self._broken = self._error(str(error))
            raise self._broken from error
        except IntegrityError as error:
            self._broken = SourceError(error.message, obj=self._qube, hint=error.hint)
            raise
        except BaseException:
            self._broken = self._error("was interrupted")
            raise

    def _error(self, what: str, said: str = "") -> SourceError:
        hint = _LIBRARIES if "No module named" in said else ""
        message = f"the disposable {self._qube} {what}" + (f": {said}" if said else "")
        return SourceError(message, obj=self._qube, hint=hint)

    def _cause(self) -> str:
        self._child.wait(_CAUSE_SECONDS)
        self._child.drain_stderr()
        return self._child.said()[-300:]

    def _next(self, allowed: set[int]) -> tuple[int, int]:
        length, word, request = self._source.header()
        if word not in allowed or request != self._request:
            raise ProtocolError("it spoke out of turn")
        return length, word

    def _payload(self, head: tuple[int, int]) -> bytes:
        content = bytes(self._source.exactly(head[0]))
        if len(content) != words.READY.size:
            raise ProtocolError("its greeting is malformed")
        return content

    # -- bytes --------------------------------------------------------------------------------------------------------

    def _say(self, word: int, payload: bytes = b"") -> None:
        self._write(HEADER.pack(len(payload), word, self._request) + payload)

    def _write(self, content: bytes) -> None:
        """Write all of it, as fast as the far side takes it. Raises OSError, _Overdue."""
        rest = memoryview(content)
        while rest:
            self._ready(writes=True)
            try:
                rest = rest[os.write(self._child.stdin, rest) :]
            except BlockingIOError:
                continue

    def _wait(self) -> None:
        self._ready(writes=False)

    def _ready(self, *, writes: bool) -> None:
        """Until there is something to read, or room to write. Raises _Overdue."""
        silent = time.monotonic() + SILENCE_SECONDS
        stderr = [self._child.stderr]
        while True:
            left = min(silent, self._until) - time.monotonic()
            if left <= 0:
                raise _Overdue("did not answer in time")
            sources = stderr if writes else [*stderr, self._child.stdout]
            readable, writable, _ = select.select(
                sources, [self._child.stdin] if writes else [], [], min(left, _LOOK_SECONDS)
            )
            if self._child.stderr in readable and not self._child.drain_stderr():
                stderr = []
            if self._ending.came():
                raise _Overdue("was interrupted")
            if writable or self._child.stdout in readable:
                return


class _Overdue(Exception):
    """The far side takes too long."""
