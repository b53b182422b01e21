"""Sealing and opening: what is bound to what, and at most once (FORMAT 4, 5)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest

from lamella.base.errors import IntegrityError
from lamella.base.ids import ChunkId, DomainId, RepoId
from lamella.crypto.derive import Bundle, DomainKeys, Keys
from lamella.crypto.seal import PackSealer, new_salt
from lamella.crypto.unseal import AES_256_GCM, CHACHA20_POLY1305, PackOpener
from lamella.format.container import Blob, Header, Kind, encode_directory
from lamella.format.marker import Marker

ID = ChunkId(b"i" * 24)
SALT = b"s" * 32
BODY = b"\0\x05\0\0\0hello"
both = pytest.mark.parametrize("aead", [AES_256_GCM, CHACHA20_POLY1305])


def domain(repo: bytes = b"r" * 16, id_: bytes = b"d" * 16, data_root: bytes = b"k" * 32) -> DomainKeys:
    return Keys(Marker(RepoId(repo), b"p" * 32, b"e" * 32, 1), Bundle(data_root, b"e" * 32, None)).domain(DomainId(id_))


def opener(keys: DomainKeys, aead: int = 1, salt: bytes = SALT, length: int = 0) -> PackOpener:
    return PackOpener(keys, Header(aead, length, salt, bytes(24)), "p/name")


def blob(kind: Kind = Kind.CHUNK, id_: bytes = ID) -> Blob:
    return Blob(kind, ChunkId(id_), 0, 0, 0)


@both
def test_what_is_sealed_opens(aead: int) -> None:
    sealed = PackSealer(domain(), SALT, aead).seal(Kind.CHUNK, ID, BODY)
    assert len(sealed) == len(BODY) + 16
    assert opener(domain(), aead).body(blob(), sealed) == BODY


CHANGES: dict[str, Callable[[int], tuple[PackOpener, Blob]]] = {
    "kind": lambda aead: (opener(domain(), aead), blob(kind=Kind.LEAF)),
    "id": lambda aead: (opener(domain(), aead), blob(id_=b"j" * 24)),
    "salt": lambda aead: (opener(domain(), aead, b"t" * 32), blob()),
    "cipher": lambda aead: (opener(domain(), 3 - aead), blob()),
    "domain": lambda aead: (opener(domain(id_=b"e" * 16), aead), blob()),
    "repository": lambda aead: (opener(domain(repo=b"R" * 16), aead), blob()),
    "data root": lambda aead: (opener(domain(data_root=b"K" * 32), aead), blob()),
    "R alone": lambda aead: (opener(replace(domain(), root=b"R" * 32), aead), blob()),
    "domain id alone": lambda aead: (opener(replace(domain(), domain_id=DomainId(b"e" * 16)), aead), blob()),
}


@both
def test_what_is_bound_to_a_place_opens_nowhere_else(aead: int) -> None:
    sealer = PackSealer(domain(), SALT, aead, b"here")
    sealed, made = sealer.seal(Kind.CHUNK, ID, BODY), sealer.seal_directory(b"abcd")
    header = Header(aead, len(made), SALT, bytes(24))
    there = PackOpener(domain(), header, "w/name", b"here")
    assert there.body(blob(), sealed) == BODY
    assert there.directory(header.encode() + made, header) == b"abcd"
    for bound in (b"", b"her", b"here\0"):
        with pytest.raises(IntegrityError):
            PackOpener(domain(), header, "w/name", bound).body(blob(), sealed)
        with pytest.raises(IntegrityError):
            PackOpener(domain(), header, "w/name", bound).directory(header.encode() + made, header)


@both
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_opens_elsewhere(change: str, aead: int) -> None:
    sealed = PackSealer(domain(), SALT, aead).seal(Kind.CHUNK, ID, BODY)
    elsewhere, place = CHANGES[change](aead)
    with pytest.raises(IntegrityError) as caught:
        elsewhere.body(place, sealed)
    assert caught.value.obj == "p/name"


@both
def test_damage_anywhere_is_noticed(aead: int) -> None:
    sealed = PackSealer(domain(), SALT, aead).seal(Kind.CHUNK, ID, BODY)
    damaged = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(len(sealed))]
    for content in (*damaged, *(sealed[:length] for length in range(len(sealed))), sealed + b"\0"):
        with pytest.raises(IntegrityError):
            opener(domain(), aead).body(blob(), content)


def sealed_directory(aead: int, content: bytes) -> tuple[bytes, Header]:
    made = PackSealer(domain(), SALT, aead).seal_directory(content)
    header = Header(aead, len(made), SALT, bytes(24))
    return header.encode() + made, header


@both
def test_directory(aead: int) -> None:
    content = encode_directory([(Kind.CHUNK, ID, 21, 0)])
    head, header = sealed_directory(aead, content)
    assert header.directory_length == 24 + 5 + 4 + 32 + 16
    assert opener(domain(), aead).directory(head + b"blobs", header) == content
    for at in range(72, len(head)):
        with pytest.raises(IntegrityError):
            opener(domain(), aead).directory(head[:at] + bytes([head[at] ^ 1]) + head[at + 1 :], header)
    for length in range(72, len(head)):
        with pytest.raises(IntegrityError):
            opener(domain(), aead).directory(head[:length], header)


@pytest.mark.parametrize("body_head", [b"\1\4\0\0\0", b"\0\3\0\0\0", b"\0\4\0\0\1", b"\2\4\0\0\0"])
def test_a_directory_is_stored_raw_under_its_own_length(body_head: bytes) -> None:
    sealer = PackSealer(domain(), SALT)
    id_ = sealer.seal_directory(b"abcd")[:24]
    made = id_ + sealer.seal(Kind.DIRECTORY, ChunkId(id_), body_head + b"abcd")
    header = Header(1, len(made), SALT, bytes(24))
    with pytest.raises(IntegrityError):
        opener(domain()).directory(header.encode() + made, header)


def test_a_directory_under_an_id_that_is_not_its_own() -> None:
    sealer = PackSealer(domain(), SALT)
    made = ID + sealer.seal(Kind.DIRECTORY, ID, b"\0\4\0\0\0abcd")
    header = Header(1, len(made), SALT, bytes(24))
    with pytest.raises(IntegrityError):
        opener(domain()).directory(header.encode() + made, header)


def test_a_kind_and_id_is_reserved_once() -> None:
    sealer = PackSealer(domain(), SALT)
    sealer.reserve(Kind.CHUNK, ID)
    with pytest.raises(RuntimeError, match="sealed twice"):
        sealer.reserve(Kind.CHUNK, ID)
    sealer.reserve(Kind.LEAF, ID)
    sealer.reserve(Kind.CHUNK, ChunkId(b"j" * 24))
    PackSealer(domain(), b"t" * 32).reserve(Kind.CHUNK, ID)


def test_threads_that_hold_a_lock_reserve_once() -> None:
    sealer, lock, start = PackSealer(domain(), SALT), threading.Lock(), threading.Barrier(2)
    ids = [ChunkId(n.to_bytes(24, "little")) for n in range(3000)]

    def claim() -> set[ChunkId]:
        start.wait(30)
        mine = set()
        for id_ in ids:
            with lock, suppress(RuntimeError):
                sealer.reserve(Kind.CHUNK, id_)
                mine.add(id_)
        return mine

    with ThreadPoolExecutor(2) as pool:
        first, second = (future.result() for future in [pool.submit(claim), pool.submit(claim)])
    assert first | second == set(ids)
    assert not first & second


def test_salts_never_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    salts = {new_salt() for _ in range(5000)}
    assert len(salts) == 5000 and {len(salt) for salt in salts} == {32}
    monkeypatch.setattr("os.urandom", lambda size: bytes(size))
    with_broken_random = {new_salt() for _ in range(100)}
    assert len(with_broken_random) == 100


def test_salts_differ_even_if_all_clocks_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.urandom", lambda size: bytes(size))
    monkeypatch.setattr("time.clock_gettime_ns", lambda clock: 1)
    assert len({new_salt() for _ in range(100)}) == 100


def test_salts_differ_after_an_old_machine_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same random numbers, same counter and process number: the clock tells them apart."""
    monkeypatch.setattr("os.urandom", lambda size: bytes(size))
    made = []
    for moment in (1, 2):
        monkeypatch.setattr("lamella.crypto.seal._salts_made", iter([7]))
        monkeypatch.setattr("time.clock_gettime_ns", lambda clock, moment=moment: moment)
        made.append(new_salt())
    assert made[0] != made[1]


def test_a_machine_without_a_boot_id_makes_salts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> bytes:
        raise PermissionError(path)

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    assert len({new_salt(), new_salt()}) == 2
