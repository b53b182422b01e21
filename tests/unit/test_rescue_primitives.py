"""Known answers for what rescue.py computes itself or through libcrypto, from the documents that define it."""

from __future__ import annotations

import hashlib
import struct
import zlib

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from lamella import rescue
from lamella.crypto.recovery import new_recovery_key, recovery_key, recovery_text

H = bytes.fromhex


def test_hkdf_rfc5869_cases_1_and_3() -> None:
    okm = H("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")
    assert rescue.hkdf(b"\x0b" * 22, H("000102030405060708090a0b0c"), H("f0f1f2f3f4f5f6f7f8f9"), 42) == okm
    okm = H("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8")
    assert rescue.hkdf(b"\x0b" * 22, b"", b"", 42) == okm


def test_aes_gcm_test_case_14_and_its_tag() -> None:
    """McGrew and Viega, test case 14: key, nonce and plaintext of zeros."""
    crypto = rescue.Crypto()
    sealed = H("cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919")
    assert crypto.open(1, bytes(32), b"", sealed) == bytes(16)
    for at in range(32):
        assert crypto.open(1, bytes(32), b"", sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]) is None
    assert crypto.open(1, bytes(32), b"x", sealed) is None
    assert crypto.open(1, bytes(32), b"", sealed[:15]) is None


# RFC 8032, section 7.1, TEST 1 to 3
ED25519 = [
    ("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
     "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
    ("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
     "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),
]  # fmt: skip


@pytest.mark.parametrize(("seed", "public", "message", "signature"), ED25519)
def test_ed25519_rfc8032(seed: str, public: str, message: str, signature: str) -> None:
    crypto = rescue.Crypto()
    assert crypto.public(H(seed)) == H(public)
    assert crypto.verify(H(public), H(signature), H(message))
    assert not crypto.verify(H(public), H(signature), H(message) + b"x")
    assert not crypto.verify(H(public), H(signature)[:-1] + b"\xff", H(message))
    assert not crypto.verify(bytes(31), H(signature), H(message))


def test_scrypt_rfc7914_is_what_the_slots_use() -> None:
    expected = "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
    expected += "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
    memory = 128 * 8 * (16384 + 1 + 2) + (1 << 20)
    got = hashlib.scrypt(b"pleaseletmein", salt=b"SodiumChloride", n=16384, r=8, p=1, maxmem=memory, dklen=64)
    assert got.hex() == expected


@given(st.binary(max_size=3000))
def test_codecs_give_back_what_was_compressed(content: bytes) -> None:
    assert rescue.inflate(zlib.compress(content), len(content)) == content
    assert rescue.unzstd(zstd.compress(content), len(content)) == content


@given(st.binary(max_size=200), st.integers(0, 10_000))
def test_arbitrary_frames_are_refused_or_of_the_stated_length(junk: bytes, rlen: int) -> None:
    for frame in (junk, b"\x28\xb5\x2f\xfd" + junk):
        try:
            content = rescue.unzstd(frame, rlen)
        except rescue.Bad:
            continue
        assert len(content) <= rlen


@pytest.mark.parametrize("change", [-1, 1, 7])
def test_codecs_refuse_another_length(change: int) -> None:
    content = b"abc" * 500
    with pytest.raises(rescue.Bad):
        rescue.inflate(zlib.compress(content), len(content) + change)
    with pytest.raises(rescue.Bad):
        rescue.inflate(zlib.compress(content) + b"\0", len(content))
    with pytest.raises(rescue.Bad):
        rescue.inflate(zlib.compress(content)[:-1], len(content))
    with pytest.raises(rescue.Bad):
        rescue.unzstd(zstd.compress(content), len(content) + change)


def frame(window_byte: int, size: int) -> bytes:
    """A zstd frame with a window descriptor, a 4-byte content size and one raw block of that size."""
    block = ((size << 3) | 1).to_bytes(3, "little") + bytes(size)
    return b"\x28\xb5\x2f\xfd\x80" + bytes([window_byte]) + struct.pack("<I", size) + block


def test_window_limit_is_the_content_or_one_kib() -> None:
    rescue.check_zstd_frame(frame(0x00, 500), 500)
    with pytest.raises(rescue.Bad):
        rescue.check_zstd_frame(frame(0x01, 500), 500)
    rescue.check_zstd_frame(frame(0x08, 2048), 2048)
    with pytest.raises(rescue.Bad):
        rescue.check_zstd_frame(frame(0x09, 2048), 2048)


def test_recovery_key_forgives_case_and_look_alikes_only() -> None:
    with pytest.raises(rescue.Problem) as caught:
        rescue.recovery_key("not base32 at all!")
    assert caught.value.code == 12


def test_recovery_keys_as_the_main_program_writes_them() -> None:
    for secret in (new_recovery_key() for _ in range(50)):
        text = recovery_text(secret)
        plain = "".join(group[:-1] for group in text.split("-"))
        for typed in (text, text.lower(), text.replace("-", ""), text.replace("-", "\n"), plain, f" {plain.lower()}\n"):
            assert rescue.recovery_key(typed) == recovery_key(typed).value == secret.value


def test_terminal_text_has_no_control_characters() -> None:
    assert rescue.shown("a\x1b[31m\u202eä") == "a\\x1b[31m\\u202eä"
