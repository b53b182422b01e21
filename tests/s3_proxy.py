"""A proxy of our own before an S3 service: it counts requests, and can be told to fail, lie, cut and forget."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.s3_services import S3Service, free_port

_PASSED_ON = {"connection", "transfer-encoding", "expect"}
_SECONDS = 30


@dataclass
class Answer:
    """What goes back to the client. `declared`: the length the client is told; None for the true one."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    declared: int | None = None


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    method: str
    path: str
    headers: dict[str, str]


Fault = Callable[[Seen, Callable[[], Answer]], Answer | None]
"""Gets the request and a way to pass it on; None closes the connection without an answer."""


def status(code: int, name: str = "InternalError") -> Fault:
    """Answer with an error of S3 and do not pass the request on."""
    body = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>told to</Message></Error>".encode()
    return lambda seen, passed: Answer(code, [("Content-Type", "application/xml")], body)


def hang_up(seen: Seen, passed: Callable[[], Answer]) -> None:
    """Close the connection; the request never arrived."""


def lose_reply(seen: Seen, passed: Callable[[], Answer]) -> None:
    """Pass the request on, then close the connection."""
    passed()


def cut(keep: int) -> Fault:
    """Promise the whole body and send only its beginning."""

    def fault(seen: Seen, passed: Callable[[], Answer]) -> Answer:
        answer = passed()
        return replace(answer, body=answer.body[:keep], declared=len(answer.body))

    return fault


def say(body: bytes) -> Fault:
    """Answer 200 with these bytes."""
    return lambda seen, passed: Answer(200, [("Content-Type", "application/xml")], body)


@dataclass
class Proxy:
    """A running proxy. `faults` strike the next requests whose method is theirs, one after the other."""

    service: S3Service
    port: int
    requests: list[Seen] = field(default_factory=list)
    faults: list[tuple[str, Fault]] = field(default_factory=list)
    dropped_headers: frozenset[str] = frozenset()
    _mutex: Any = field(default_factory=threading.Lock)

    @property
    def through(self) -> S3Service:
        """The service as it is reached through this proxy."""
        return replace(self.service, port=self.port, enforces_conditions="if-none-match" not in self.dropped_headers)

    def count(self) -> Counter[str]:
        """Requests so far by method."""
        with self._mutex:
            return Counter(seen.method for seen in self.requests)

    def forget(self) -> None:
        """Count from zero again."""
        with self._mutex:
            self.requests.clear()

    def taken(self, seen: Seen) -> Fault | None:
        """Note a request; the fault that strikes it, if any."""
        with self._mutex:
            self.requests.append(seen)
            if self.faults and self.faults[0][0] in {seen.method, "*"}:
                return self.faults.pop(0)[1]
            return None


@contextmanager
def proxied(service: S3Service, dropped_headers: frozenset[str] = frozenset()) -> Iterator[Proxy]:
    """Run a proxy before a service."""
    proxy = Proxy(service, free_port(), dropped_headers=dropped_headers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen = Seen(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
            fault = proxy.taken(seen)

            def passed() -> Answer:
                return self.passed_on(seen, body)

            answer = passed() if fault is None else fault(seen, passed)
            if answer is None:
                self.close_connection = True
                return
            self.send_response_only(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            if not any(name.lower() == "content-length" for name, _ in answer.headers):
                declared = len(answer.body) if answer.declared is None else answer.declared
                self.send_header("Content-Length", str(declared))
            self.end_headers()
            if seen.method != "HEAD":
                self.wfile.write(answer.body)
            self.close_connection = answer.declared is not None

        def passed_on(self, seen: Seen, body: bytes) -> Answer:
            without = _PASSED_ON | proxy.dropped_headers
            headers = {name: value for name, value in self.headers.items() if name.lower() not in without}
            upstream = http.client.HTTPConnection("127.0.0.1", service.port, timeout=_SECONDS)
            try:
                upstream.request(seen.method, seen.path, body, headers)
                reply = upstream.getresponse()
                content = reply.read()
                kept = {"connection", "transfer-encoding"} | (set() if seen.method == "HEAD" else {"content-length"})
                rows = [(name, value) for name, value in reply.getheaders() if name.lower() not in kept]
                return Answer(reply.status, rows, content)
            finally:
                upstream.close()

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", proxy.port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join(_SECONDS)
