"""The far side of a pipe: one client, one store, no keys (docs/PIPE.md).

One thread reads requests; a small crew answers them, so that a slow disk and a slow link work at the same time. What
the server holds in memory is bounded: one object being received, some received and not yet stored, a few being read,
and a few buffers that wait for the next.
"""

from __future__ import annotations

import select
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from lamella.base.errors import LamellaError, ObjectNotFound, StoreError
from lamella.base.names import MARKER
from lamella.run.beside import Crew
from lamella.stores.base import Entry, range_end
from lamella.stores.pipe import frames
from lamella.stores.pipe.frames import Frame, FrameSink, FrameSource, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from lamella.stores.pipe.guarded import GuardedStore

    Opener = Callable[[frames.Hello], GuardedStore]

_WORKERS = 4
_MAX_REQUESTS = 128
_MAX_HELD_BYTES = 96 << 20
"""Received and not yet stored, beside the object being received."""
_READ_AT_ONCE = 4 << 20
_MAX_LISTINGS = 64
_BUFFERS_KEPT = 4
_LEAST_BYTES, _MOST_BYTES = 1 << 20, 24 << 20
"""Between them lie all packs. What is larger is rare, and a client must not make a server keep it."""


class Server:
    """Serves one client on two descriptors; `run` returns when the client has gone."""

    def __init__(self, source: int, sink: int, opener: Opener, *, patience: float = frames.ABANDONED_SECONDS) -> None:
        self._poll = select.poll()
        self._poll.register(source, select.POLLIN)
        self._patience = patience
        self._source = FrameSource(source, frames.CLIENT_LIMITS, self._wait)
        self._sink = FrameSink(sink)
        self._opener = opener
        self._receiving = False
        self._told = time.monotonic()

    def run(self) -> bool:
        """Serve until the client closes the connection; False if it did not keep to the protocol or went away."""
        request = 0
        try:
            self._sink.raw(frames.SERVER_MAGIC)
            self._greeting()
            length, kind, request = self._source.header()
            if kind != Frame.HELLO:
                raise ProtocolError("a request before the greeting")
            hello = frames.decode_hello(bytes(self._source.exactly(length)))
            store = self._opener(hello)
        except (ProtocolError, OSError, EOFError) as error:
            return self._last_words(error)
        except LamellaError as error:
            with suppress(OSError):
                self._sink.frame(Frame.ERROR, request, frames.encode_error(error))
            return True
        with ExitStack() as stack:
            stack.callback(store.close)
            conversation = Conversation(store, self._source, self._sink)
            self._receiving = True
            stack.callback(conversation.close)
            try:
                self._sink.frame(Frame.DONE, request, frames.encode_welcome(store.abilities))
                conversation.run()
            except (ProtocolError, OSError) as error:
                return self._last_words(error)
            except EOFError:
                pass
        return True

    def _greeting(self) -> None:
        magic = self._source.exactly(len(frames.CLIENT_MAGIC))
        if magic == frames.BOOT_MAGIC:  # the client brings a server along, in case there is none
            try:
                length = int(self._source.exactly(8), 16)
            except ValueError:
                length = -1
            if not 0 <= length <= frames.MAX_BOOT:
                raise ProtocolError("not a client of Lamella")
            self._source.skip(length)
            magic = self._source.exactly(len(frames.CLIENT_MAGIC))
        if magic != frames.CLIENT_MAGIC:
            raise ProtocolError("not a client of Lamella")

    def _last_words(self, error: Exception) -> bool:
        with suppress(OSError):
            self._sink.frame(Frame.ERROR, 0, frames.encode_error(StoreError(str(error) or "the client went away")))
        return False

    def _wait(self) -> None:
        if not self._poll.poll(self._patience * 1000):
            raise TimeoutError(f"the client said nothing for {self._patience:g} seconds")
        # A large object over a slow link: the client hears that it arrives.
        if self._receiving and time.monotonic() - self._told > frames.TICK_SECONDS:
            self._told = time.monotonic()
            self._sink.frame_unless_busy(Frame.TOCK)


