"""Requests that are on their way: what may answer them, and what has come so far."""

from __future__ import annotations

import threading
import time
from collections import deque

from lamella.base.errors import LamellaError, StoreUnavailable
from lamella.stores.base import Entry
from lamella.stores.pipe.frames import MAX_LISTED, Kind, ProtocolError, decode_page

STALLED_SECONDS = 900.0
"""A single request may take so long without anything coming of it, such as a `sync` of a slow disk."""


class Call:
    """One request and its answer. The reading thread fills it, the calling thread waits for it."""

    def __init__(self, obj: str, *, data_bytes: int = 0, listing: bool = False) -> None:
        self.obj = obj
        self.number = 0
        self.round = 0
        self.begun = time.monotonic()
        self.abandoned = False
        self._changed = threading.Condition()
        self._room = data_bytes
        self._listing = listing
        self._pieces: list[bytearray] = []
        self._pages: deque[list[Entry]] = deque()
        self._listed = 0
        self._answer: bytes | LamellaError | None = None

    # -- the reading thread -------------------------------------------------------------------------------------------

    def expects(self, kind: int, length: int) -> None:
        """Raises ProtocolError if no such frame can be part of the answer; asked before the payload is read."""
        if kind == Kind.DATA and 0 < length <= self._room:
            self._room -= length
        elif not (kind in {Kind.DONE, Kind.ERROR} or (kind == Kind.PAGE and self._listing and length)):
            raise ProtocolError("an answer that nobody asked for")

    def take(self, kind: int, payload: bytearray) -> None:
        """Keep a part of the answer that does not end it."""
        if kind == Kind.DATA:
            self._pieces.append(payload)
            return
        page = decode_page(bytes(payload))
        self._listed += len(page)
        if self._listed > MAX_LISTED:
            raise ProtocolError(f"a listing of more than {MAX_LISTED} objects")
        if not self.abandoned:
            with self._changed:
                self._pages.append(page)
                self._changed.notify_all()

    def finish(self, answer: bytes | LamellaError) -> None:
        """The last part of the answer, or what made it impossible."""
        with self._changed:
            if self._answer is None:
                self._answer = answer
            self._changed.notify_all()

    # -- the calling thread -------------------------------------------------------------------------------------------

    def result(self) -> bytes:
        """Wait for the answer. Raises what the far side reports, StoreUnavailable."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._answer is not None, STALLED_SECONDS):
                raise StoreUnavailable("the far side did not answer a request in time", obj=self.obj)
        return self._outcome()

    def data(self) -> bytes:
        """Wait for the answer and return the bytes that came with it."""
        self.result()
        return bytes(self._pieces[0]) if len(self._pieces) == 1 else b"".join(self._pieces)

    def page(self) -> list[Entry] | None:
        """Wait for the next page of a listing; None after the last one. Raises as `result` does."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._pages or self._answer is not None, STALLED_SECONDS):
                raise StoreUnavailable("the far side did not go on with a listing in time", obj=self.obj)
            if self._pages:
                return self._pages.popleft()
        self._outcome()
        return None

    @property
    def answered(self) -> bool:
        """Whether the answer is complete."""
        return self._answer is not None

    def _outcome(self) -> bytes:
        assert self._answer is not None
        if isinstance(self._answer, LamellaError):
            # A new object: several threads may raise the error that ended the connection.
            error = self._answer
            raise type(error)(error.message, obj=self.obj or error.obj, hint=error.hint)
        return self._answer
