"""What an object under a commit's name proves although it does not open."""

from __future__ import annotations

import hashlib
import random

import pytest

from lamella.base.errors import IntegrityError
from lamella.base.ids import CATALOGUE, RepoId, WriterId
from lamella.base.signed import TRAILER_SIZE, Trailer, commit_message, enrolment_message, trailer_of
from lamella.crypto.derive import Bundle, Keys
from lamella.crypto.sign import public_of, sign
from lamella.format.commit import Body, ChainEntry, Head, parts, writer_id
from lamella.format.container import HEADER_SIZE, Kind
from lamella.format.deletion import Forgo, Remove
from lamella.format.marker import Marker
from lamella.format.records import RawRecord, Writer, prune_signed_message, raw
from lamella.history.evidence import Evidence, evidence_of, same
from lamella.history.records import prune_signed
from lamella.packs.building import build_commit, build_single
from lamella.packs.containers import open_commit

PRUNE, ENROL, SEED, OTHER = b"p" * 32, b"e" * 32, b"w" * 32, b"o" * 32


def keys_of(repo: bytes) -> Keys:
    mark = Marker(RepoId(repo), public_of(PRUNE), public_of(ENROL), 1)
    return Keys(mark, Bundle(b"k" * 32, ENROL, None))


KEYS = keys_of(b"r" * 16)


def body_of(seed: bytes, seq: int = 2) -> Body:
    return Body(writer_id(public_of(seed)), seq, b"b" * 32, 5, (0, bytes(32)), (), (raw(Writer("box", "m")),))


def made(seed: bytes = SEED, seq: int = 2, keys: Keys = KEYS) -> tuple[Head, bytes]:
    content = build_commit(keys, seed, keys.enrolment(public_of(seed)), body_of(seed, seq))
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
    foreign = keys_of(b"R" * 16)
    head, content = made(keys=foreign)
    assert evidence_of(KEYS, head, content) is None
    stolen = INSIDE + public_of(OTHER) + CONTENT[-160:]
    assert evidence_of(KEYS, Head(writer_id(public_of(OTHER)), 2, bytes(32)), stolen) is None


@pytest.mark.parametrize("seed", [PRUNE, ENROL])
def test_the_keys_of_the_repository_are_no_writers(seed: bytes) -> None:
    head, content = made(seed=seed)
    evidence = evidence_of(KEYS, head, content)
    assert evidence is not None and evidence.container is None  # its directory is the work of a key holder all the same


def test_a_trailer_counts_only_with_its_signature() -> None:
    digest = hashlib.sha256(INSIDE).digest()
    signature = sign(SEED, commit_message(KEYS.root, HEAD.writer, HEAD.seq, trailer_of(CONTENT)))
    front = public_of(SEED) + KEYS.enrolment(public_of(SEED))
    assert evidence_of(KEYS, HEAD, front + digest + signature) == Evidence(digest, None)
    assert evidence_of(KEYS, HEAD, front + digest + sign(OTHER, b"")) is None
    assert evidence_of(KEYS, HEAD, front + b"d" * 32 + signature) is None


def test_nobody_without_the_keys_makes_evidence() -> None:
    """Anybody can make a key and sign with it: the trailer shows that a holder of a key slot enrolled the writer."""
    public = public_of(OTHER)
    own = sign(OTHER, enrolment_message(KEYS.root, public))
    for enrolment in (bytes(64), KEYS.enrolment(public_of(SEED)), own, keys_of(b"R" * 16).enrolment(public)):
        head, content = resigned(CONTENT, enrolment)
        assert evidence_of(KEYS, head, content) is None
        with pytest.raises(IntegrityError, match="nobody enrolled"):
            open_commit(KEYS, head, content)


def resigned(content: bytes, enrolment: bytes, seed: bytes = OTHER) -> tuple[Head, bytes]:
    """The container of a commit under the name and trailer of somebody else."""
    writer = writer_id(public_of(seed))
    trailer = trailer_of(content)._replace(public=public_of(seed), enrolment=enrolment)
    trailer = trailer._replace(signature=sign(seed, commit_message(KEYS.root, writer, HEAD.seq, trailer)))
    whole = content[:-TRAILER_SIZE] + b"".join(trailer)
    return Head(writer, HEAD.seq, hashlib.sha256(whole).digest()), whole


def test_a_signature_counts_in_its_own_context_and_repository_only() -> None:
    """The same keys in another repository, and every message of the format with another one's context."""
    trailer, public = trailer_of(CONTENT), public_of(SEED)
    message = commit_message(KEYS.root, HEAD.writer, HEAD.seq, trailer)
    foreign = commit_message(keys_of(b"R" * 16).root, HEAD.writer, HEAD.seq, trailer)
    contexts = [b"lamella/1 %s\0" % word for word in (b"commit", b"enrol", b"slot", b"prune")]
    others = [context + message.partition(b"\0")[2] for context in contexts[1:]]
    for signed in (foreign, *others, message[:-1]):
        with pytest.raises(IntegrityError):
            open_renamed(trailer._replace(signature=sign(SEED, signed)))
    enrolment = enrolment_message(KEYS.root, public)
    for signed in [context + enrolment.partition(b"\0")[2] for context in (contexts[0], *contexts[2:])]:
        for seed in (ENROL, PRUNE):
            wrong = trailer._replace(enrolment=sign(seed, signed))
            signature = sign(SEED, commit_message(KEYS.root, HEAD.writer, HEAD.seq, wrong))
            with pytest.raises(IntegrityError, match="nobody enrolled"):
                open_renamed(wrong._replace(signature=signature))


