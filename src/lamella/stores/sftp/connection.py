"""One connection to a server of SFTP: the program that leads there, requests on their way, the thread that reads.

Many threads use it at once; requests are sent without waiting for the answers to earlier ones.
"""

from __future__ import annotations

import copy
import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

from lamella.base.errors import LamellaError, StoreError, StoreRefused, StoreUnavailable, printable
from lamella.run.beside import Beside
from lamella.run.spawn import Child
from lamella.stores.pipe.frames import ProtocolError
from lamella.stores.pipe.link import SHARED_SECONDS, Route, Stuck
from lamella.stores.sftp.packets import (
    MAX_HANDLE,
    MAX_PACKET,
    VERSION,
    Fields,
    PacketKind,
    SftpAnswer,
    refusal,
    word,
)

SILENCE_SECONDS = 120.0
"""A server from which nothing comes for so long although something was asked is given up: the time of a slow disk."""
_POLL_SECONDS = 1.0
_CAUSE_SECONDS = 2.0
_END_SECONDS = 10.0
_PIECE = 1 << 18
_SHOWN = 120
_OVERHEAD = 9
"""Bytes of a packet before its text: kind, id, length."""


class Flight:
    """Requests whose answers one thread takes, in the order in which they come."""

    def __init__(self, connection: SftpConnection, obj: str) -> None:
        self._connection = connection
        self._obj = obj
        self._answers: SimpleQueue[tuple[int, SftpAnswer | LamellaError]] = SimpleQueue()
        self.pending = 0

    def ask(self, key: int, kind: int, fields: bytes, room: int = 0) -> None:
        """Send a request; `key` comes with the answer, which may hold `room` bytes of a file. Raises StoreError."""
        self._connection.send(kind, fields, _Asked(self._answers, key, room))
        self.pending += 1

    def take(self) -> tuple[int, SftpAnswer]:
        """Wait for the next answer. Raises StoreUnavailable, StoreError when the connection ended."""
        key, answer = self._answers.get()
        self.pending -= 1
        if isinstance(answer, LamellaError):
            raise copy.copy(answer)  # others may get it, too, each with a traceback of its own
        return key, answer


@dataclass(slots=True)
class _Asked:
    """A request on its route. `answers` None: nobody waits for the answer."""

    answers: SimpleQueue[tuple[int, SftpAnswer | LamellaError]] | None
    key: int = 0
    room: int = 0
    since: float = 0.0

    def give(self, answer: SftpAnswer | LamellaError) -> None:
        if self.answers is not None:
            self.answers.put((self.key, answer))


