"""A far side that was taken over: it speaks as the real one until it changes what it says.

python liar.py HOW SEED
"""

from __future__ import annotations

import os
import sys
import time
from random import Random

from lamella.qubes.paranoid.far import FarSide
from lamella.qubes.paranoid.words import FETCH, Word
from lamella.stores.pipe.frames import HEADER, FrameSink

HOW, RANDOM = sys.argv[1], Random(int(sys.argv[2]))
MUTATIONS = ("flip", "head", "drop", "twice", "swap", "cut", "junk", "replay", "word", "request", "die", "shift")


class Liar(FrameSink):
    """Changes one frame, or all from one on."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._left = RANDOM.randrange(1, 60) if HOW == "random" else 6
        self._how = RANDOM.choice(MUTATIONS) if HOW == "random" else HOW.removesuffix("-late")
        self._held: bytes | None = None
        self._said: list[bytes] = []

    def frame(self, kind: int, request: int, payload: bytes | bytearray | memoryview = b"") -> None:
        whole = HEADER.pack(len(payload), kind, request) + bytes(payload)
        if kind == Word.CONTENT:
            self._said.append(bytes(payload))
        self._left -= 1
        if HOW.endswith("-late"):  # with the first chunk of a volume
            self._left = 0 if kind == Word.CONTENT and len(payload) >= 1 << 16 else 1
        wanted = Word.CONTENT if self._how in ("other", "longer", "shorter", "replay") else kind
        if self._left > 0 or kind != wanted:
            self.raw(self._held + whole if self._held else whole)
            self._held = None
            return
        self._left = 1 << 30
        getattr(self, "_" + self._how)(whole, bytes(payload), kind, request)

    def _flip(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        at = RANDOM.randrange(len(whole))
        self.raw(whole[:at] + bytes([whole[at] ^ 1 << RANDOM.randrange(8)]) + whole[at + 1 :])

    def _head(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        self.raw(RANDOM.randbytes(HEADER.size) + payload)

    def _drop(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        return

    def _twice(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        self.raw(whole * 2)

    def _swap(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        self._held = whole  # said after the next one would have been, if it waits for nothing

    def _cut(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        self.raw(whole[: RANDOM.randrange(len(whole))])
        os._exit(0)

    def _junk(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        self.raw(RANDOM.randbytes(RANDOM.randrange(1, 5000)) + whole)

    def _replay(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        old = RANDOM.choice([one for one in self._said if one != payload] or [b"x" * 64])
        self.raw(HEADER.pack(len(old), Word.CONTENT, request) + old)

    def _word(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        self.raw(HEADER.pack(len(payload), RANDOM.randrange(256), request) + payload)

    def _request(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        self.raw(HEADER.pack(len(payload), kind, RANDOM.randrange(1 << 32)) + payload)

    def _shift(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        self.raw(HEADER.pack(max(0, len(payload) + RANDOM.choice((-1, 1))), kind, request) + payload)

    def _die(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        sys.stderr.write("\x1b[31mout of \x07memory\n")
        sys.stderr.flush()
        os._exit(3)

    def _other(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        self.raw(HEADER.pack(len(payload), kind, request) + RANDOM.randbytes(len(payload)))

    def _longer(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        self.raw(HEADER.pack(len(payload) + 1, kind, request) + payload + b"x")

    def _shorter(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        self.raw(HEADER.pack(len(payload) - 1, kind, request) + payload[:-1])

    def _silence(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        time.sleep(600)

    def _endless(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        """Asks for the same bytes for ever, and takes them."""
        pack = self._pack(payload, kind)
        while True:
            self.raw(HEADER.pack(FETCH.size, Word.FETCH, request) + FETCH.pack(pack, 0, 100))
            os.read(0, 1 << 16)

    def _deaf(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        """Asks and does not listen."""
        while True:
            self.raw(HEADER.pack(FETCH.size, Word.FETCH, request) + FETCH.pack(bytes(32), 0, 100))

    def _more(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        self.raw(HEADER.pack(0, Word.MORE, request) * 50)

    def _foreign(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        self.raw(HEADER.pack(FETCH.size, Word.FETCH, request) + FETCH.pack(RANDOM.randbytes(32), 0, 100))

    def _flood(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        while True:
            self.raw(HEADER.pack(0xFFFFFFF0, Word.CONTENT, request) + bytes(1 << 16))

    def _noise(self, whole: bytes, payload: bytes, kind: int, request: int) -> None:
        while True:
            os.write(2, b"\x1b[2Jnoise" * 1000)

    @staticmethod
    def _pack(payload: bytes, kind: int) -> bytes:
        return payload[:32] if kind == Word.FETCH else bytes(32)


class LyingSide(FarSide):
    """The real far side with another mouth."""

    def __init__(self) -> None:
        super().__init__(0, 1)
        self._sink = Liar(1)


def main() -> None:
    """Skip the program that dom0 sent along, and lie."""
    assert os.read(0, 8) == b"LMLBOOT1"
    left = int(os.read(0, 8), 16)
    while left:
        left -= len(os.read(0, min(left, 1 << 16)))
    try:
        LyingSide().run()
    except (EOFError, BrokenPipeError):
        return


main()
