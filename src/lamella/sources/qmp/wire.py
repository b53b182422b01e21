"""Lines of JSON over a unix socket, and QEMU's machine protocol (QMP) in them.

QEMU is half trusted: a guest may have broken into it. Every wait has an end and every message a bound; a connection
that failed is not used again. Source: docs/interop/qmp-spec of QEMU.
"""

from __future__ import annotations

import array
import json
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from lamella.base.errors import SourceError, printable

GREETING_SECONDS: Final = 5.0
"""A monitor talks to one client: the next one hears nothing until that one has gone."""
ANSWER_SECONDS: Final = 60.0
"""For any command; a transaction waits until the disks have done what they were asked before."""
MOST_LINE: Final = 16 << 20
_PIECE: Final = 1 << 16
_LONGEST_SAID: Final = 300


class QmpRefused(SourceError):
    """QEMU understood a command and refused it."""


class JsonLines:
    """Lines of JSON over a unix socket. Raises SourceError, and so do its methods."""

    def __init__(self, path: str, seconds: float) -> None:
        self.path = path
        self._rest = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(path)
        except (OSError, ValueError) as reason:
            self._socket.close()
            raise self.error(str(getattr(reason, "strerror", None) or reason)) from reason

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def send(self, content: bytes, fd: int | None = None, *, seconds: float) -> None:
        """Send bytes; with a descriptor that the receiver gets a copy of."""
        try:
            self._socket.settimeout(seconds)
            if fd is None:
                self._socket.sendall(content)
            else:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
                sent = self._socket.sendmsg([content], [rights])
                self._socket.sendall(content[sent:])
        except OSError as reason:
            raise self.error(self._words(reason)) from reason

    def line(self, until: float) -> bytes:
        """The next line. Waits until that time (monotonic)."""
        searched = 0
        while (end := self._rest.find(b"\n", searched)) < 0:
            searched = len(self._rest)
            if searched > MOST_LINE:
                raise self.error(f"it sent more than {MOST_LINE} bytes without an end")
            try:
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._socket.settimeout(left)
                received = self._socket.recv(_PIECE)
            except OSError as reason:
                raise self.error(self._words(reason)) from reason
            if not received:
                raise self.error("it closed the connection")
            self._rest += received
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return line

    def message(self, until: float) -> dict[str, Any]:
        """The next line, read as an object."""
        try:
            found = json.loads(self.line(until))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self.error("it sent no valid message")
        return found

    def error(self, what: str) -> SourceError:
        """An error about this socket."""
        return SourceError(f"{self.path}: {what}", obj=self.path)

    @staticmethod
    def _words(reason: OSError) -> str:
        return "it does not answer" if isinstance(reason, TimeoutError) else reason.strerror or str(reason)


class Qmp:
    """A connection to a monitor. Thread-safe. Raises SourceError if there is none, or another program has it."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self._lines = JsonLines(path, GREETING_SECONDS)
        try:
            self._greet()
        except BaseException:
            self._lines.close()
            raise

    def close(self) -> None:
        """Hang up."""
        self._lines.close()

    def do(self, command: str, arguments: Mapping[str, object] | None = None, fd: int | None = None) -> Any:  # noqa: ANN401 - whatever QMP returns
        """Run a command; what QEMU returns. Raises QmpRefused, SourceError."""
        with self._lock:
            self._number += 1
            asked = {"execute": command, "id": self._number, **({"arguments": arguments} if arguments else {})}
            self._lines.send(json.dumps(asked).encode() + b"\n", fd, seconds=ANSWER_SECONDS)
            until = time.monotonic() + ANSWER_SECONDS
            while True:
                answer = self._lines.message(until)
                if answer.get("id") == self._number and ("return" in answer or "error" in answer):
                    break
                if "event" not in answer:
                    raise self._lines.error("it answered without a request")
        if "error" in answer:
            raise self._refusal(command, answer["error"])
        return answer["return"]

    def rows(self, command: str) -> list[dict[str, Any]]:
        """The result of a command that returns a list of objects. Raises SourceError."""
        found = self.do(command)
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise self._lines.error(f"what it returned for {command} is not what it says it returns")
        return found

    def _greet(self) -> None:
        try:
            greeting = self._lines.message(time.monotonic() + GREETING_SECONDS)
        except SourceError as error:
            if "does not answer" not in error.message:
                raise
            raise self._lines.error("no QEMU answers there; another program may be connected to this monitor") from None
        if "QMP" not in greeting:
            raise self._lines.error("what listens there is no monitor of QEMU")
        self.do("qmp_capabilities")

    def _refusal(self, command: str, error: object) -> QmpRefused:
        said = error.get("desc") if isinstance(error, dict) else None
        text = printable(str(said))[:_LONGEST_SAID]
        return QmpRefused(f"{self._lines.path}: QEMU refused {command}: {text}", obj=self._lines.path)
