"""Bounds on answers that botocore reads to their end before it looks at them: listings and errors.

Objects are read piece by piece by the store's own loop; everything else would be taken in whole, however long it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from botocore.exceptions import ResponseStreamingError
from urllib3.exceptions import HTTPError

READ_SECONDS = 120
"""Longest silence while an answer is awaited or read."""
SLOWEST_BYTES_PER_SECOND = 4096
"""An answer that comes slower than this on the whole is given up, so that a trickle cannot hold us for ever."""
MAX_ANSWER = 8 << 20
"""A page of 1000 keys of 1024 bytes, each byte written as three, with everything said about them, has half of it."""
_PIECE = 1 << 16


class BoundedSession:
    """Stands in for botocore's HTTP session: sends through it, and reads what it would read without bounds."""

    def __init__(self, inner: Any, clock: Callable[[], float]) -> None:  # noqa: ANN401 - botocore has no types
        self._inner = inner
        self._clock = clock

    def send(self, request: Any) -> Any:  # noqa: ANN401 - botocore's
        """Send a prepared request; the body of the reply is left unread only if it is a wanted object."""
        wanted = request.stream_output
        request.stream_output = True
        reply = self._inner.send(request)
        if not wanted or reply.status_code >= 300:
            reply._content = self._whole(reply.raw)
        return reply

    def _whole(self, raw: Any) -> bytes:  # noqa: ANN401 - urllib3's
        deadline = self._clock() + READ_SECONDS + MAX_ANSWER / SLOWEST_BYTES_PER_SECOND
        pieces: list[bytes] = []
        size = 0
        try:
            for piece in raw.stream(_PIECE):
                size += len(piece)
                if size > MAX_ANSWER or self._clock() > deadline:
                    raw.close()
                    raise ResponseStreamingError(error="the answer has no end")
                pieces.append(piece)
        except (HTTPError, OSError, ValueError) as error:
            raise ResponseStreamingError(error=error) from error
        return b"".join(pieces)

    def close(self) -> None:
        """Close connections."""
        self._inner.close()