class Conversation:
    """The requests of one client after the greeting."""

    def __init__(self, store: GuardedStore, source: FrameSource, sink: FrameSink) -> None:
        self._store = store
        self._source = source
        self._sink = sink
        self._crew = Crew(_WORKERS, _MAX_REQUESTS)
        self._mutex = threading.Lock()
        self._stored = threading.Condition(self._mutex)
        self._held_bytes = 0
        self._buffers = Buffers()
        # Listings that wait until the durable puts sent before them are done; None when there are none of those.
        self._behind: list[Callable[[], None]] | None = None
        self._durable = 0
        self._listings = Listings(store, sink, self._crew)
        self._locks: dict[int, AbstractContextManager[object]] = {}
        self._receiving: tuple[int, str, bool, memoryview, int] | None = None
        self._verbs: dict[int, Callable[[int, bytes], None]] = {
            Frame.GET: self._get,
            Frame.STAT: self._stat,
            Frame.LIST: self._list,
            Frame.MORE: lambda request, _: self._listings.more(request),
            Frame.CANCEL: lambda request, _: self._listings.more(request, cancelled=True),
            Frame.PUT: self._put,
            Frame.DELETE: self._delete,
            Frame.SYNC: self._sync,
            Frame.LOCK: self._lock,
            Frame.UNLOCK: self._unlock,
            Frame.KEEP: self._keep,
            Frame.SMALL: self._small,
        }

    def run(self) -> None:
        """Read requests for ever. Raises EOFError when the client ends the conversation, ProtocolError, OSError."""
        while True:
            length, kind, request = self._source.header()
            if kind == Frame.PIECE:
                self._piece(request, length)
                continue
            payload = bytes(self._source.exactly(length))
            if kind == Frame.TICK:
                self._sink.frame_unless_busy(Frame.TOCK)
            elif kind in self._verbs:
                self._verbs[kind](request, payload)
            else:
                raise ProtocolError("a second greeting")

    def close(self) -> None:
        """Release the locks, and finish what was begun. In this order: an answer may be stuck in a dead link."""
        with self._mutex:
            locks, self._locks = list(self._locks.values()), {}
        for lock in locks:
            with suppress(LamellaError, OSError):
                lock.__exit__(None, None, None)
        self._crew.close()

    # -- answering ----------------------------------------------------------------------------------------------------

    def _answer(self, request: int, work: Callable[[], bytes], after: Callable[[], None] | None = None) -> None:
        """Have `work` done by the crew, and what it returns or raises sent."""

        def job() -> None:
            try:
                reply = Frame.DONE, work()
            except _Cut:
                return
            except Exception as error:  # noqa: BLE001 (a fault of this side is still one answer)
                reply = Frame.ERROR, _failure(error)
            finally:
                if after is not None:
                    after()
            with suppress(OSError):  # the reading side notices that the client has gone
                self._sink.frame(reply[0], request, reply[1])

        self._crew.submit(job)

    # -- requests -----------------------------------------------------------------------------------------------------

    def _get(self, request: int, payload: bytes) -> None:
        offset, length = frames.GET.unpack_from(_whole(payload, frames.GET.size))
        name = _name(payload[frames.GET.size :])

        def work() -> bytes:
            size = self._store.stat(name)
            end = range_end(name, size, offset, None if length == frames.TO_THE_END else length)
            if end - offset > frames.MAX_OBJECT:
                raise StoreError(f"more than {frames.MAX_OBJECT} bytes at once", obj=name)
            for start in range(offset, end, _READ_AT_ONCE):
                piece = memoryview(self._store.get(name, start, min(_READ_AT_ONCE, end - start)))
                try:
                    for at in range(0, len(piece), frames.PIECE):
                        self._sink.frame(Frame.DATA, request, piece[at : at + frames.PIECE])
                except OSError as error:
                    raise _Cut from error
            return b""

        self._answer(request, work)

    def _stat(self, request: int, payload: bytes) -> None:
        name = _name(payload)
        self._answer(request, lambda: frames.SIZE.pack(self._store.stat(name)))

    def _small(self, request: int, payload: bytes) -> None:
        """All objects below a prefix, if they are few and small; nothing otherwise."""
        prefix = _name(payload)

        def work() -> bytes:
            names: list[str] = []
            for entry in self._below(prefix):
                if entry.size > frames.SMALL_BYTES or len(names) >= frames.SMALL_OBJECTS:
                    return b""
                names.append(entry.name)
            content = b"".join(frames.encode_small(name, self._store.get(name)) for name in names)
            for at in range(0, len(content), frames.PIECE):
                self._sink.frame(Frame.DATA, request, content[at : at + frames.PIECE])
            return b""

        self._answer(request, work)

    def _below(self, prefix: str) -> Iterator[Entry]:
        if prefix:
            return self._store.list(prefix)
        # At the top only the marker is asked for, which needs no listing of everything.
        try:
            return iter([Entry(MARKER, self._store.stat(MARKER))])
        except ObjectNotFound:
            return iter(())

    def _keep(self, request: int, payload: bytes) -> None:
        (size,) = frames.SIZE.unpack_from(_whole(payload, frames.SIZE.size))
        name = _name(payload[frames.SIZE.size :])

        def work() -> bytes:
            if self._store.stat(name) != size:
                raise StoreError("an object that was stored has another size now", obj=name)
            self._store.include_in_sync(name)
            return b""

        self._answer(request, work)

    def _delete(self, request: int, payload: bytes) -> None:
        name = _name(payload)

        def work() -> bytes:
            self._store.delete(name)
            return b""

        self._answer(request, work)

    def _sync(self, request: int, payload: bytes) -> None:
        def work() -> bytes:
            self._store.sync()
            return b""

        self._answer(request, work)

    def _lock(self, request: int, payload: bytes) -> None:
        """Answered at once, so that later requests run under the lock; the server never waits for another holder."""
        self._answer_now(request, lambda: self._locked(request, payload == b"\x01"))

    def _locked(self, request: int, exclusive: bool) -> None:
        lock = self._store.lock(exclusive=exclusive)
        lock.__enter__()
        with self._mutex:
            self._locks[request] = lock

    def _unlock(self, request: int, payload: bytes) -> None:
        self._answer_now(request, lambda: self._unlocked(int.from_bytes(payload, "little")))

    def _unlocked(self, number: int) -> None:
        with self._mutex:
            lock = self._locks.pop(number, None)
        if lock is not None:
            lock.__exit__(None, None, None)

    def _answer_now(self, request: int, work: Callable[[], None]) -> None:
        try:
            work()
        except LamellaError as error:
            self._sink.frame(Frame.ERROR, request, frames.encode_error(error))
        else:
            self._sink.frame(Frame.DONE, request)

    def _list(self, request: int, payload: bytes) -> None:
        prefix = _name(payload)
        with self._mutex:
            if self._behind is not None:
                self._behind.append(lambda: self._listings.begin(request, prefix))
                return
        self._listings.begin(request, prefix)

    # -- receiving ----------------------------------------------------------------------------------------------------

    def _put(self, request: int, payload: bytes) -> None:
        size, durable = frames.PUT.unpack_from(_whole(payload, frames.PUT.size))
        name = _name(payload[frames.PUT.size :])
        if self._receiving is not None or size > frames.MAX_OBJECT:
            raise ProtocolError("an object that is too large, or two at once")
        self._receiving = request, name, bool(durable), self._buffers.take(size), 0
        if not size:
            self._received()

    def _piece(self, request: int, length: int) -> None:
        if self._receiving is None or self._receiving[0] != request or not length:
            raise ProtocolError("a piece of no object")
        _, name, durable, content, taken = self._receiving
        if taken + length > len(content):
            raise ProtocolError("more of an object than was announced")
        self._source.into(content[taken : taken + length])
        self._receiving = request, name, durable, content, taken + length
        if taken + length == len(content):
            self._received()

    def _received(self) -> None:
        assert self._receiving is not None
        request, name, durable, content, size = self._receiving
        self._receiving = None
        self._make_room(size)
        if durable:
            with self._mutex:
                self._durable += 1
                self._behind = [] if self._behind is None else self._behind

        def work() -> bytes:
            self._store.put_view(name, content)
            if durable:
                self._store.sync()
            return b""

        def after() -> None:
            self._buffers.give(content)
            with self._mutex:
                self._held_bytes -= size
                self._stored.notify_all()
                self._durable -= durable
                waiting: list[Callable[[], None]] = []
                if durable and not self._durable:
                    waiting, self._behind = self._behind or [], None
            for begin in waiting:
                begin()

        self._answer(request, work, after)

    def _make_room(self, size: int) -> None:
        """Wait until enough is stored to receive more; the client meanwhile hears that this side is alive."""
        with self._stored:
            while self._held_bytes and self._held_bytes + size > _MAX_HELD_BYTES:
                if not self._stored.wait(frames.TICK_SECONDS):
                    self._sink.frame_unless_busy(Frame.TOCK)
            self._held_bytes += size


