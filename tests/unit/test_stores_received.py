"""What a server checks of a commit without any key."""

from __future__ import annotations

import hashlib

import pytest

from lamella.base.errors import StoreRefused
from lamella.base.ids import RepoId
from lamella.base.names import MARKER, TRAILER_SIZE
from lamella.crypto.derive import Keys
from lamella.crypto.sign import public_of
from lamella.format.commit import Body, Head, writer_id
from lamella.format.marker import Marker
from lamella.packs.building import build_commit
from lamella.stores.memory import MemoryStore
from lamella.stores.pipe.guarded import Received

SEED = b"w" * 32
MARK = Marker(RepoId(b"r" * 16), public_of(b"p" * 32), 1)
WRITER = writer_id(public_of(SEED))
CONTENT = build_commit(
    Keys(MARK, b"k" * 32, None), SEED, public_of(SEED), Body(WRITER, 7, b"b" * 32, 5, (0, bytes(32)), (), ())
)
EMPTY, MARKED = Received(MemoryStore()), Received(MemoryStore({MARKER: MARK.encode()}))


def put(received: Received, content: bytes, seq: int = 7) -> None:
    received.check(Head(WRITER, seq, hashlib.sha256(content).digest()).name, content)


def test_a_commit_is_taken() -> None:
    put(EMPTY, CONTENT)
    put(MARKED, CONTENT)


@pytest.mark.parametrize("at", [8, 80, len(CONTENT) - TRAILER_SIZE - 1, -144, -113, -96, -65])
def test_a_trailer_must_fit_what_is_before_it(at: int) -> None:
    """Known before the repository has a marker, and without any signature."""
    changed = bytearray(CONTENT)
    changed[at] ^= 1
    for received in (EMPTY, MARKED):
        with pytest.raises(StoreRefused):
            put(received, bytes(changed))


def test_a_trailer_must_fit_its_name_and_its_signature() -> None:
    with pytest.raises(StoreRefused):
        put(MARKED, CONTENT, seq=8)
    inside, trailer = CONTENT[:-TRAILER_SIZE], CONTENT[-TRAILER_SIZE:]
    other = inside + b"\0"
    with pytest.raises(StoreRefused, match="not signed"):
        put(MARKED, other + trailer[:48] + hashlib.sha256(other).digest() + trailer[80:])
    for short in (trailer, trailer[1:], CONTENT[:8]):
        with pytest.raises(StoreRefused):
            put(EMPTY, short)
