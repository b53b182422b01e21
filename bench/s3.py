"""What the S3 store costs beside plain HTTP with one SHA-256 a put: the same bytes to and from the same server.

`python -m bench.s3 serve` is that server: it keeps objects in memory and knows just enough of S3. `--endpoint` names
another one, with keys in the usual AWS variables; the bucket `bench` is made there.
"""

from __future__ import annotations

import http.client
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from typing import Any

from bench.measure import MIB, BenchError, Sample, Series
from bench.report import Target
from lamella.base.errors import UsageError
from lamella.base.trust import Sealed
from lamella.stores.s3.store import S3Store

PACK = 16 * MIB
PACKS = 32
CONNECTIONS = (1, 4)
SHARE_PUT = 0.3
SHARE_GET = 0.2
_KEY = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}


class Objects(BaseHTTPRequestHandler):
    """PUT, HEAD and GET with a range."""

    protocol_version = "HTTP/1.1"
    kept: dict[str, bytes] = {}  # noqa: RUF012 - one server, one process

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("If-None-Match") == "*" and self.path in self.kept:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        self.kept[self.path] = body
        self._answer(200, b"")

    def do_HEAD(self) -> None:
        self._answer(200 if self.path in self.kept else 404, b"")

    def do_GET(self) -> None:
        body = self.kept.get(self.path)
        if body is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        unit, _, span = self.headers.get("Range", "").partition("=")
        if unit != "bytes":
            self._answer(200, body)
            return
        first, _, last = span.partition("-")
        part = memoryview(body)[int(first) : int(last) + 1]
        self._answer(206, part, f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}")

    def _answer(self, status: int, body: bytes | memoryview, span: str = "") -> None:
        self.send_response_only(status)
        self.send_header("ETag", '"bench"')
        if span:
            self.send_header("Content-Range", span)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def serve() -> None:
    """Serve on a free port, print it, and go on until killed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Objects)
    print(server.server_port, flush=True)
    server.serve_forever()


@contextmanager
def _server() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-m", "bench.s3", "serve"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def _there(endpoint: str) -> Iterator[str]:
    """A server that runs already."""
    yield endpoint


def measure(repeats: int, endpoint: str | None = None) -> dict[str, Series]:
    """Packs up and down with one connection and with four; the series of one step by `step/program/connections`."""
    series: dict[str, Series] = {}
    content = Sealed(os.urandom(PACK))
    environment = {**_KEY, **{name: os.environ[name] for name in _KEY if endpoint and name in os.environ}}
    for number, connections in itertools.product(range(repeats), CONNECTIONS):
        with _there(endpoint) if endpoint else _server() as url, ExitStack() as opened:
            try:
                folder = f"{number}-{connections}-{os.getpid()}"
                store = S3Store.open(f"//bench/{folder}?endpoint={url}", environment=environment)
            except UsageError as error:
                raise BenchError(f"{error.message}; {error.hint}") from error
            opened.callback(store.close)
            plain = [_Plain(url, f"{folder}-plain", environment) for _ in range(connections)]
            for one in plain:
                opened.callback(one.close)
            plain[0].make_bucket()
            store.put("first", Sealed(b"every session begins with something small"))
            # Beside the same work: an upload is hashed once, a download is not.
            steps: dict[str, Callable[[int, int], object]] = {
                "put/plain HTTP": lambda line, one, plain=plain: plain[line].put(one, content),  # type: ignore[misc]
                "put/S3 store": lambda _, one, store=store: store.put(f"p/{one}", content),  # type: ignore[misc]
                "get/plain HTTP": lambda line, one, plain=plain: plain[line].get(one),  # type: ignore[misc]
                "get/S3 store": lambda _, one, store=store: store.get(f"p/{one}", 0, PACK),  # type: ignore[misc]
            }
            for key, step in steps.items():
                found = series.setdefault(f"{key}/{connections}", Series())
                found.samples.append(_timed(step, connections))
    return series


class _Plain:
    """A connection of the standard library. Requests are signed, and the hash of what is put with them."""

    def __init__(self, url: str, folder: str, environment: Mapping[str, str]) -> None:
        botocore: Any = import_module("lamella.stores.s3.client").botocore  # the store's own
        self._url, self._folder = url, folder
        self._line = http.client.HTTPConnection(url.removeprefix("http://"))
        key = botocore.credentials.Credentials(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
        self._sign: Any = botocore.auth.S3SigV4Auth(key, "s3", environment["AWS_REGION"])
        self._request: Any = botocore.awsrequest.AWSRequest

    def close(self) -> None:
        self._line.close()

    def make_bucket(self) -> None:
        self._asked("PUT", "/bench", b"")

    def put(self, number: int, content: bytes) -> bytes:
        return self._asked("PUT", f"/bench/{self._folder}/{number}", content)

    def get(self, number: int) -> bytes:
        found = self._asked("GET", f"/bench/{self._folder}/{number}")
        if len(found) != PACK:
            raise BenchError(f"the server gave {len(found)} bytes")
        return found

    def _asked(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = self._request(method, self._url + path, data=body)
        self._sign.add_auth(request)
        self._line.request(method, path, body, dict(request.headers))
        answer = self._line.getresponse()
        found = answer.read()
        if answer.status >= 400 and answer.status != 409:  # the bucket is there
            raise BenchError(f"{method} {path}: {answer.status} {found[:300]!r}")
        return found


def _timed(step: Callable[[int, int], object], connections: int) -> Sample:
    wall, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(connections) as pool:
        for done in [pool.submit(_each, step, line, connections) for line in range(connections)]:
            done.result()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu, 0)


def _each(step: Callable[[int, int], object], line: int, connections: int) -> None:
    for number in range(line, PACKS, connections):
        step(line, number)


def targets(series: dict[str, Series]) -> Iterator[Target]:
    """Ratios within this run."""
    for (step, bound), connections in itertools.product((("put", SHARE_PUT), ("get", SHARE_GET)), CONNECTIONS):
        plain, ours = series[f"{step}/plain HTTP/{connections}"], series[f"{step}/S3 store/{connections}"]
        speeds = ", ".join(f"{PACKS * PACK / MIB / one.wall:.0f} MiB/s" for one in (ours, plain))
        cpu = ", ".join(f"{one.cpu * (1 << 30) / (PACKS * PACK):.2f}" for one in (ours, plain))
        share = plain.wall / ours.wall
        text = f"{share:.0%} of plain HTTP ({speeds}; CPU seconds a GiB {cpu})"
        lines = f"{connections} connection{'s' if connections > 1 else ''}"
        yield Target(f"S3 {step}, {PACK // MIB} MiB packs, {lines}", text, f"{bound:.0%}", share >= bound)


if __name__ == "__main__":
    serve()
