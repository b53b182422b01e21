"""`lamella ui` in a process of its own, and plain HTTP to it."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

from tests.cli.program import SECONDS, Lamella, environment


class Reply(NamedTuple):
    """What came back."""

    status: int
    text: str
    headers: Mapping[str, str]


@dataclass
class PageServer:
    """A running server: its address with the token, and the session once it is opened."""

    url: str
    process: subprocess.Popen[str]
    path: Path | None = None
    cookie: str = ""
    seal: str = ""
    folder: Path = Path()
    """Where the disk lies that was saved."""

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def connect(self) -> socket.socket:
        """A connection of our own."""
        if self.path is not None:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(self.path))
            return connection
        name, _, port = self.host.rpartition(":")
        return socket.create_connection((name, int(port)), SECONDS)

    def raw(self, sent: bytes) -> bytes:
        """What the server says to these bytes."""
        with self.connect() as connection:
            connection.settimeout(SECONDS)
            connection.sendall(sent)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))

    def ask(self, method: str, place: str, body: str | None = None, /, **headers: str | None) -> Reply:
        """A request as a browser would send it in this session; a header that is None is left out."""
        made: dict[str, str | None] = {"Host": self.host, "Cookie": self.cookie}
        if body is not None:
            made |= {"Origin": f"http://{self.host}", "Content-Type": "application/x-www-form-urlencoded"}
            made["Content-Length"] = str(len(body))
        made |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{method} {place} HTTP/1.1", *(f"{name}: {value}" for name, value in made.items() if value)]
        answer = self.raw("\r\n".join([*lines, "", body or ""]).encode("latin-1"))
        head, _, text = answer.partition(b"\r\n\r\n")
        status, _, rest = head.partition(b"\r\n")
        fields = dict(line.split(": ", 1) for line in rest.decode("latin-1").split("\r\n") if line)
        return Reply(int(status.split()[1]), text.decode(), fields)

    def get(self, place: str, /, **headers: str | None) -> Reply:
        return self.ask("GET", place, **headers)

    def post(self, place: str, fields: Mapping[str, str], /, **headers: str | None) -> Reply:
        return self.ask("POST", place, urlencode({"seal": self.seal, **fields}), **headers)

    def enter(self) -> None:
        """Open the session with the token."""
        split = urlsplit(self.url)
        reply = self.get(f"/?{split.query}")
        assert reply.status == 303, reply
        self.cookie = reply.headers["Set-Cookie"].partition(";")[0]
        self.seal = self.get("/").text.partition('name="seal" value="')[2].partition('"')[0]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end, and wait."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


@contextmanager
def serving(lamella: Lamella, *words: str, path: Path | None = None) -> Iterator[PageServer]:
    """A server until the block is left; it must have ended well."""
    process = subprocess.Popen(
        [*lamella.command, *lamella.options, "ui", *words],
        env=environment(lamella.env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr:
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://"), process.stderr.read()
            yield PageServer(url, process, path)
        finally:
            process.send_signal(signal.SIGTERM)
            code, said = process.wait(SECONDS), process.stderr.read()
        assert code == 0 and "Traceback" not in said, (code, said)
