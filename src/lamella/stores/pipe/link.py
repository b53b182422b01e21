"""One connection to a server: the program that leads there, the thread that reads from it, requests on their way."""

from __future__ import annotations

import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from lamella.base.errors import LamellaError, StoreError, StoreRefused, StoreUnavailable
from lamella.run.beside import Beside
from lamella.run.spawn import Child
from lamella.stores.base import Abilities, Entry
from lamella.stores.pipe import frames
from lamella.stores.pipe.frames import Frame, FrameSink, FrameSource, Hello, ProtocolError, decode_page

STALLED_SECONDS = 900.0
"""A single request may take so long, such as a `sync` of a slow disk, or an object over a slow link."""
IDLE_SECONDS = 120.0
"""A request that writes nothing may take so long without anything coming of it, however alive the far side seems."""
_END_SECONDS = 10.0
_CAUSE_SECONDS = 2.0
_POLL_SECONDS = 1.0
SHARED_SECONDS = 20.0
"""A connection that another program keeps open needs nobody's password: a far side starts to answer in less."""
_SHOWN_CHARACTERS = 300
_NOT_THERE = {126, 127}
"""The words of shells about a program that cannot be run, or is not there."""


@dataclass(frozen=True, slots=True)
class Route:
    """The way to reach a server."""

    argv: tuple[str, ...]
    boot: bytes = b""
    """The packed agent for a far side that may have no Lamella; empty: there is one."""
    terminal: bool = False
    """The program may ask a person for a password."""
    refusals: tuple[str, ...] = ()
    """The program's words where trying again makes no sense."""
    connect_seconds: float = 60.0
    """Until the greeting is answered."""
    distant: bool = False
    """As `Abilities.distant`; and the program is ended at once when the store is closed."""
    again: tuple[str, ...] = ()
    """The program for every further connection, which uses nothing that an earlier one may have left behind."""
    shares: Callable[[], bool] | None = None
    """Whether the program goes over a connection that another program keeps: asked where nothing comes for long."""

    def anew(self) -> Route:
        """The way around everything that may be stuck."""
        return replace(self, argv=self.again or self.argv, shares=None)


class Stuck(StoreUnavailable):
    """The connection goes over another one, which does not answer; a connection of its own may."""


class Call:
    """One request and its answer. The reading thread fills it, the calling thread waits for it."""

    def __init__(self, obj: str, *, data_bytes: int = 0, listing: bool = False, writes: bool = False) -> None:
        self.obj = obj
        self._idle_seconds = STALLED_SECONDS if writes else IDLE_SECONDS
        self._came = 0
        self.number = 0
        self.round = 0
        self.begun = time.monotonic()
        self.abandoned = False
        self._changed = threading.Condition()
        self._room = data_bytes
        self._listing = listing
        self._pieces: list[bytearray] = []
        self._pages: deque[list[Entry]] = deque()
        self._credit = frames.CREDIT
        self._last = ""
        self._answer: bytes | LamellaError | None = None

    # -- the reading thread -------------------------------------------------------------------------------------------

    def expects(self, kind: int, length: int) -> None:
        """Raises ProtocolError if no such frame can be part of the answer; asked before the payload is read."""
        if kind == Frame.DATA and 0 < length <= self._room:
            self._room -= length
        elif not (kind in {Frame.DONE, Frame.ERROR} or (kind == Frame.PAGE and self._listing and length)):
            raise ProtocolError("an answer that nobody asked for")

    def take(self, kind: int, payload: bytearray) -> None:
        """Keep a part of the answer that does not end it."""
        self._came += 1
        if kind == Frame.DATA:
            self._pieces.append(payload)
            return
        page = decode_page(bytes(payload))
        with self._changed:
            self._credit -= 1
            if self._credit < 0:
                raise ProtocolError("a page of a listing that nobody asked for")
            for entry in page:
                if entry.name <= self._last:
                    raise ProtocolError("a listing whose names do not ascend")
                self._last = entry.name
            if not self.abandoned:
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
            if not self._comes(lambda: self._answer is not None):
                raise StoreUnavailable("the far side did not answer a request in time", obj=self.obj)
        return self._outcome()

    def data(self) -> bytes:
        """Wait for the answer and return the bytes that came with it."""
        self.result()
        return bytes(self._pieces[0]) if len(self._pieces) == 1 else b"".join(self._pieces)

    def page(self) -> list[Entry] | None:
        """Wait for the next page of a listing; None after the last one. Raises as `result` does."""
        with self._changed:
            if not self._comes(lambda: bool(self._pages) or self._answer is not None):
                raise StoreUnavailable("the far side did not continue a listing in time", obj=self.obj)
            if self._pages:
                self._credit += 1  # before the far side is told
                return self._pages.popleft()
        self._outcome()
        return None

    def _comes(self, wanted: Callable[[], bool]) -> bool:
        """Wait for it; False if it takes too long, or nothing at all comes for too long."""
        end, came = time.monotonic() + STALLED_SECONDS, -1
        while came != self._came and (left := end - time.monotonic()) > 0:
            came = self._came
            if self._changed.wait_for(wanted, min(left, self._idle_seconds)):
                return True
        return wanted()

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