def open_renamed(trailer: Trailer) -> None:
    """Open the commit with another trailer, under the name that fits."""
    content = INSIDE + b"".join(trailer)
    open_commit(KEYS, HEAD._replace(sha256=hashlib.sha256(content).digest()), content)


def test_either_key_of_the_repository_enrols() -> None:
    trailer = trailer_of(CONTENT)
    for seed in (ENROL, PRUNE):
        enrolment = sign(seed, enrolment_message(KEYS.root, public_of(SEED)))
        made = trailer._replace(enrolment=enrolment)
        signature = sign(SEED, commit_message(KEYS.root, HEAD.writer, HEAD.seq, made))
        open_renamed(made._replace(signature=signature))


def test_the_signature_covers_the_enrolment() -> None:
    other = sign(PRUNE, enrolment_message(KEYS.root, public_of(SEED)))
    with pytest.raises(IntegrityError, match="signature"):
        open_renamed(trailer_of(CONTENT)._replace(enrolment=other))


def test_no_flipped_bit_gives_a_commit_under_the_name_that_fits() -> None:
    """Every bit of the trailer, and of the container with the trailer made to fit: its hash then is not signed."""
    for at in range(len(INSIDE), len(CONTENT)):
        for bit in range(8):
            damaged = CONTENT[:at] + bytes([CONTENT[at] ^ 1 << bit]) + CONTENT[at + 1 :]
            with pytest.raises(IntegrityError):
                open_renamed(trailer_of(damaged))
    for at in range(len(INSIDE)):
        for bit in range(8):
            inside = INSIDE[:at] + bytes([INSIDE[at] ^ 1 << bit]) + INSIDE[at + 1 :]
            trailer = trailer_of(CONTENT)._replace(container=hashlib.sha256(inside).digest())
            content = inside + b"".join(trailer)
            with pytest.raises(IntegrityError):
                open_commit(KEYS, HEAD._replace(sha256=hashlib.sha256(content).digest()), content)


@pytest.mark.parametrize("kind", [Kind.CHUNK, Kind.SEGMENT, Kind.INDEX])
def test_a_directory_of_other_kinds_is_none(kind: Kind) -> None:
    bound = HEAD.writer + HEAD.seq.to_bytes(8, "little")
    container, _ = build_single(KEYS, CATALOGUE, [(Kind.COMMIT, next(parts(b"x"))), (kind, b"y")], bound)
    assert evidence_of(KEYS, HEAD, container) is None
    assert evidence_of(KEYS, HEAD, build_single(KEYS, CATALOGUE, [(Kind.COMMIT, b"x")], bound)[0]) is not None
    assert evidence_of(KEYS, HEAD, build_single(KEYS, CATALOGUE, [(Kind.COMMIT, b"x")])[0]) is None


def test_junk_is_none() -> None:
    chosen = random.Random(6)
    for length in (0, 1, 8, 71, 72, 73, 191, 192, 193, 250, 5000):
        for junk in (bytes(length), chosen.randbytes(length), (CONTENT[:72] + chosen.randbytes(length))[:length]):
            assert evidence_of(KEYS, HEAD, junk) is None


def test_a_signed_record_counts_in_its_own_place_only() -> None:
    """Not in another repository of the same keys, nor in another commit, as another kind, or by another key."""
    writer, place = HEAD.writer, (7, b"b" * 32)
    record = raw(Forgo(HEAD, (3, b"l" * 32)))
    keys, foreign = (Keys(one.marker, one.bundle._replace(prune_seed=PRUNE)) for one in (KEYS, keys_of(b"R" * 16)))
    message = prune_signed_message(keys.root, writer, *place, record)

    def counts(
        signature: bytes, by: Keys = keys, of: WriterId = writer, seq: int = 7, type_: int = record.type
    ) -> bool:
        entry = ChainEntry(seq, place[1], 5, RawRecord(type_, record.value[:-64] + signature))
        return prune_signed(by, of, entry)

    good = sign(PRUNE, message)
    assert counts(good)
    assert not counts(good, by=foreign) and not counts(good, of=writer_id(public_of(OTHER)))
    assert not counts(good, seq=8) and not counts(good, type_=Remove.TYPE)
    assert not any(counts(sign(seed, message)) for seed in (ENROL, SEED, OTHER))
    for context in (b"commit", b"enrol", b"slot"):
        assert not counts(sign(PRUNE, b"lamella/1 " + context + b"\0" + message.partition(b"\0")[2]))
