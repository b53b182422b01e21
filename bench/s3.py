"""What the S3 store costs beside plain HTTP: the same bytes to and from the same server, one connection each.

`python -m bench.s3 serve` is that server: it keeps objects in memory and knows just enough of S3.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bench.measure import MIB, BenchError, Sample, Series
from bench.report import Target
from lamella.base.errors import UsageError
from lamella.base.trust import Sealed
from lamella.stores.s3.store import S3Store

PACK = 16 * MIB
PACKS = 32
SHARE_PUT = 0.3
SHARE_GET = 0.2
_KEY = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}


class Objects(BaseHTTPRequestHandler):
    """PUT, HEAD and GET with a range."""

    protocol_version = "HTTP/1.1"
    kept: dict[str, bytes] = {}  # noqa: RUF012 - one server, one process

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.kept[self.path] = body
        self._answer(200, b"")

    def do_HEAD(self) -> None:
        self._answer(200 if self.path in self.kept else 404, b"")

    def do_GET(self) -> None:
        body = self.kept[self.path]
        unit, _, span = self.headers.get("Range", "").partition("=")
        if unit != "bytes":
            self._answer(200, body)
            return
        first, _, last = span.partition("-")
        part = body[int(first) : int(last) + 1]
        self._answer(206, part, f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}")

    def _answer(self, status: int, body: bytes, span: str = "") -> None:
        self.send_response_only(status)
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
def _server() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-m", "bench.s3", "serve"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def measure(repeats: int) -> dict[str, Series]:
    """Packs up and down; the series of one step by `step/program`."""
    series: dict[str, Series] = {}
    content = Sealed(os.urandom(PACK))
    for number in range(repeats):
        with _server() as port:
            try:
                store = S3Store.open(f"//bench/{number}?endpoint=http://127.0.0.1:{port}", environment=_KEY)
            except UsageError as error:
                raise BenchError(f"{error.message}; {error.hint}") from error
            plain = http.client.HTTPConnection("127.0.0.1", port)
            plain.connect()
            steps: dict[str, Callable[[int], object]] = {
                "put/plain HTTP": lambda one, plain=plain: _asked(plain, "PUT", f"/plain/{one}", content),  # type: ignore[misc]
                "put/S3 store": lambda one, store=store: store.put(f"p/{one}", content),  # type: ignore[misc]
                "get/plain HTTP": lambda one, plain=plain: _asked(plain, "GET", f"/plain/{one}", None),  # type: ignore[misc]
                "get/S3 store": lambda one, store=store: store.get(f"p/{one}", 0, PACK),  # type: ignore[misc]
            }
            for key, step in steps.items():
                series.setdefault(key, Series()).samples.append(_timed(step))
            plain.close()
            store.close()
    return series


def _asked(plain: http.client.HTTPConnection, method: str, path: str, body: bytes | None) -> bytes:
    plain.request(method, path, body)
    return plain.getresponse().read()


def _timed(step: Callable[[int], object]) -> Sample:
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(PACKS):
        step(number)
    return Sample(time.perf_counter() - wall, time.process_time() - cpu, 0)


def targets(series: dict[str, Series]) -> Iterator[Target]:
    """Ratios within this run."""
    for step, bound in (("put", SHARE_PUT), ("get", SHARE_GET)):
        plain, ours = series[f"{step}/plain HTTP"].wall, series[f"{step}/S3 store"].wall
        speeds = ", ".join(f"{PACKS * PACK / MIB / wall:.0f} MiB/s" for wall in (ours, plain))
        text = f"{plain / ours:.0%} of plain HTTP ({speeds})"
        yield Target(f"S3 {step}, {PACK // MIB} MiB packs", text, f"{bound:.0%}", plain / ours >= bound)


if __name__ == "__main__":
    serve()
