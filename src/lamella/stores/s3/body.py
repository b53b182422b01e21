"""Reading an object's bytes in one go, within a deadline (docs/decisions/0101).

Pieces that are joined touch every byte twice, in memory that the system has to give and to clear each time: five times
the CPU time of one read. One read has no end of its own where a service trickles: so each piece that the socket gives
is looked at, which the layers between here and there do not offer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lamella.base.errors import StoreUnavailable

_PIECE = 1 << 20


class _Watched:
    """Stands in for a socket while an answer is read, and ends the reading at a deadline."""

    def __init__(self, socket: Any, late: Callable[[], None]) -> None:  # noqa: ANN401 - a socket, or one with TLS
        self._socket = socket
        self._late = late

    def recv_into(self, *arguments: Any) -> Any:  # noqa: ANN401 - as the socket's
        self._late()
        return self._socket.recv_into(*arguments)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as the socket's
        return getattr(self._socket, name)


def read_body(body: Any, length: int, late: Callable[[], None], name: str) -> bytes:  # noqa: ANN401 - urllib3's
    """Exactly `length` bytes of an answer; `late` raises once it is too late. Raises StoreUnavailable."""
    pieces: list[bytes] = []
    missing = length
    with _watched(body, late) as watched:
        while missing > 0:
            piece = body.read(missing if watched else min(missing, _PIECE))
            if not piece:
                raise StoreUnavailable(f"the answer ended {missing} bytes too early", obj=name)
            pieces.append(piece)
            missing -= len(piece)
            late()
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@contextmanager
def _watched(body: Any, late: Callable[[], None]) -> Iterator[bool]:  # noqa: ANN401 - urllib3's
    """Whether every piece that comes from the socket is looked at: not where the layers are others than known."""
    try:
        stream = body._fp.fp.raw
        socket = stream._sock
        stream._sock = _Watched(socket, late)
    except AttributeError:
        yield False
        return
    try:
        yield True
    finally:
        if stream._sock is not None:  # closed meanwhile
            stream._sock = socket
