"""What a server checks of a commit without any secret."""

from __future__ import annotations

import hashlib

import pytest

from lamella.base.errors import StoreRefused
from lamella.base.ids import RepoId
from lamella.base.names import MARKER
from lamella.base.signed import TRAILER_SIZE, Trailer, commit_message, trailer_of
from lamella.crypto.derive import Bundle, Keys
from lamella.crypto.sign import public_of, sign
from lamella.format.commit import Body, Head, writer_id
from lamella.format.marker import Marker
from lamella.packs.building import build_commit
from lamella.stores.memory import MemoryStore
from lamella.stores.pipe.guarded import Received

SEED, OTHER, PRUNE, ENROL = b"w" * 32, b"o" * 32, b"p" * 32, b"e" * 32
MARK = Marker(RepoId(b"r" * 16), public_of(PRUNE), public_of(ENROL), 1)
WRITER = writer_id(public_of(SEED))
BY_WRITER, BY_ADMIN = (Keys(MARK, Bundle(b"k" * 32, ENROL, seed)) for seed in (None, PRUNE))
BODY = Body(WRITER, 7, b"b" * 32, 5, (0, bytes(32)), (), ())
CONTENT = build_commit(BY_WRITER, SEED, BY_WRITER.enrolment(public_of(SEED)), BODY)
INSIDE, TRAILER = CONTENT[:-TRAILER_SIZE], trailer_of(CONTENT)
EMPTY, MARKED = Received(MemoryStore()), Received(MemoryStore({MARKER: MARK.encode()}))
ADMITTED = Received(MemoryStore({MARKER: MARK.encode()}), admitted=True)


def put(received: Received, content: bytes, seq: int = 7, seed: bytes = SEED) -> None:
    received.check(Head(writer_id(public_of(seed)), seq, hashlib.sha256(content).digest()).name, content)


def resigned(trailer: Trailer, seed: bytes = SEED) -> bytes:
    """The same container with another trailer, signed by its writer as the trailer says."""
    message = commit_message(MARK.root, writer_id(public_of(seed)), 7, trailer)
    return INSIDE + b"".join(trailer._replace(signature=sign(seed, message)))


def test_a_commit_is_taken() -> None:
    put(EMPTY, CONTENT)
    put(MARKED, CONTENT)


@pytest.mark.parametrize("at", [8, 80, len(CONTENT) - TRAILER_SIZE - 1, -192, -161, -96, -65])
def test_a_trailer_must_fit_what_is_before_it(at: int) -> None:
    """Known before the repository has a marker, and without any signature."""
    changed = bytearray(CONTENT)
    changed[at] ^= 1
    for received in (EMPTY, MARKED):
        with pytest.raises(StoreRefused):
            put(received, bytes(changed))


@pytest.mark.parametrize("at", range(len(CONTENT)))
def test_no_flipped_bit_is_taken(at: int) -> None:
    for bit in range(8):
        with pytest.raises(StoreRefused):
            put(MARKED, CONTENT[:at] + bytes([CONTENT[at] ^ 1 << bit]) + CONTENT[at + 1 :])


def test_a_trailer_must_fit_its_name_and_its_signature() -> None:
    with pytest.raises(StoreRefused):
        put(MARKED, CONTENT, seq=8)
    other = INSIDE + b"\0"
    with pytest.raises(StoreRefused, match="signature"):
        put(MARKED, other + b"".join(TRAILER._replace(container=hashlib.sha256(other).digest())))
    whole = CONTENT[-TRAILER_SIZE:]
    for short in (whole, whole[1:], CONTENT[:8]):
        with pytest.raises(StoreRefused):
            put(EMPTY, short)


def test_a_container_that_somebody_signed_anew_is_refused() -> None:
    """Anybody can make a key: it counts once a holder of a key slot has enrolled it."""
    stolen = TRAILER._replace(public=public_of(OTHER))
    elsewhere = Keys(Marker(RepoId(b"R" * 16), MARK.prune_public, MARK.enrol_public, 1), BY_ADMIN.bundle)
    for enrolment in (stolen.enrolment, bytes(64), elsewhere.enrolment(public_of(OTHER))):
        with pytest.raises(StoreRefused, match="nobody enrolled"):
            put(MARKED, resigned(stolen._replace(enrolment=enrolment), OTHER), seed=OTHER)
    put(MARKED, resigned(stolen._replace(enrolment=BY_WRITER.enrolment(public_of(OTHER))), OTHER), seed=OTHER)


@pytest.mark.parametrize("seed", [PRUNE, ENROL])
def test_the_keys_of_the_repository_are_no_writers(seed: bytes) -> None:
    public = public_of(seed)
    with pytest.raises(StoreRefused, match="another writer's key"):
        put(MARKED, resigned(TRAILER._replace(public=public, enrolment=BY_ADMIN.enrolment(public)), seed), seed=seed)


def test_where_only_admitted_writers_may_write_an_admin_must_have_enrolled_them() -> None:
    with pytest.raises(StoreRefused, match="an admin enrolled"):
        put(ADMITTED, CONTENT)
    admitted = resigned(TRAILER._replace(enrolment=BY_ADMIN.enrolment(public_of(SEED))))
    put(ADMITTED, admitted)
    put(MARKED, admitted)
