"""HTTP for one person: bounded requests, each with a deadline, each in a thread of its own, no connection kept.

The standard library reads the request; this module bounds, checks and answers it.
"""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from lamella.cli.ui.admission import PageAdmission, same
from lamella.run.beside import Beside

MOST_BODY = 16 << 10
MOST_CONNECTIONS = 64
REQUEST_SECONDS = 10.0
_ANSWER_SECONDS = 60.0
_FIELDS = 32

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class PageRequest:
    """What was asked for: the parts of the path and the fields, all decoded."""

    posted: bool
    parts: tuple[str, ...]
    fields: Mapping[str, str]


@dataclass(frozen=True)
class PageAnswer:
    """What is sent back."""

    status: int
    body: bytes = b""
    kind: str = "text/html; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


class NotServed(Exception):
    """A request that gets a status and a line, and nothing else."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


Respond = Callable[[PageRequest], PageAnswer]


class PageServer(HTTPServer):
    """Serves a listening socket that somebody else opened and closes."""

    def __init__(self, listener: socket.socket, admission: PageAdmission, respond: Respond) -> None:
        super().__init__(("", 0), Exchange, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.admission = admission
        self.respond = respond
        self._open = 0
        self._lock = Lock()

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection; the name of its other end does not matter."""
        connection, _ = self.socket.accept()
        return connection, ("", 0)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  (as in the standard library)
        """Serve a connection beside the others; there is a bound to how many there may be."""
        with self._lock:
            full = self._open >= MOST_CONNECTIONS
            self._open += not full
        if full:
            self.shutdown_request(request)
            return
        Beside(lambda: self._serve(request), "lamella-ui")

    def _serve(self, connection: socket.socket) -> None:
        try:
            with suppress(OSError, ValueError):  # whoever went away, or took too long
                Exchange(connection, ("", 0), self)
        finally:
            with self._lock:
                self._open -= 1
            self.shutdown_request(connection)


class _InTime(io.RawIOBase):
    """What a connection sends, until a moment: a client that sends a byte now and then does not get more time."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._until = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  (any writable buffer)
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class Exchange(BaseHTTPRequestHandler):
    """One request and its answer."""

    server: PageServer
    server_version = "lamella"
    sys_version = ""
    protocol_version = "HTTP/1.0"
    headers: Message

    def setup(self) -> None:
        """Read with a deadline."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_InTime(self.connection, REQUEST_SECONDS))

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged: an address may hold the token."""

    def do_GET(self) -> None:
        """A page."""
        self._answer(posted=False)

    def do_POST(self) -> None:
        """A deed."""
        self._answer(posted=True)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses, in the same form as our own refusals."""
        self.close_connection = True
        self._send(_refusal(NotServed(int(code), message or "not understood")))

    def _answer(self, *, posted: bool) -> None:
        try:
            answer = self._checked(posted)
        except NotServed as refused:
            answer = _refusal(refused)
        self._send(answer)

    def _checked(self, posted: bool) -> PageAnswer:
        """Raises NotServed unless a page of this server asks, in the session that the token opened."""
        admission, hosts = self.server.admission, self.headers.get_all("Host") or []
        if len(hosts) != 1 or not admission.knows_host(hosts[0]):
            raise NotServed(421, "this server is reached by the address that it printed, and by no other")
        fetch = {name: self.headers.get(f"Sec-Fetch-{name}", "") for name in ("Site", "Mode")}
        if fetch["Site"] == "cross-site" and (posted or fetch["Mode"] != "navigate"):
            raise NotServed(403, "another site's page asked for this")
        split = urlsplit(self.path)
        if not posted and split.path == "/" and (token := _fields(split.query).get("token")) is not None:
            return self._admitted(token)
        if not admission.knows_session(self.headers.get("Cookie", "")):
            raise NotServed(403, "open the address that the terminal shows; each start of lamella ui has a new one")
        fields = self._posted(hosts[0]) if posted else _fields(split.query)
        parts = tuple(unquote(part, errors="surrogateescape") for part in split.path.split("/") if part)
        return self.server.respond(PageRequest(posted, parts, fields))

    def _admitted(self, token: str) -> PageAnswer:
        session = self.server.admission.admit(token)
        if session is None:
            dead = self.server.admission.token_is_dead
            raise NotServed(403, "this address was used already: start lamella ui again" if dead else "a wrong token")
        cookie = f"{self.server.admission.cookie}={session}; HttpOnly; SameSite=Strict; Path=/"
        return PageAnswer(303, headers={"Location": "/", "Set-Cookie": cookie})

    def _posted(self, host: str) -> Mapping[str, str]:
        """The fields of a form of ours. Raises NotServed for those of others."""
        if self.headers.get_all("Origin") != [f"http://{host}"]:
            raise NotServed(403, "another site's page asked for this")
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") is not None or not length.isdecimal():
            raise NotServed(411, "the length of the form is missing")
        if len(length) > 9 or int(length) > MOST_BODY:
            raise NotServed(413, "the form is too large")
        if self.headers.get_content_type() != "application/x-www-form-urlencoded":
            raise NotServed(415, "not a form")
        body = self.rfile.read(int(length))
        fields = _fields(body.decode("ascii", "replace"))
        if len(body) != int(length) or not same(fields.get("seal", ""), self.server.admission.form_seal):
            raise NotServed(403, "the form is not of this session: load its page again")
        return fields

    def _send(self, answer: PageAnswer) -> None:
        self.connection.settimeout(_ANSWER_SECONDS)
        head = {**HEADERS, "Content-Type": answer.kind, "Content-Length": str(len(answer.body)), **answer.headers}
        self.send_response_only(answer.status)
        for name, value in head.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)


_EXACT = "exact-"
"""Begins the name of a field whose value is quoted once more: a page cannot hold every name as it is."""


def _fields(text: str) -> dict[str, str]:
    """The fields of a form; of several with one name the last. Raises NotServed."""
    try:
        found = parse_qs(text, keep_blank_values=True, max_num_fields=_FIELDS, errors="surrogateescape")
    except ValueError:
        raise NotServed(400, "too many fields") from None
    exact = {name.removeprefix(_EXACT): values[-1] for name, values in found.items() if name.startswith(_EXACT)}
    fields = {name: values[-1] for name, values in found.items() if not name.startswith(_EXACT)}
    return fields | {name: unquote(value, errors="surrogateescape") for name, value in exact.items()}


def _refusal(refused: NotServed) -> PageAnswer:
    return PageAnswer(refused.status, f"{refused.why}\n".encode(), "text/plain; charset=utf-8")
