"""The listings that one client of a server has under way: pages, sent as fast as the client takes them."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from lamella.base.errors import LamellaError, StoreError
from lamella.stores.pipe import frames
from lamella.stores.pipe.frames import Kind, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lamella.run.pipeline import Crew
    from lamella.stores.base import Entry
    from lamella.stores.pipe.framing import FrameSink
    from lamella.stores.pipe.guarded import GuardedStore

_MAX_LISTINGS = 64


class _Listing:
    """A listing in progress; one job at a time works on it."""

    def __init__(self, entries: Iterator[Entry]) -> None:
        self.entries = entries
        self.credit = frames.CREDIT
        self.cancelled = False
        self.working = True


class Listings:
    """All of them. No thread waits for the client: the crew works on a listing while there is credit for pages."""

    def __init__(self, store: GuardedStore, sink: FrameSink, crew: Crew) -> None:
        self._store = store
        self._sink = sink
        self._crew = crew
        self._mutex = threading.Lock()
        self._listings: dict[int, _Listing] = {}

    def begin(self, request: int, prefix: str) -> None:
        """Send the first pages. Raises ProtocolError."""
        with self._mutex:
            if request in self._listings or len(self._listings) >= _MAX_LISTINGS:
                raise ProtocolError("too many listings at once")
            listing = self._listings[request] = _Listing(iter(()))

        def first() -> None:
            try:
                listing.entries = self._store.list(prefix)
            except LamellaError as error:
                self._listed(request, Kind.ERROR, frames.encode_error(error))
                return
            self._go_on(request, listing)

        self._crew.submit(first)

    def more(self, request: int) -> None:
        """The client has taken a page."""
        with self._mutex:
            listing = self._listings.get(request)
            if listing is None:  # it ended meanwhile
                return
            listing.credit += 1
            work = not listing.working
            listing.working = True
        if work:
            self._crew.submit(lambda: self._go_on(request, listing))

    def cancel(self, request: int) -> None:
        """The client wants no more."""
        with self._mutex:
            listing = self._listings.get(request)
            if listing is None:
                return
            listing.cancelled = True
            work = not listing.working
            listing.working = True
        if work:
            self._crew.submit(lambda: self._go_on(request, listing))

    def _go_on(self, request: int, listing: _Listing) -> None:
        """Send pages as long as the client takes them."""
        while True:
            with self._mutex:
                if not listing.cancelled and not listing.credit:
                    listing.working = False
                    return
                listing.credit -= 1
                cancelled = listing.cancelled
            try:
                page, finished = (b"", True) if cancelled else _page(listing.entries)
                if page:
                    self._sink.frame(Kind.PAGE, request, page)
            except LamellaError as error:
                self._listed(request, Kind.ERROR, frames.encode_error(error))
                return
            except OSError:
                finished = True
            except Exception as error:  # noqa: BLE001 (a fault of this side is still one answer)
                text = f"the far side failed: {type(error).__name__}: {error}"
                self._listed(request, Kind.ERROR, frames.encode_error(StoreError(text)))
                return
            if finished:
                self._listed(request, Kind.DONE, b"")
                return

    def _listed(self, request: int, kind: int, payload: bytes) -> None:
        with self._mutex:
            del self._listings[request]
        with suppress(OSError):
            self._sink.frame(kind, request, payload)


def _page(entries: Iterator[Entry]) -> tuple[bytes, bool]:
    """The next rows, and whether they were the last."""
    page = bytearray()
    for entry in entries:
        page += frames.encode_entry(entry)
        if len(page) > frames.PAGE_BYTES:
            return bytes(page), False
    return bytes(page), True
