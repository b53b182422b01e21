"""What a client asks for before anyone wants it, in the same flight as something that is waited for anyway.

Opening a repository asks for its marker, then for its key slots, then for the lock, then for two listings: one round
trip each, if nobody thinks ahead. What came is good for some seconds, and for nothing once this side has written.
"""

from __future__ import annotations

import threading
import time

from lamella.base.errors import LamellaError
from lamella.stores.base import Entry
from lamella.stores.pipe import frames
from lamella.stores.pipe.calls import Call
from lamella.stores.pipe.frames import Kind, ProtocolError
from lamella.stores.pipe.link import Link

GOOD_SECONDS = 10.0
_ROOM = frames.SMALL_OBJECTS * (frames.SMALL_BYTES + 256)


class Ahead:
    """What was asked for over one connection, and not used yet."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._small: dict[str, Call] = {}
        self._listings: dict[str, Call] = {}
        self._link: Link | None = None
        self._until = 0.0

    def ask_small(self, link: Link, *prefixes: str) -> None:
        """Ask for all small objects below these prefixes. Raises StoreUnavailable, StoreError."""
        calls = {
            prefix: link.ask(Kind.SMALL, prefix.encode("ascii"), Call(prefix, data_bytes=_ROOM)) for prefix in prefixes
        }
        with self._mutex:
            self._small, self._link, self._until = calls, link, time.monotonic() + GOOD_SECONDS

    def ask_listings(self, link: Link, *prefixes: str) -> None:
        """Ask for listings. Raises StoreUnavailable, StoreError."""
        self.forget()
        calls = {prefix: link.ask(Kind.LIST, prefix.encode("ascii"), Call(prefix, listing=True)) for prefix in prefixes}
        with self._mutex:
            self._listings, self._link, self._until = calls, link, time.monotonic() + GOOD_SECONDS

    def listing(self, link: Link, prefix: str) -> Call | None:
        """A listing that is on its way, for one caller."""
        with self._mutex:
            return self._listings.pop(prefix, None) if self._good(link) else None

    def small(self, link: Link, name: str) -> bytes | None:
        """A small object that came along, None if it must be asked for."""
        return self._below(link, name.rpartition("/")[0]).get(name)

    def entries(self, link: Link, prefix: str) -> list[Entry] | None:
        """The objects below a prefix all of which came along, None if they must be asked for."""
        found = self._below(link, prefix.rstrip("/")) if prefix else {}
        return [Entry(name, len(content)) for name, content in found.items()] or None

    def _below(self, link: Link, folder: str) -> dict[str, bytes]:
        with self._mutex:
            call = self._small.get(f"{folder}/" if folder else "") if self._good(link) else None
        if call is None:
            return {}
        try:
            return frames.decode_small(link.data(call))
        except (LamellaError, ProtocolError):
            return {}

    def _good(self, link: Link) -> bool:
        return link is self._link and time.monotonic() < self._until

    def forget(self) -> None:
        """Nothing of it holds any more."""
        with self._mutex:
            link, listings = self._link, self._listings
            self._small, self._listings, self._link = {}, {}, None
        if link is not None:
            for call in listings.values():
                link.drop(call)