class SftpConnection:
    """A connection. The first fault ends it, and every request on its way fails with it."""

    def __init__(self, route: Route, obj: str) -> None:
        """Connect. Raises StoreUnavailable, StoreRefused, StoreError."""
        self._route = route
        self._obj = obj
        self._mutex = threading.Lock()
        self._sending = threading.Lock()
        self._asked: dict[int, _Asked] = {}
        self._number = 0
        self._failure: LamellaError | None = None
        self._stop = False
        self._buffer = bytearray()
        self._greeted = False
        self._shares = route.shares
        self._patience = route.connect_seconds
        self._heard = time.monotonic()
        self._child = Child(route.argv, terminal=route.terminal, error=StoreUnavailable)
        self._poll = select.poll()
        self._poll.register(self._child.stdout, select.POLLIN)
        self._poll.register(self._child.stderr, select.POLLIN)
        self._reader = Beside(self._read, "lamella-sftp")
        try:
            self.extensions = self._greet()
        except BaseException:
            self.close()
            raise
        self._greeted, self._patience, self._shares = True, SILENCE_SECONDS, None

    def _greet(self) -> frozenset[str]:
        """The extensions that the server names. The greeting has no id; that of its answer is the version."""
        answers: SimpleQueue[tuple[int, SftpAnswer | LamellaError]] = SimpleQueue()
        with self._mutex:
            self._asked[VERSION] = _Asked(answers, since=time.monotonic())
        self._written(word(5) + bytes([PacketKind.INIT]) + word(VERSION))
        _, answer = answers.get()
        if isinstance(answer, LamellaError):
            raise answer
        with self.judged():
            if answer.kind != PacketKind.VERSION:
                raise ProtocolError("no version comes first")
            return Fields(answer.fields).extensions()

    @property
    def failed(self) -> bool:
        """Whether the connection has ended."""
        return self._failure is not None

    # -- asking -------------------------------------------------------------------------------------------------------

    def call(self, kind: int, fields: bytes, obj: str) -> SftpAnswer:
        """Send one request and wait for its answer. Raises StoreUnavailable, StoreError when the connection ended."""
        flight = Flight(self, obj)
        flight.ask(0, kind, fields)
        return flight.take()[1]

    def handle(self, answer: SftpAnswer, obj: str) -> bytes:
        """The handle in an answer. Raises what the server says instead."""
        with self.judged():
            if answer.kind != PacketKind.HANDLE:
                raise refusal(answer, obj)
            return Fields(answer.fields).text(MAX_HANDLE)

    def post(self, kind: int, fields: bytes) -> None:
        """Send a request whose outcome does not matter."""
        if not self.failed:
            try:
                self.send(kind, fields, _Asked(None))
            except StoreError:
                return

    def send(self, kind: int, fields: bytes, asked: _Asked) -> None:
        """Send a request. Raises StoreUnavailable, StoreError when the connection ended."""
        with self._mutex:
            if self._failure is not None:
                raise self._reason()
            self._number = number = (self._number + 1) & 0xFFFFFFFF
            asked.since = time.monotonic()
            self._asked[number] = asked
        self._written(word(len(fields) + 5) + bytes([kind]) + word(number) + fields)

    def _written(self, packet: bytes) -> None:
        try:
            with self._sending:
                if self._failure is not None:
                    raise self._reason()
                rest = memoryview(packet)
                while rest:
                    rest = rest[os.write(self._child.stdin, rest) :]
        except OSError as error:
            # The program has ended; the reading thread is about to find out why.
            if not self._reader.join(_CAUSE_SECONDS):
                self._fail(StoreUnavailable(f"cannot send: {error.strerror}", obj=self._obj))
            raise self._reason() from None
        except LamellaError:
            raise
        except BaseException:
            # Half a packet may have gone: nothing that follows would be understood.
            self._fail(StoreUnavailable("sending was broken off", obj=self._obj))
            raise

    def _reason(self) -> LamellaError:
        return copy.copy(self._failure or StoreUnavailable("the connection has ended", obj=self._obj))

    @contextmanager
    def judged(self) -> Iterator[None]:
        """A server that does not keep to the protocol is not spoken to any more. Raises StoreError."""
        try:
            yield
        except ProtocolError as error:
            failure = StoreError(f"the far side does not keep to the protocol: {error}", obj=self._obj)
            self._fail(failure)
            raise failure from error

    # -- the reading thread -------------------------------------------------------------------------------------------

    def _read(self) -> None:
        failure: LamellaError
        try:
            while True:
                self._wait_to_read()
                piece = os.read(self._child.stdout, _PIECE)
                if not piece:
                    raise EOFError
                self._buffer += piece
                self._take_packets()
        except EOFError:
            failure = self._end_of_program()
        except ProtocolError as error:
            failure = StoreError(f"the far side does not keep to the protocol: {error}", obj=self._obj)
        except TimeoutError as error:
            failure = StoreUnavailable(str(error), obj=self._obj)
            failure.silent = True
        except OSError as error:
            failure = StoreUnavailable(f"the connection failed: {error.strerror}", obj=self._obj)
        except LamellaError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 (whatever it is, the waiting threads must hear of it)
            failure = StoreError(f"reading failed: {type(error).__name__}: {error}", obj=self._obj)
        self._fail(failure)

    def _wait_to_read(self) -> None:
        while True:
            readable = [descriptor for descriptor, _ in self._poll.poll(_POLL_SECONDS * 1000)]
            if self._child.stderr in readable and not self._child.drain_stderr():
                self._poll.unregister(self._child.stderr)
            if self._child.stdout in readable:
                self._heard = time.monotonic()
                return
            if self._stop:
                raise EOFError
            self._watch(time.monotonic())

    def _watch(self, now: float) -> None:
        """Raise when the server does not seem to be there any more."""
        with self._mutex:
            since = min((asked.since for asked in self._asked.values()), default=now)
        silent = now - max(since, self._heard)
        if silent > self._patience:
            raise TimeoutError(f"no answer for {self._patience:g} seconds")
        if self._shares is not None and silent > SHARED_SECONDS:
            shares, self._shares = self._shares, None
            if shares():
                raise Stuck(f"no answer for {silent:.0f} seconds over the connection that is shared", obj=self._obj)

    def _take_packets(self) -> None:
        at, buffer = 0, self._buffer
        while len(buffer) - at >= 4:
            length = int.from_bytes(buffer[at : at + 4], "big")
            if not 5 <= length <= MAX_PACKET:
                raise self._no_packet()
            if len(buffer) - at < 4 + length:
                break
            number = int.from_bytes(buffer[at + 5 : at + 9], "big")
            self._take(number, SftpAnswer(buffer[at + 4], bytes(buffer[at + 9 : at + 4 + length])))
            at += 4 + length
        del buffer[:at]

    def _no_packet(self) -> Exception:
        if self._greeted:
            return ProtocolError("a packet of an impossible length")
        said = printable(bytes(self._buffer[:_SHOWN]).decode("utf-8", "replace"))
        text = f"it does not answer as a server of SFTP, but says {said!r}"
        return StoreError(text, obj=self._obj, hint="does a login script there print something?")

    def _take(self, number: int, answer: SftpAnswer) -> None:
        with self._mutex:
            asked = self._asked.pop(number, None)
        if asked is None:
            raise ProtocolError("an answer that nobody asked for")
        if answer.kind == PacketKind.DATA and len(answer.fields) > 4 + asked.room:
            raise ProtocolError("more bytes than were asked for")
        asked.give(answer)

    def _end_of_program(self) -> LamellaError:
        status = self._child.wait(_CAUSE_SECONDS)
        self._child.drain_stderr()
        said = self._child.said()
        how = "ended" if status is None or not status else f"ended with status {status}"
        text = f"{self._child.name} {how}" + (f": {said}" if said else " without a word")
        if any(phrase in said for phrase in self._route.refusals):
            return StoreRefused(text, obj=self._obj)
        return StoreUnavailable(text, obj=self._obj)

    # -- ending -------------------------------------------------------------------------------------------------------

    def _fail(self, error: LamellaError) -> None:
        with self._mutex:
            if self._failure is None:
                self._failure = error
            asked, self._asked = list(self._asked.values()), {}
            reason = self._failure
        self._child.kill()
        for one in asked:
            one.give(reason)

    def close(self) -> None:
        """End the connection and the program."""
        self._stop = True
        self._fail(StoreError("the store is closed", obj=self._obj))
        self._reader.join(_END_SECONDS)
        with self._sending:  # whoever still writes sees that the program has ended
            self._child.close_stdin()
        self._child.end(_END_SECONDS)
