"""The user's rclone as a program beside this one, asked by its remote control (rclone.org/rc) over the loop-back.

It listens on a port that the kernel chose, with a password made for this run, which no command line shows. It ends when
its standard input does, so it never outlives this process.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import select
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from lamella.base.errors import LamellaError, StoreError, StoreRefused, StoreUnavailable, UsageError, printable
from lamella.run.beside import Beside
from lamella.run.spawn import Child

SILENCE_SECONDS = 240
"""Longest silence of rclone itself; it gives a service up sooner."""
SLOWEST_BYTES_PER_SECOND = 4096
MAX_LISTING = 128 << 20
"""Bytes of an answer about one directory, at most."""
_START_SECONDS = 30.0
_END_SECONDS = 10.0
_SHOWN = 300
_FLAGS = ("--timeout=60s", "--contimeout=20s", "--low-level-retries=3", "--ask-password=false", "--stats=0")
"""A service that does not answer is given up after some minutes; trying again for longer is the retrying store's."""
_BUFFERED = "--streaming-upload-cutoff=20Mi"
"""Objects up to this are put at once, with their size and hash; larger ones, which are rare, in parts."""
_UNTIL_INPUT_ENDS = (
    "read -r RCLONE_RC_PASS && export RCLONE_RC_PASS && exec 3<&0 && "
    '{ { cat <&3 >/dev/null; kill $$; } 2>/dev/null & } && exec "$@" </dev/null 3<&-'
)
_ADDRESS = re.compile(r"http://(127\.0\.0\.1):([0-9]{1,5})/")


