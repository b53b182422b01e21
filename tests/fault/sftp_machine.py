"""A machine that offers nothing but SFTP, by OpenSSH's own server: its power can go at any request, and it can lie.

What was not synced when the power went may be lost: names whose directory was not synced since, and the bytes of files
that were not. The machine watches the packets to know.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lamella.stores.pipe.link import Route
from lamella.stores.sftp.connection import SftpConnection
from lamella.stores.sftp.packets import FSYNC, HARDLINK, Fields, PacketKind
from lamella.stores.sftp.store import SftpStore
from tests.fault.far_machine import every
from tests.features import require

RELAY = Path(__file__).with_name("relay.py")
_PLACES = "/usr/lib/openssh:/usr/libexec/openssh:/usr/lib/ssh"
CHANGING = {PacketKind.WRITE, PacketKind.EXTENDED, PacketKind.MKDIR, PacketKind.REMOVE, PacketKind.RENAME}
Lie = Callable[[int, int, bytes], list[tuple[int, bytes]]]
"""What is sent to a request of a kind in place of an answer (kind, fields): nothing, or packets (kind, fields)."""
_SECONDS = 20


def server_program() -> str:
    """OpenSSH's server, without the sshd before it."""
    found = shutil.which("sftp-server", path=_PLACES)
    require("sshd", found is not None, "no sftp-server here")
    return str(found)


@dataclass
class Change:
    """A name that was made, or removed: then `kept` is another name of the same file."""

    path: Path
    kept: Path | None = None


