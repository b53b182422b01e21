"""A store behind a pipe: requests to a server that runs on another computer, in another qube, or beside (docs/PIPE.md).

Many threads use one connection; none waits for another's answer. A connection that breaks fails the requests on their
way with StoreUnavailable and is made again for the next one, so that a repeating wrapper repeats what was not
acknowledged and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from lamella.base.errors import LamellaError, Locked, ObjectNotFound, StoreError, StoreRefused, StoreUnavailable
from lamella.base.names import COMMITS, KEYS, PACKS
from lamella.base.trust import Clear, Sealed
from lamella.stores.base import Abilities, Entry, checked_name, checked_prefix
from lamella.stores.held import Held
from lamella.stores.pipe import frames
from lamella.stores.pipe.frames import Frame, Hello, ProtocolError
from lamella.stores.pipe.link import Call, Link, Route, Waits

_STILL_STORING_SECONDS = (0.0, 0.2, 0.4, 0.8, 1.6, 3.2)
"""A server that lost its client stores what it has received before it ends: pauses before each look for it."""
_OPENING = ("", KEYS)
"""Where opening a repository finds the small objects it reads first: marker and key slots (FORMAT 1)."""
_LISTED = (COMMITS, PACKS)
"""The listings that a holder of the shared lock wants next."""
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
GOOD_SECONDS = 10.0
_ROOM = frames.SMALL_OBJECTS * (frames.SMALL_BYTES + 256)


class Ahead:
    """Requests before anyone waits for their answers, in the same flight as a request that is waited for anyway.

    Opening a repository asks for its marker, then for its key slots, then for the lock, then for two listings: one
    round trip each, if nobody thinks ahead. What came is good for some seconds, and for nothing once this side has
    written.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._small: dict[str, Call] = {}
        self._listings: dict[str, Call] = {}
        self._link: Link | None = None
        self._until = 0.0

    def ask_small(self, link: Link, *prefixes: str) -> None:
        """Ask for all small objects below these prefixes. Raises StoreUnavailable, StoreError."""
        calls = {
            prefix: link.ask(Frame.SMALL, prefix.encode("ascii"), Call(prefix, data_bytes=_ROOM)) for prefix in prefixes
        }
        with self._mutex:
            self._small, self._link, self._until = calls, link, time.monotonic() + GOOD_SECONDS

    def ask_listings(self, link: Link, *prefixes: str) -> None:
        """Ask for listings. Raises StoreUnavailable, StoreError."""
        self.forget()
        calls = {
            prefix: link.ask(Frame.LIST, prefix.encode("ascii"), Call(prefix, listing=True)) for prefix in prefixes
        }
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


class _Lock(Held):
    """A lock, the connection that holds it, and the number of its request."""

    def __init__(self, exclusive: bool, link: Link, number: int) -> None:
        super().__init__()
        self.exclusive = exclusive
        self.link = link
        self.number = number

    @property
    def lost(self) -> bool:
        """True also while the connection is broken and no call has made a new one."""
        return super().lost or self.link.failed


