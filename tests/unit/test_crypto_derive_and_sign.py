"""HKDF, Ed25519 and the separation of derived keys (FORMAT 3, 4)."""

from __future__ import annotations

import threading

import pytest

from lamella.base.ids import CATALOGUE, DomainId, RepoId
from lamella.crypto import chunk_id, sign
from lamella.crypto.algorithms import faster_algorithm
from lamella.crypto.derive import Bundle, Keys, hkdf
from lamella.format.container import Kind
from lamella.format.marker import BLAKE2B, HMAC_SHA256, Marker

unhex = bytes.fromhex
DOMAIN = DomainId(b"d" * 16)


def keys(id_alg: int = 1, repo: bytes = b"r" * 16, data_root: bytes = b"k" * 32) -> Keys:
    return Keys(Marker(RepoId(repo), b"p" * 32, b"e" * 32, id_alg), Bundle(data_root, b"e" * 32, None))


RFC_5869 = [
    (
        "0b" * 22,
        "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)).hex(),
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
        "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    (
        "0b" * 22,
        "",
        "",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
]
"""Test cases 1 to 3 of RFC 5869, appendix A."""


@pytest.mark.parametrize(("ikm", "salt", "info", "okm"), RFC_5869)
def test_hkdf(ikm: str, salt: str, info: str, okm: str) -> None:
    assert hkdf(unhex(ikm), unhex(salt), unhex(info), len(okm) // 2).hex() == okm


RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]
"""Tests 1 to 3 of RFC 8032, section 7.1."""


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_ed25519(seed: str, public: str, message: str, signature: str) -> None:
    assert sign.public_of(unhex(seed)).hex() == public
    assert sign.sign(unhex(seed), unhex(message)).hex() == signature
    assert sign.verified(unhex(public), unhex(signature), unhex(message))
    assert not sign.verified(unhex(public), unhex(signature), unhex(message) + b"\0")


def test_a_signature_with_any_byte_changed_is_refused() -> None:
    seed, message = b"s" * 32, b"message"
    public, signature = sign.public_of(seed), sign.sign(seed, message)
    for at in range(64):
        assert not sign.verified(public, signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :], message)
    for at in range(32):
        assert not sign.verified(public[:at] + bytes([public[at] ^ 1]) + public[at + 1 :], signature, message)


@pytest.mark.parametrize(
    ("public", "signature"), [(b"", b""), (bytes(31), bytes(64)), (bytes(32), b""), (b"x" * 33, b"")]
)
def test_malformed_keys_and_signatures_do_not_verify(public: bytes, signature: bytes) -> None:
    assert not sign.verified(public, signature, b"message")


def test_everything_derived_differs() -> None:
    values = set()
    variants = [keys(), keys(repo=b"R" * 16), keys(data_root=b"K" * 32), keys(id_alg=2)]
    for variant in variants:
        for domain in (CATALOGUE, DOMAIN, DomainId(b"e" * 16)):
            made = variant.domain(domain)
            values |= {made.enc, made.id_key}
    assert len(values) == len(variants) * 3 * 2


def test_a_hint_depends_on_the_salt_and_hides_the_domain() -> None:
    mine = keys()
    first, second = mine.hint(DOMAIN, b"1" * 32), mine.hint(DOMAIN, b"2" * 32)
    assert first[:16] != second[:16] and first[16:] != second[16:]
    assert mine.domain_of(b"2" * 32, first) is None
    assert keys(data_root=b"K" * 32).domain_of(b"1" * 32, first) is None


@pytest.mark.parametrize("id_alg", [HMAC_SHA256, BLAKE2B])
def test_an_identifier_serves_several_threads(id_alg: int) -> None:
    identify = chunk_id.identifier(keys(id_alg).domain(DOMAIN), Kind.CHUNK)
    contents = [bytes([n]) * 70_000 for n in range(40)]
    expected = [identify(content) for content in contents]
    results: list[list[bytes]] = [[], []]

    def work(slot: int) -> None:
        results[slot] = [identify(content) for content in contents]

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected, expected]
    assert len(set(expected)) == len(contents)


@pytest.mark.parametrize("id_alg", [HMAC_SHA256, BLAKE2B])
def test_an_id_does_not_depend_on_the_type_of_buffer_but_on_kind_and_domain(id_alg: int) -> None:
    domain, content = keys(id_alg).domain(DOMAIN), b"content"
    made = {
        chunk_id.identifier(domain, Kind.CHUNK)(value) for value in (content, bytearray(content), memoryview(content))
    }
    assert len(made) == 1
    kinds = {chunk_id.identifier(domain, kind)(content) for kind in Kind}
    assert len(kinds) == len(Kind)
    assert chunk_id.identifier(keys(id_alg).domain(CATALOGUE), Kind.CHUNK)(content) not in kinds


def test_the_faster_algorithm_is_one_of_the_two() -> None:
    assert faster_algorithm() in (HMAC_SHA256, BLAKE2B)