def _last_words(said: str) -> tuple[str, bool]:
    """The end of what the program said, cut between words; and whether our own part failed over there."""
    failed = "Traceback (most recent call last)" in said
    end = said.rpartition("; ")[2] if failed else said
    if len(end) > _SHOWN_CHARACTERS:
        end = f"... {end[-_SHOWN_CHARACTERS:].partition(' ')[2]}"
    return end, failed


class Waits:
    """Counts consecutive round trips: a request sent after an answer arrived begins a new one."""

    def __init__(self) -> None:
        self.rounds = 0

    def sent(self, call: Call) -> None:
        """A request is on its way."""
        call.round = self.rounds + 1

    def answered(self, call: Call) -> None:
        """A caller continues with an answer."""
        self.rounds = max(self.rounds, call.round)


class Link:
    """A connection. The first fault ends it, and every pending request fails with it."""

    def __init__(
        self, route: Route, hello: Hello, obj: str, waits: Waits, ahead: Callable[[Link], None] = lambda link: None
    ) -> None:
        """Connect and greet; `ahead` sends what shall travel with the greeting.

        Raises what the server reports; StoreUnavailable, StoreError.
        """
        self._obj = obj
        self._route = route
        self._waits = waits
        self._mutex = threading.Lock()
        self._calls: dict[int, Call] = {}
        self._number = 0
        self._failure: LamellaError | None = None
        self._stop = False
        self._patience = route.connect_seconds
        self._shares = route.shares
        self._heard = self._said = self._ticked = time.monotonic()
        self._frames_seen = 0
        self._sending = threading.Lock()
        self._child = Child(route.argv, terminal=route.terminal, error=StoreUnavailable)
        self._poll = select.poll()
        self._poll.register(self._child.stdout, select.POLLIN)
        self._poll.register(self._child.stderr, select.POLLIN)
        self._source = FrameSource(self._child.stdout, frames.SERVER_LIMITS, self._wait_to_read)
        self._sink = FrameSink(self._child.stdin)
        self._reader = Beside(self._read, "lamella-pipe")
        try:
            self._written(lambda: self._sink.raw(route.boot + frames.CLIENT_MAGIC))
            call = self.ask(Frame.HELLO, hello.encode(), Call(obj))
            ahead(self)
            self.abilities: Abilities = self._welcome(call)
        except BaseException:
            self.close()
            raise
        self._patience, self._shares = frames.SILENCE_SECONDS, None

    def _welcome(self, call: Call) -> Abilities:
        try:
            return frames.decode_welcome(self.answer(call))
        except ProtocolError as error:
            raise StoreError(f"not a server that can be used: {error}", obj=self._obj) from error

    @property
    def failed(self) -> bool:
        """Whether the connection has ended."""
        return self._failure is not None

    # -- asking -------------------------------------------------------------------------------------------------------

    def ask(self, kind: int, payload: bytes, call: Call) -> Call:
        """Send a request; the answer comes to `call`. Raises StoreUnavailable, StoreError when the connection ended."""
        self._register(call)
        self._written(lambda: self._sink.frame(kind, call.number, payload))
        return call

    def send(self, name: str, content: bytes, call: Call, *, durable: bool) -> Call:
        """Send an object; others' requests pass between its pieces, other objects wait until it is sent."""
        head = frames.PUT.pack(len(content), durable) + name.encode("ascii")
        view = memoryview(content)
        with self._sending:
            self._register(call)
            try:
                self._written(lambda: self._sink.frame(Frame.PUT, call.number, head))
                for at in range(0, len(view), frames.PIECE):
                    self._send_piece(call, view[at : at + frames.PIECE])
            except BaseException:
                # What was announced will never come: nothing that follows would be understood.
                self._fail(StoreUnavailable("sending an object was interrupted", obj=self._obj))
                raise
        return call

    def _send_piece(self, call: Call, piece: memoryview) -> None:
        self._written(lambda: self._sink.frame(Frame.PIECE, call.number, piece))

    def answer(self, call: Call) -> bytes:
        """Wait for the answer to a call. Raises what the far side reports, StoreUnavailable, StoreError."""
        with self._judged(call):
            return call.result()

    def data(self, call: Call) -> bytes:
        """Wait for the answer to a call and return the bytes that came with it. Raises as `answer` does."""
        with self._judged(call):
            return call.data()

    def page(self, call: Call) -> list[Entry] | None:
        """Wait for the next page of a listing, None after the last one. Raises as `answer` does."""
        with self._judged(call):
            page = call.page()
        if page is not None:
            self._written(lambda: self._sink.frame(Frame.MORE, call.number))
        return page

    def drop(self, call: Call) -> None:
        """Take no more of a listing."""
        call.abandoned = True
        if not call.answered:
            with suppress(LamellaError):
                self._written(lambda: self._sink.frame(Frame.CANCEL, call.number))

    @contextmanager
    def _judged(self, call: Call) -> Iterator[None]:
        """A far side that is there and does not answer is as good as gone."""
        try:
            yield
        except StoreUnavailable as error:
            if not call.answered:
                self._fail(error)
            raise
        finally:
            self._waits.answered(call)

    def _register(self, call: Call) -> None:
        with self._mutex:
            if self._failure is not None:
                raise self._reason()
            self._number = call.number = self._number + 1
            self._calls[call.number] = call
        self._waits.sent(call)

    def _written(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            # The program has ended; the reading thread is about to find out why.
            if not self._reader.join(_CAUSE_SECONDS):
                self._fail(StoreUnavailable(f"cannot send: {error.strerror}", obj=self._obj))
            raise self._reason() from None

    def _reason(self) -> LamellaError:
        error = self._failure or StoreUnavailable("the connection has ended", obj=self._obj)
        return type(error)(error.message, obj=error.obj, hint=error.hint)

    # -- the reading thread -------------------------------------------------------------------------------------------

    def _read(self) -> None:
        failure: LamellaError
        try:
            self._check_magic()
            while True:
                self._take_frame()
        except EOFError:
            failure = self._end_of_program()
        except ProtocolError as error:
            failure = StoreError(f"the far side does not keep to the protocol: {error}", obj=self._obj)
        except LamellaError as error:
            failure = error
        except TimeoutError as error:
            failure = StoreUnavailable(str(error), obj=self._obj)
        except OSError as error:
            failure = StoreUnavailable(f"the connection failed: {error.strerror}", obj=self._obj)
        except Exception as error:  # noqa: BLE001 (whatever it is, the waiting threads must hear of it)
            failure = StoreError(f"reading failed: {type(error).__name__}: {error}", obj=self._obj)
        self._fail(failure)

    def _check_magic(self) -> None:
        magic = bytes(self._source.exactly(len(frames.SERVER_MAGIC)))
        if magic != frames.SERVER_MAGIC:
            said = frames.quoted(magic + self._source.rest())
            text = f"it does not answer as a server of Lamella, but {said}"
            raise StoreError(text, obj=self._obj, hint="does a login script there print something?")

    def _take_frame(self) -> None:
        length, kind, number = self._source.header()
        if kind == Frame.TOCK:
            return
        with self._mutex:
            call = self._calls.get(number)
        if call is None:
            if kind == Frame.ERROR and number == 0:  # the last words of a server that gives up
                raise frames.decode_error(bytes(self._source.exactly(length)), self._obj)
            raise ProtocolError("an answer that nobody asked for")
        call.expects(kind, length)
        payload = self._source.exactly(length)
        if kind in {Frame.DATA, Frame.PAGE}:
            call.take(kind, payload)
            return
        answer = bytes(payload) if kind == Frame.DONE else frames.decode_error(bytes(payload), call.obj)
        with self._mutex:
            del self._calls[number]
        call.finish(answer)

    def _wait_to_read(self) -> None:
        while True:
            readable = [descriptor for descriptor, _ in self._poll.poll(_POLL_SECONDS * 1000)]
            if self._child.stderr in readable and not self._child.drain_stderr():
                self._poll.unregister(self._child.stderr)
            if self._child.stdout in readable:
                self._heard = time.monotonic()
                return
            self._watch(time.monotonic())

    def _watch(self, now: float) -> None:
        """Say that this side is alive; raise when the other side seems not to be."""
        if self._stop:
            raise EOFError
        with self._mutex:
            since = min((call.begun for call in self._calls.values()), default=now)
        if self._ticked > self._heard:
            since = min(since, self._ticked)
        silent = now - max(self._heard, since)
        if silent > self._patience:
            raise TimeoutError(f"no answer for {self._patience:g} seconds")
        if self._shares is not None and silent > SHARED_SECONDS:
            shares, self._shares = self._shares, None
            if shares():
                raise Stuck(f"no answer for {silent:.0f} seconds over the connection that is shared", obj=self._obj)
        if self._sink.frames != self._frames_seen:
            self._frames_seen, self._said = self._sink.frames, now
        elif now - self._said > frames.TICK_SECONDS:
            self._sink.frame_unless_busy(Frame.TICK)
            if self._ticked <= self._heard:  # the first one that is not answered
                self._ticked = now

    def _end_of_program(self) -> LamellaError:
        status = self._child.wait(_CAUSE_SECONDS)
        self._child.drain_stderr()
        said, script = _last_words(self._child.said())
        how = "ended" if status is None or not status else f"ended with status {status}"
        text = f"{self._child.name} {how}" + (f": {said}" if said else " without a message")
        if status in _NOT_THERE and self._route.boot:
            return StoreRefused(text, obj=self._obj, hint="the far side needs python3 (3.8 or newer), or lamella")
        if any(phrase in said for phrase in self._route.refusals):
            return StoreRefused(text, obj=self._obj)
        hint = "does a login script there read its standard input?" if script else ""
        return StoreUnavailable(text, obj=self._obj, hint=hint)

    # -- ending -------------------------------------------------------------------------------------------------------

    def _fail(self, error: LamellaError) -> None:
        with self._mutex:
            if self._failure is None:
                self._failure = error
            calls, self._calls = list(self._calls.values()), {}
            reason = self._failure
        if not self._stop:
            self._child.kill()
        for call in calls:
            call.finish(reason)

    def close(self) -> None:
        """End the connection and the program."""
        self._stop = True
        self._fail(StoreError("the store is closed", obj=self._obj))
        if not self._sink.shut(_CAUSE_SECONDS):
            self._child.kill()
            self._sink.shut(_END_SECONDS)
        self._child.close_stdin()
        if self._route.distant:
            self._child.terminate()
        if not self._reader.join(_END_SECONDS):
            self._child.kill()
            self._reader.join(_END_SECONDS)
        self._child.end(_END_SECONDS)