class Buffers:
    """Memory for objects being received, used again: a fresh 16 MiB costs a page fault for every 4 KiB of it.

    The free buffers are together 96 MiB at most. Any thread may take and give back.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._free: list[bytearray] = []

    def take(self, size: int) -> memoryview:
        """A buffer of exactly `size` bytes, which hold anything."""
        with self._mutex:
            for at, buffer in enumerate(self._free):
                if len(buffer) >= size >= _LEAST_BYTES:
                    del self._free[at]
                    return memoryview(buffer)[:size]
        return memoryview(bytearray(size))

    def give(self, view: memoryview) -> None:
        """Have the memory of a view from `take` back; nobody may look at the view any more."""
        buffer = view.obj
        if isinstance(buffer, bytearray) and _LEAST_BYTES <= len(buffer) <= _MOST_BYTES:
            with self._mutex:
                self._free = [buffer, *self._free][:_BUFFERS_KEPT]


class _Listing:
    """A listing in progress; one job at a time works on it."""

    def __init__(self, entries: Iterator[Entry]) -> None:
        self.entries = entries
        self.credit = frames.CREDIT
        self.cancelled = False
        self.working = True


class Listings:
    """The listings that one client has under way: pages, sent as fast as the client takes them.

    No thread waits for the client: the crew works on a listing while there is credit for pages.
    """

    def __init__(self, store: GuardedStore, sink: FrameSink, crew: Crew) -> None:
        self._store = store
        self._sink = sink
        self._crew = crew
        self._mutex = threading.Lock()
        self._listings: dict[int, _Listing] = {}

    def begin(self, request: int, prefix: str) -> None:
        """Send the first pages. Raises ProtocolError."""

        def entries() -> Iterator[Entry]:
            yield from self._store.list(prefix)

        with self._mutex:
            if request in self._listings or len(self._listings) >= _MAX_LISTINGS:
                raise ProtocolError("too many listings at once")
            listing = self._listings[request] = _Listing(entries())
        self._crew.submit(lambda: self._go_on(request, listing))

    def more(self, request: int, *, cancelled: bool = False) -> None:
        """The client has taken a page, or wants no more."""
        with self._mutex:
            listing = self._listings.get(request)
            if listing is None:  # it ended meanwhile
                return
            listing.credit += 1
            listing.cancelled |= cancelled
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
                    self._sink.frame(Frame.PAGE, request, page)
            except OSError:
                finished = True
            except Exception as error:  # noqa: BLE001 (a fault of this side is still one answer)
                self._listed(request, Frame.ERROR, _failure(error))
                return
            if finished:
                self._listed(request, Frame.DONE, b"")
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


class _Cut(Exception):
    """The client has gone: nobody takes the answer."""


def _failure(error: Exception) -> bytes:
    """The answer that reports an error, or a fault of this side."""
    if not isinstance(error, LamellaError):
        error = StoreError(f"the far side failed: {type(error).__name__}: {error}")
    return frames.encode_error(error)


def _whole(payload: bytes, size: int) -> bytes:
    if len(payload) < size:
        raise ProtocolError("a request that is too short")
    return payload


def _name(payload: bytes) -> str:
    """A name or prefix; one that is not valid is refused by the store."""
    return payload.decode("ascii", "replace")