class SftpMachine:
    """Serves every connection to its socket. A context manager."""

    def __init__(
        self,
        place: Path,
        *,
        point: int = 0,
        after: bool = False,
        survivors: Callable[[int], frozenset[int]] = every,
        returns: bool = False,
        lie: Lie | None = None,
    ) -> None:
        """The power goes before, or `after`, the `point`-th request that changes something; 0: never."""
        self.root = place / "repo"
        self._aside = place / "aside"
        self._aside.mkdir(parents=True)
        self._socket = place / "s"
        self._point, self._after, self._survivors, self._returns = point, after, survivors, returns
        self.lie = lie
        self.ignored: set[int] = set()
        """Kinds of requests that are answered by "done" and not done."""
        self.asked = 0
        self.requests = 0
        self.cuts = 0
        self.connections = 0
        self._on = True
        self._mutex = threading.RLock()
        self._changes: list[Change] = []
        self._unwritten: set[Path] = set()
        self._live: list[_Served] = []
        self._threads: list[threading.Thread] = []
        self._program = server_program()
        self._server = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> SftpMachine:
        here = os.open(self._socket.parent, os.O_PATH)  # a short name, wherever the test lives
        try:
            self._server.bind(f"/proc/self/fd/{here}/{self._socket.name}")
        finally:
            os.close(here)
        self._server.listen(16)
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        for served in self._live:
            served.end()
        for thread in self._threads:
            thread.join(_SECONDS)
            assert not thread.is_alive()
        self._server.close()

    def connect(self) -> SftpConnection:
        """A connection of its own, through a program that leads here."""
        script = f"cd {self._socket.parent} && exec {sys.executable} -I -S {RELAY} {self._socket.name}"
        return SftpConnection(Route(("/bin/sh", "-c", script), connect_seconds=_SECONDS), "sftp:far")

    def client(self, *, create: bool = True) -> SftpStore:
        """A store that is connected to this machine."""
        return SftpStore("sftp:far", str(self.root).encode(), self.connect, create=create, read_only=False)

    # -- the power ----------------------------------------------------------------------------------------------------

    def met(self, kind: int, *, after: bool) -> bool:
        """Count a request; whether the power has gone with it."""
        with self._mutex:
            self.requests += not after
            if kind not in CHANGING:
                return not self._on
            self.asked += not after
            if self.asked == self._point and after is self._after and not self.cuts:
                self._cut()
                return True
            return not self._on

    def _cut(self) -> None:
        self.cuts += 1
        self._on = self._returns
        for served in self._live:
            served.end()
        self._live.clear()
        lost = set(range(len(self._changes))) - self._survivors(len(self._changes))
        for number in sorted(lost, reverse=True):
            self._undo(self._changes[number])
        for path in self._unwritten:
            if path.exists():
                os.truncate(path, path.stat().st_size // 2)
        self._changes.clear()
        self._unwritten.clear()

    def _undo(self, change: Change) -> None:
        if change.kept is not None:
            with suppress(FileExistsError, FileNotFoundError):
                os.link(change.kept, change.path)
        elif change.path.is_dir():
            shutil.rmtree(change.path)
        else:
            change.path.unlink(missing_ok=True)

    # -- what is not durable yet --------------------------------------------------------------------------------------

    def about_to(self, kind: int, fields: Fields) -> Change | Path | None:
        """What a request will have changed when it succeeds: a name, or what is synced then."""
        if kind == PacketKind.MKDIR:
            return Change(_path(fields))
        if kind == PacketKind.RENAME:
            fields.text()
            return Change(_path(fields))
        if kind == PacketKind.REMOVE:
            path = _path(fields)
            kept = self._aside / os.urandom(8).hex()
            with suppress(OSError):
                os.link(path, kept)
            return Change(path, kept)
        if kind == PacketKind.EXTENDED and fields.text() == HARDLINK.encode():
            fields.text()
            return Change(_path(fields))
        return None

    def succeeded(self, change: Change) -> None:
        with self._mutex:
            self._changes.append(change)

    def opened(self, path: Path) -> None:
        with self._mutex:
            if path.is_file():
                self._unwritten.add(path)

    def synced(self, path: Path) -> None:
        with self._mutex:
            self._unwritten.discard(path)
            self._changes = [change for change in self._changes if change.path.parent != path]

    # -- connections --------------------------------------------------------------------------------------------------

    def start(self, work: Callable[[], None]) -> None:
        self._start(work)

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with self._mutex:
                if not self._on:
                    connection.close()
                    continue
                self.connections += 1
                self._live.append(_Served(self, connection, self._program))


class _Served:
    """One connection, and the server behind it."""

    def __init__(self, machine: SftpMachine, connection: socket.socket, program: str) -> None:
        self._machine = machine
        self._connection = connection
        mine, its = socket.socketpair()
        self._far = mine
        self._process = subprocess.Popen([program], stdin=its.fileno(), stdout=its.fileno(), stderr=subprocess.DEVNULL)
        its.close()
        self._asked: dict[int, tuple[int, bytes, Change | Path | None]] = {}
        self._handles: dict[bytes, Path] = {}
        machine.start(self._up)
        machine.start(self._down)

    def end(self) -> None:
        self._process.kill()
        self._process.wait(_SECONDS)
        for one in (self._connection, self._far):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _up(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                packet = _packet(self._connection)
                kind, fields = packet[0], packet[5:]
                if kind != PacketKind.INIT:
                    if self._machine.met(kind, after=False):
                        return
                    if kind in self._machine.ignored:
                        _send(self._connection, bytes([PacketKind.STATUS]) + packet[1:5] + bytes(12))
                        continue
                    change = self._machine.about_to(kind, Fields(fields))
                    self._asked[int.from_bytes(packet[1:5], "big")] = kind, fields, change
                _send(self._far, packet)
        with suppress(OSError):
            self._far.shutdown(socket.SHUT_WR)

    def _down(self) -> None:
        with self._connection, self._far, suppress(OSError, EOFError):
            while True:
                packet = _packet(self._far)
                kind, number, fields = packet[0], packet[1:5], packet[5:]
                asked = self._asked.pop(int.from_bytes(number, "big"), None)
                if asked is not None and kind != PacketKind.VERSION:
                    self._learn(asked, kind, fields)
                    if self._machine.met(asked[0], after=True):
                        return
                lie = self._machine.lie
                told = lie(asked[0] if asked else 0, kind, fields) if lie else [(kind, fields)]
                for told_kind, told_fields in told:
                    _send(self._connection, bytes([told_kind]) + number + told_fields)

    def _learn(self, asked: tuple[int, bytes, Change | Path | None], kind: int, fields: bytes) -> None:
        asked_kind, asked_fields, change = asked
        request = Fields(asked_fields)
        if asked_kind == PacketKind.OPEN and kind == PacketKind.HANDLE:
            path = _path(request)
            self._handles[Fields(fields).text()] = path
            if request.word() & 2:
                self._machine.opened(path)
        done = kind == PacketKind.STATUS and Fields(fields).word() == 0
        if done and isinstance(change, Change):
            self._machine.succeeded(change)
        elif done and asked_kind == PacketKind.EXTENDED and request.text() == FSYNC.encode():
            self._machine.synced(self._handles[request.text()])


def _path(fields: Fields) -> Path:
    return Path(os.fsdecode(fields.text()))


def _packet(connection: socket.socket) -> bytes:
    length = int.from_bytes(_exactly(connection, 4), "big")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        piece = connection.recv(count - len(content))
        if not piece:
            raise EOFError
        content += piece
    return content


def _send(connection: socket.socket, packet: bytes) -> None:
    connection.sendall(struct.pack(">I", len(packet)) + packet)
