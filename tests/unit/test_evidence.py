"""What an object under a commit's name proves although it does not open."""

from __future__ import annotations

import hashlib
import random

import pytest

from lamella.base.errors import IntegrityError
from lamella.base.ids import CATALOGUE, RepoId
from lamella.base.names import TRAILER_SIZE, commit_message
from lamella.crypto.derive import Keys
from lamella.crypto.sign import public_of, sign
from lamella.format.commit import Body, Head, parts, writer_id
from lamella.format.container import HEADER_SIZE, Kind
from lamella.format.marker import Marker
from lamella.format.records import Writer, raw
from lamella.history.evidence import Evidence, evidence_of, same
from lamella.packs.building import build_commit, build_single
from lamella.packs.containers import open_commit

PRUNE, SEED, OTHER = b"p" * 32, b"w" * 32, b"o" * 32
KEYS = Keys(Marker(RepoId(b"r" * 16), public_of(PRUNE), 1), b"k" * 32, PRUNE)


def body_of(seed: bytes, seq: int = 2) -> Body:
    return Body(writer_id(public_of(seed)), seq, b"b" * 32, 5, (0, bytes(32)), (), (raw(Writer("box", "m")),))


def made(seed: bytes = SEED, seq: int = 2, keys: Keys = KEYS) -> tuple[Head, bytes]:
    content = build_commit(keys, seed, public_of(seed), body_of(seed, seq))
    return Head(writer_id(public_of(seed)), seq, hashlib.sha256(content).digest()), content


HEAD, CONTENT = made()
INSIDE = CONTENT[:-TRAILER_SIZE]
IDENTITY = CONTENT[16:48] + CONTENT[HEADER_SIZE : HEADER_SIZE + 24]
DIRECTORY_END = HEADER_SIZE + int.from_bytes(CONTENT[12:16], "little")


def test_a_sound_commit_is_evidence_of_itself() -> None:
    assert open_commit(KEYS, HEAD, CONTENT) == body_of(SEED)
    evidence = evidence_of(KEYS, HEAD, CONTENT)
    assert evidence == Evidence(hashlib.sha256(INSIDE).digest(), IDENTITY)
    assert same(evidence, CONTENT)


def test_no_flipped_bit_hides_a_commit() -> None:
    chosen = random.Random(5)
    for at in range(len(CONTENT)):
        damaged = CONTENT[:at] + bytes([CONTENT[at] ^ 1 << chosen.randrange(8)]) + CONTENT[at + 1 :]
        with pytest.raises(IntegrityError):
            open_commit(KEYS, HEAD, damaged)
        evidence = evidence_of(KEYS, HEAD, damaged)
        assert evidence is not None and same(evidence, CONTENT), at
        assert (evidence.container is None) == (at >= len(INSIDE)), at
        in_the_head = at < 9 or 9 <= at < 48 or HEADER_SIZE <= at < DIRECTORY_END
        assert (evidence.directory is None) == in_the_head, at


def test_either_end_is_enough() -> None:
    for length in range(len(CONTENT)):
        front, back = evidence_of(KEYS, HEAD, CONTENT[:length]), evidence_of(KEYS, HEAD, CONTENT[length:])
        assert front == (Evidence(None, IDENTITY) if length >= DIRECTORY_END else None), length
        whole = length <= len(INSIDE)
        if length > 0:
            assert back == (Evidence(hashlib.sha256(INSIDE).digest(), None) if whole else None), length


@pytest.mark.parametrize("head", [HEAD._replace(seq=3), HEAD._replace(writer=writer_id(public_of(OTHER)))])
def test_a_copy_under_another_name_proves_nothing(head: Head) -> None:
    assert evidence_of(KEYS, head, CONTENT) is None


def test_under_another_hash_it_is_the_genuine_one() -> None:
    evidence = evidence_of(KEYS, HEAD._replace(sha256=b"x" * 32), CONTENT)
    assert evidence is not None and same(evidence, CONTENT)


def test_another_commit_of_the_same_number_is_not_the_same() -> None:
    other = made()[1]
    assert other != CONTENT  # its salt is another
    evidence = evidence_of(KEYS, HEAD, other[:-1])
    assert evidence is not None and not same(evidence, CONTENT)
    evidence = evidence_of(KEYS, HEAD, b"x" + other)
    assert evidence is not None and not same(evidence, CONTENT)


def test_what_another_repository_or_key_made_is_none() -> None:
    foreign = Keys(Marker(RepoId(b"R" * 16), public_of(PRUNE), 1), b"k" * 32, PRUNE)
    head, content = made(keys=foreign)
    assert evidence_of(KEYS, head, content) is None
    stolen = INSIDE + public_of(OTHER) + CONTENT[-112:]
    assert evidence_of(KEYS, Head(writer_id(public_of(OTHER)), 2, bytes(32)), stolen) is None


def test_the_prune_key_is_no_writer() -> None:
    head, content = made(seed=PRUNE)
    evidence = evidence_of(KEYS, head, content)
    assert evidence is not None and evidence.container is None  # its directory is the work of a key holder all the same


def test_a_trailer_counts_only_with_its_signature() -> None:
    digest = hashlib.sha256(INSIDE).digest()
    signature = sign(SEED, commit_message(KEYS.root, HEAD.writer, HEAD.seq, digest))
    front = public_of(SEED) + KEYS.vouch(public_of(SEED))
    assert evidence_of(KEYS, HEAD, front + digest + signature) == Evidence(digest, None)
    assert evidence_of(KEYS, HEAD, front + digest + sign(OTHER, b"")) is None
    assert evidence_of(KEYS, HEAD, front + b"d" * 32 + signature) is None


def test_nobody_without_the_keys_makes_evidence() -> None:
    """Anybody can make a key and sign with it: the trailer shows that its writer has been given the data root."""
    head = Head(writer_id(public_of(OTHER)), 1, bytes(32))
    signature = sign(OTHER, commit_message(KEYS.root, head.writer, 1, b"d" * 32))
    for vouch in (bytes(16), KEYS.vouch(public_of(SEED)), CONTENT[-112:-96]):
        assert evidence_of(KEYS, head, public_of(OTHER) + vouch + b"d" * 32 + signature) is None
    with pytest.raises(IntegrityError):
        open_commit(KEYS, HEAD, CONTENT[:-112] + bytes(16) + CONTENT[-96:])


@pytest.mark.parametrize("kind", [Kind.CHUNK, Kind.SEGMENT, Kind.INDEX])
def test_a_directory_of_other_kinds_is_none(kind: Kind) -> None:
    bound = HEAD.writer + HEAD.seq.to_bytes(8, "little")
    container, _ = build_single(KEYS, CATALOGUE, [(Kind.COMMIT, next(parts(b"x"))), (kind, b"y")], bound)
    assert evidence_of(KEYS, HEAD, container) is None
    assert evidence_of(KEYS, HEAD, build_single(KEYS, CATALOGUE, [(Kind.COMMIT, b"x")], bound)[0]) is not None
    assert evidence_of(KEYS, HEAD, build_single(KEYS, CATALOGUE, [(Kind.COMMIT, b"x")])[0]) is None


def test_junk_is_none() -> None:
    chosen = random.Random(6)
    for length in (0, 1, 8, 71, 72, 73, 143, 144, 145, 200, 5000):
        for junk in (bytes(length), chosen.randbytes(length), (CONTENT[:72] + chosen.randbytes(length))[:length]):
            assert evidence_of(KEYS, HEAD, junk) is None
