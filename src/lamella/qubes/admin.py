"""Calls to qubesd: the Admin API on its local sockets in dom0.

One call is one connection: `METHOD+ARG SRC name DEST\\0PAYLOAD`, end of writing, then the whole answer. It begins with
`0\\0` and the result, or with `2\\0`, the error's class and its text (developer documentation of Qubes OS, Admin API).
"""

from __future__ import annotations

import socket
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from lamella.base.errors import LamellaError, SourceError, UsageError

SOCKET: Final = Path("/var/run/qubesd.sock")
INTERNAL_SOCKET: Final = Path("/var/run/qubesd.internal.sock")
NO_ANSWER: Final = ""
"""Type of a refusal without a word: what release 4.2 gives to calls it does not know."""

_NOT_A_CALL: Final = "not a call"
"""Type of the refusal of a call that could not even be written down."""
_MAX_REQUEST: Final = 65536
_MAX_ANSWER: Final = 16 << 20
_PIECE: Final = 1 << 16


class Refused(SourceError):
    """qubesd refused a call; `type` is the class of its error, for example `QubesFeatureNotFoundError`."""

    kind = "qubes-refused"

    def __init__(self, type_: str, message: str, *, obj: str) -> None:
        super().__init__(message, obj=obj)
        self.type = type_


class Admin:
    """qubesd as seen from dom0. `seconds` is how long one call may take."""

    def __init__(self, place: Path = SOCKET, internal: Path = INTERNAL_SOCKET, *, seconds: float = 120.0) -> None:
        self._place = place
        self._internal = internal
        self._seconds = seconds

    def call(self, method: str, dest: str = "dom0", arg: str = "", payload: bytes = b"") -> bytes:
        """The result of one call. Raises Refused, UsageError where there is no qubesd, SourceError."""
        return self._exchange(self._place, method, dest, arg, payload)

    def text(self, method: str, dest: str = "dom0", arg: str = "", payload: bytes = b"") -> str:
        """The same as text."""
        return _decoded(self.call(method, dest, arg, payload))

    def lines(self, method: str, dest: str = "dom0", arg: str = "") -> list[str]:
        """The same as lines, which qubesd ends with a newline each."""
        return self.text(method, dest, arg).split("\n")[:-1]

    def internal(self, method: str, dest: str, arg: str, payload: bytes = b"") -> bytes:
        """A call on the socket for dom0's own programs."""
        return self._exchange(self._internal, method, dest, arg, payload)

    def _exchange(self, place: Path, method: str, dest: str, arg: str, payload: bytes) -> bytes:
        head = f"{method}+{arg} dom0 name {dest}" if arg else f"{method} dom0 name {dest}"
        if not (head.isascii() and head.isprintable()) or len(head) + len(payload) >= _MAX_REQUEST:
            raise Refused(_NOT_A_CALL, f"{dest}: too long, or not a name that qubesd takes ({method})", obj=ascii(dest))
        answer = _conversation(place, head.encode("ascii") + b"\0" + payload, self._seconds, method)
        if answer[:2] == b"0\0":
            return answer[2:]
        if answer[:2] != b"2\0":
            raise Refused(NO_ANSWER, f"{dest}: qubesd aborted {method}: its log says why", obj=dest)
        type_, _, rest = answer[2:].partition(b"\0")
        _, _, rest = rest.partition(b"\0")  # the trace
        words = [_decoded(word) for word in rest.split(b"\0")]
        raise Refused(_decoded(type_), f"{dest}: {_formatted(words)} ({method})", obj=dest)


def require_qubesd(place: Path = SOCKET) -> None:
    """Raises UsageError, exit code 2, on a machine that is not dom0 of Qubes OS."""
    if not place.is_socket():
        raise UsageError(
            "this is not dom0 of a Qubes OS system: there is no qubesd",
            obj=str(place),
            hint="run it in dom0; elsewhere name volumes with: lamella backup",
        )


def _conversation(place: Path, request: bytes, seconds: float, method: str) -> bytes:
    deadline = time.monotonic() + seconds
    answer = bytearray()
    try:
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
            connection.settimeout(seconds)
            connection.connect(str(place))
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while piece := _received(connection, deadline):
                answer += piece
                if len(answer) > _MAX_ANSWER:
                    raise SourceError(f"the answer of qubesd to {method} does not end", obj=method)
    except TimeoutError as error:
        raise SourceError(f"qubesd did not answer {method} within {seconds:g} s", obj=method) from error
    except (FileNotFoundError, ConnectionRefusedError, PermissionError) as error:
        raise LamellaError(f"qubesd cannot be reached: {error.strerror}", obj=str(place)) from error
    except OSError as error:
        raise SourceError(f"qubesd aborted {method}: {error.strerror}", obj=method) from error
    return bytes(answer)


def _received(connection: socket.socket, deadline: float) -> bytes:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
    return connection.recv(_PIECE)


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _formatted(words: list[str]) -> str:
    """qubesd sends a format and what goes into it, mostly a finished sentence alone."""
    text, values = words[0], words[1:]
    for value in values:
        text = text.replace("%s", value, 1) if "%s" in text else text
    return text.strip() or "refused without a reason"