class Reply(NamedTuple):
    """An answer: its status, its headers (names in lower case), its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class RcloneRequest(NamedTuple):
    """What is asked; `most`: bytes of the answer, at most."""

    verb: str
    path: str
    body: bytes | Sequence[bytes]
    headers: dict[str, str]
    most: int


class Daemon:
    """A running rclone. Thread-safe: each request has a connection of its own while it lasts."""

    def __init__(self, obj: str) -> None:
        """Start it. Raises UsageError where there is no rclone, StoreUnavailable when it does not start."""
        self._obj = obj
        self._mutex = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._stop = False
        self._ready = threading.Event()
        self._port = 0
        password = os.urandom(24).hex()
        self._authorization = base64.b64encode(f"lamella:{password}".encode()).decode()
        rcd = ("rclone", "rcd", "--rc-addr=127.0.0.1:0", "--rc-serve", "--rc-user=lamella", *_FLAGS, _BUFFERED)
        self._child = Child(("/bin/sh", "-c", _UNTIL_INPUT_ENDS, "rclone", *rcd), error=StoreUnavailable)
        self._reader = Beside(self._drain, "lamella-rclone")
        try:
            os.write(self._child.stdin, password.encode() + b"\n")
            if not self._ready.wait(_START_SECONDS) or not self._port:
                raise self._not_started()
            self._require_password()
        except OSError as error:
            raise self._not_started() from error
        except BaseException:
            self.close()
            raise

    def _drain(self) -> None:
        """Take what rclone writes to standard error, the address first; in a thread of its own."""
        poll = select.poll()
        poll.register(self._child.stderr, select.POLLIN)
        while not self._stop:
            if poll.poll(1000) and not self._child.drain_stderr():
                break
            if not self._port and (found := _ADDRESS.search(self._child.said())):
                self._port = int(found[2])
                self._ready.set()
        self._ready.set()

    def _not_started(self) -> LamellaError:
        status = self._child.wait(0.5)
        said = _last_words(self._child.said())
        if status in {126, 127}:
            hint = "install it with your distribution's packages, then make a remote: rclone config"
            return UsageError("rclone: there is no such program here", obj=self._obj, hint=hint)
        return StoreUnavailable(f"rclone does not start: {said or 'without a word'}", obj=self._obj)

    def _require_password(self) -> None:
        """Raises StoreRefused if rclone answers everybody on this machine, because its configuration says so."""
        if self._exchange(RcloneRequest("POST", "/rc/noop", b"{}", {}, MAX_LISTING)).status != 401:
            raise StoreRefused("rclone answers without a password: unset RCLONE_RC_* variables", obj=self._obj)

    # -- asking -------------------------------------------------------------------------------------------------------

    def call(self, method: str, obj: str, **arguments: object) -> dict[str, Any]:
        """Make a call of the remote control. Raises Failed for what rclone reports, StoreUnavailable."""
        headers = {"Content-Type": "application/json"}
        body = json.dumps(arguments).encode()
        reply = self.ask(RcloneRequest("POST", f"/{method}", body, headers, MAX_LISTING), obj)
        try:
            found = json.loads(reply.body)
        except ValueError as error:
            raise StoreUnavailable("rclone answers no JSON", obj=obj) from error
        if not isinstance(found, dict):
            raise StoreUnavailable("rclone answers something else than was asked for", obj=obj)
        return found

    def ask(self, request: RcloneRequest, obj: str) -> Reply:
        """Make a request. Raises Failed for a status that is an error, StoreUnavailable, StoreError."""
        headers = request.headers | {"Authorization": f"Basic {self._authorization}"}
        try:
            reply = self._exchange(request._replace(headers=headers))
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error, obj) from error
        if reply.status >= 400:
            raise Failed(_reason(reply.body))
        return reply

    def _exchange(self, request: RcloneRequest) -> Reply:
        if self._stop:
            raise StoreError("the store is closed", obj=self._obj)
        with self._mutex:
            connection = self._idle.pop() if self._idle else None
        if connection is not None:
            with suppress(ConnectionError, http.client.HTTPException):  # rclone closes some without a word
                return self._exchanged(connection, request)
        return self._exchanged(http.client.HTTPConnection("127.0.0.1", self._port), request)

    def _exchanged(self, connection: http.client.HTTPConnection, request: RcloneRequest) -> Reply:
        size = int(request.headers.get("Content-Length", 0))
        connection.timeout = SILENCE_SECONDS + size // SLOWEST_BYTES_PER_SECOND
        try:
            if connection.sock is not None:
                connection.sock.settimeout(connection.timeout)
            connection.request(request.verb, request.path, request.body, request.headers)
            answer = connection.getresponse()
            content = answer.read(request.most + 1)
            if len(content) > request.most:
                raise StoreRefused(f"rclone's answer has more than {request.most} bytes", obj=self._obj)
        except BaseException:
            connection.close()
            raise
        with self._mutex:
            self._idle.append(connection)
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, content)

    def _broken(self, error: Exception, obj: str) -> LamellaError:
        if self._stop:
            return StoreError("the store is closed", obj=self._obj)
        if self._child.wait(0) is not None:
            return StoreUnavailable(f"rclone has ended: {_last_words(self._child.said())}", obj=obj)
        how = "does not answer in time" if isinstance(error, TimeoutError) else f"breaks off: {printable(str(error))}"
        failed = StoreUnavailable(f"rclone {how}", obj=obj)
        failed.silent = isinstance(error, TimeoutError)
        return failed

    @property
    def ended(self) -> bool:
        """Whether the program has ended by itself."""
        return self._child.wait(0) is not None

    def close(self) -> None:
        """End the program."""
        self._stop = True
        with self._mutex:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        self._child.close_stdin()
        self._child.wait(_END_SECONDS)
        self._reader.join(_END_SECONDS)
        self._child.end(_END_SECONDS)


class Failed(Exception):
    """What rclone says that went wrong, in its own words."""


def _reason(body: bytes) -> str:
    try:
        found = json.loads(body)
        said = found["error"] if isinstance(found, dict) else found
    except (ValueError, KeyError):
        said = body.decode("utf-8", "replace")
    return printable(str(said))[:_SHOWN]


def _last_words(said: str) -> str:
    return said[-_SHOWN:]