class PipeStore:
    """The contract of a store, over a `Route` to a server. Made by the factories of `ssh`, `qubes` and `local_pipe`."""

    def __init__(self, url: str, route: Route, hello: Hello) -> None:
        """Connect. Raises NoRepository, StoreError as the server reports it, StoreUnavailable."""
        self._url = url
        self._route = route
        self._hello = hello
        self._mutex = threading.Lock()
        self._connecting = threading.Lock()
        self._closed = False
        self._locks: list[_Lock] = []
        # What is not yet known to be durable: the connection that put it, and its size (None: it was removed).
        self._unsynced: dict[str, tuple[Link, int | None]] = {}
        # Sent to the end before a connection broke, and not acknowledged: it may have arrived.
        self._doubtful: set[str] = set()
        self.waits = Waits()
        self.connections = 1
        self._ahead = Ahead()
        self._link = Link(route, hello, url, self.waits, lambda link: self._ahead.ask_small(link, *_OPENING))
        self._abilities = replace(self._link.abilities, distant=route.distant)

    @property
    def url(self) -> str:
        """Where this store is, in the form a user would give it."""
        return self._url

    @property
    def abilities(self) -> Abilities:
        """The server's word at opening."""
        return self._abilities

    # -- objects ------------------------------------------------------------------------------------------------------

    def put(self, name: str, content: Sealed | Clear) -> None:
        """Store an object, all or nothing.

        Raises StoreRefused for an existing name with other bytes, StoreFull, StoreUnavailable; StoreError for a commit
        after the repository's lock was lost (see `lock`).
        """
        self._put(name, content, durable=False)

    def put_durable(self, name: str, content: Sealed | Clear) -> None:
        """`put` and `sync` with one wait."""
        self._settle_elsewhere()
        before = dict(self._unsynced)
        self._put(name, content, durable=True)
        if name in self._unsynced:  # another thread's sync may have settled it already
            self._forget_unsynced({**before, name: self._unsynced[name]})

    def _look_behind(self, link: Link, name: str) -> None:
        """Ask for the chain of a commit, which its publisher lists next; it comes once the commit is durable."""
        if name.startswith(COMMITS):
            self._ahead.ask_listings(link, name.rpartition("/")[0] + "/")

    def _put(self, name: str, content: Sealed | Clear, *, durable: bool) -> None:
        checked_name(name)
        if len(content) > frames.MAX_OBJECT:
            raise StoreRefused(f"an object of more than {frames.MAX_OBJECT} bytes", obj=name)
        if name in self._doubtful and self._has_arrived(name, len(content)):
            return
        call = Call(name, writes=True)
        link = self._announced(name, content, call, durable)
        if durable:
            self._look_behind(link, name)
        try:
            link.answer(call)
        except StoreUnavailable:
            # Other names may be taken by other bytes; and a server that says why it failed has not stored it.
            if link.failed and not durable and name.startswith(PACKS):
                self._doubtful.add(name)
            raise
        self._unsynced[name] = link, len(content)

    def _has_arrived(self, name: str, size: int) -> bool:
        """Whether the server stored an object although the connection broke; then it need not be sent again."""
        for pause in _STILL_STORING_SECONDS:
            time.sleep(pause)
            link = self._connected()
            self._check_lock(name)
            with suppress(ObjectNotFound):
                link.answer(link.ask(Frame.KEEP, frames.SIZE.pack(size) + name.encode("ascii"), Call(name)))
                self._unsynced[name] = link, size
                self._doubtful.discard(name)
                return True
        self._doubtful.discard(name)
        return False

    def _announced(self, name: str, content: Sealed | Clear, call: Call, durable: bool) -> Link:
        """Send an object; returns the connection that carried it.

        A connection that breaks before this object's turn has received nothing of it: the object goes over the next
        connection, and this is not an attempt that failed.
        """
        while True:
            link = self._connected()
            self._check_lock(name)
            self._ahead.forget()
            try:
                link.send(name, content, call, durable=durable)
            except StoreUnavailable:
                if call.number:
                    raise
                continue
            return link

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly `length` bytes from `offset` (all from there when None). Raises ObjectNotFound, StoreError."""
        checked_name(name)
        if offset < 0 or (length is not None and length < 0) or max(offset, length or 0) > frames.TO_THE_END >> 1:
            raise StoreError(f"not a byte range: offset {offset}, length {length}", obj=name)
        wanted = frames.TO_THE_END if length is None else length
        room = frames.MAX_OBJECT if length is None else min(length, frames.MAX_OBJECT)
        link = self._connected()
        small = self._ahead.small(link, name)
        if small is not None and (length is None or offset + length <= len(small)) and offset <= len(small):
            return small[offset:] if length is None else small[offset : offset + length]
        request = frames.GET.pack(offset, wanted) + name.encode("ascii")
        content = link.data(link.ask(Frame.GET, request, Call(name, data_bytes=room)))
        if length is not None and len(content) != length:
            raise StoreError(f"the far side sent {len(content)} bytes instead of {length}", obj=name)
        return content

    def stat(self, name: str) -> int:
        """Return the object's size in bytes. Raises ObjectNotFound."""
        link = self._connected()
        small = self._ahead.small(link, checked_name(name))
        if small is not None:
            return len(small)
        answer = link.answer(link.ask(Frame.STAT, checked_name(name).encode("ascii"), Call(name)))
        if len(answer) != frames.SIZE.size:
            raise StoreError("the far side did not say how large the object is", obj=name)
        size: int = frames.SIZE.unpack(answer)[0]
        return size

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`, as they come. Raises StoreError when the listing is not complete."""
        checked_prefix(prefix)
        self._require_open()
        return self._listed(prefix)

    def _listed(self, prefix: str) -> Iterator[Entry]:
        link = self._connected()
        small = self._ahead.entries(link, prefix)
        if small is not None:
            yield from small
            return
        call = self._ahead.listing(link, prefix)
        if call is None:
            call = link.ask(Frame.LIST, prefix.encode("ascii"), Call(prefix, listing=True))
        try:
            while (page := link.page(call)) is not None:
                for entry in page:
                    if not entry.name.startswith(prefix):
                        raise StoreError("the far side lists what was not asked for", obj=prefix)
                    yield Entry(checked_name(entry.name), entry.size)
        finally:
            link.drop(call)

    def delete(self, name: str) -> None:
        """Remove an object; no error if there is none. Raises StoreRefused, StoreUnavailable."""
        checked_name(name)
        link = self._connected()
        self._check_lock(name)
        self._ahead.forget()
        link.answer(link.ask(Frame.DELETE, name.encode("ascii"), Call(name, writes=True)))
        self._unsynced[name] = link, None

    # -- durability ---------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Return when every earlier put and delete is durable; asks nobody when all are.

        What an earlier connection put is looked at again: its server may have been restarted. Raises StoreError when
        something is gone, StoreUnavailable.
        """
        self._settle_elsewhere()
        before = dict(self._unsynced)
        if not before:
            self._require_open()
            return
        link = self._connected()
        if any(where is not link for where, _ in before.values()):
            return self.sync()  # the connection broke just now
        link.answer(link.ask(Frame.SYNC, b"", Call(self._url, writes=True)))
        self._forget_unsynced(before)

    def _settle_elsewhere(self) -> None:
        """Make the next sync of the present connection cover what earlier connections put or removed."""
        link = self._connected()
        stale = {name: size for name, (where, size) in dict(self._unsynced).items() if where is not link}
        calls: list[tuple[str, Call]] = []
        for name, size in stale.items():
            encoded = name.encode("ascii")
            kind, request = (Frame.DELETE, encoded) if size is None else (Frame.KEEP, frames.SIZE.pack(size) + encoded)
            calls.append((name, link.ask(kind, request, Call(name, writes=True))))
        for name, call in calls:
            try:
                link.answer(call)
            except LamellaError as error:
                if error.retryable:
                    raise
                raise StoreError(
                    f"what was stored before the connection broke is not there: {error}", obj=name
                ) from error
            self._unsynced[name] = link, stale[name]

    def _forget_unsynced(self, settled: dict[str, tuple[Link, int | None]]) -> None:
        for name, state in settled.items():
            if self._unsynced.get(name) is state:
                del self._unsynced[name]

    # -- locks --------------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self, *, exclusive: bool, wait_seconds: float = 0.0) -> Iterator[Held]:
        """Hold the repository's lock, which the server holds for this client and loses with the connection.

        Gives a `Held`. When the connection breaks, the lock is taken again with the next one, and `Held.lost` says so:
        commits, and with an exclusive lock everything that writes, are refused until `Held.renew`, because others may
        have had the exclusive lock meanwhile. Raises Locked when not had within `wait_seconds`.
        """
        lock = self._acquired(exclusive, wait_seconds)
        try:
            yield lock
        finally:
            with self._mutex:
                self._locks.remove(lock)
            if not lock.link.failed and not self._closed:
                with suppress(LamellaError):  # the end of the connection releases it, too
                    call = lock.link.ask(Frame.UNLOCK, lock.number.to_bytes(4, "little"), Call(self._url))
                    if not self._route.distant:  # nobody there can come sooner than the request
                        lock.link.answer(call)

    def _acquired(self, exclusive: bool, wait_seconds: float) -> _Lock:
        deadline = time.monotonic() + wait_seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            link = self._connected()
            try:
                ahead = None if exclusive else lambda link: self._ahead.ask_listings(link, *_LISTED)
                number = _lock_over(link, exclusive, self._url, ahead)
            except Locked:
                self._ahead.forget()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                time.sleep(min(pause, left))
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
                continue
            lock = _Lock(exclusive, link, number)
            with self._mutex:
                self._locks.append(lock)
            return lock

    def _check_lock(self, name: str) -> None:
        """Raises StoreError if a lock was lost that this write relies on."""
        with self._mutex:
            lost = [lock for lock in self._locks if lock.lost]
        if any(lock.exclusive for lock in lost) or (lost and name.startswith(COMMITS)):
            raise StoreError(
                "the connection broke, and with it the repository's lock was lost for a while",
                obj=name,
                hint="run the command again: it uses what is stored already",
            )

    # -- the connection -----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the connection; further calls raise StoreError."""
        self._closed = True
        self._link.close()

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed", obj=self._url)

    def _connected(self) -> Link:
        """The connection; a new one, with the locks taken again, if the last one broke."""
        self._require_open()
        if not self._link.failed:
            return self._link
        with self._connecting:
            self._require_open()
            if self._link.failed:
                self._link.close()
                self._link = self._reconnected()
            return self._link

    def _reconnected(self) -> Link:
        with self._mutex:
            locks = list(self._locks)
        for lock in locks:
            lock.lose()
        hello = self._hello._replace(create=False)
        link = Link(self._route.anew(), hello, self._url, self.waits)
        self.connections += 1
        try:
            if replace(link.abilities, distant=self._route.distant) != self._abilities:
                raise StoreError("the far side offers something else than before the connection broke", obj=self._url)
            for lock in locks:
                lock.number, lock.link = _lock_over(link, lock.exclusive, self._url), link
        except BaseException:
            link.close()
            raise
        return link


def _lock_over(link: Link, exclusive: bool, url: str, ahead: Callable[[Link], None] | None = None) -> int:
    """Take the lock over a connection; `ahead` asks for what may come with the answer. Raises Locked, StoreError."""
    call = link.ask(Frame.LOCK, b"\x01" if exclusive else b"\x00", Call(url))
    if ahead is not None:
        ahead(link)
    link.answer(call)
    return call.number
