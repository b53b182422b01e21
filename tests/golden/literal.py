"""docs/FORMAT.md followed literally, with no code of Lamella's: what the golden vectors are made with.

Compressed payloads are assembled here bit by bit, because the bytes a compressor makes differ between its versions.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
import zlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

CATALOGUE = bytes(16)
Json = dict[str, Any]


def fixed(label: str, length: int) -> bytes:
    """Bytes that look random and are the same in every run."""
    return hashlib.shake_256(b"lamella golden vectors: " + label.encode()).digest(length)


DATA_ROOT, PRUNE_SEED, ENROL_SEED = fixed("data root", 32), fixed("prune seed", 32), fixed("enrol seed", 32)
WRITER_SEED, DOMAIN = fixed("writer seed", 32), fixed("domain", 16)
PASSPHRASE = "Zu\u0308rich \u212b 1"
"""Decomposed u-umlaut and the Angstrom sign: both change under NFC."""


# --- notation of the first paragraph ---------------------------------------------------------------------------------


def u8(value: int) -> bytes:
    return struct.pack("<B", value)


def u16(value: int) -> bytes:
    return struct.pack("<H", value)


def u24(value: int) -> bytes:
    return struct.pack("<I", value)[:3]


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str) -> bytes:
    return u8(len(value.encode())) + value.encode()


def bytes16(value: bytes) -> bytes:
    return u16(len(value)) + value


def prf(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()


def hkdf(ikm: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    key, block, output = prf(salt, ikm), b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = prf(key, block + info + u8(counter))
        output += block
    return output[:length]


def xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def signature(seed: bytes, message: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).sign(message)


# --- 2 marker, 3 slots and keys --------------------------------------------------------------------------------------


def marker(id_alg: int, minor: int = 0) -> bytes:
    head = b"LAMELLA\0" + bytes([1, minor, id_alg]) + bytes(5) + fixed("repo", 16)
    return head + public(PRUNE_SEED) + public(ENROL_SEED)


def root_of(id_alg: int) -> bytes:
    return hashlib.sha256(marker(id_alg, 0)).digest()


def slot(id_alg: int, kind: int, role: int, secret: bytes) -> bytes:
    root, salt = root_of(id_alg), fixed(f"slot {id_alg} {kind} {role}", 32)
    log_n, r, p = (15, 8, 1) if kind == 1 else (0, 0, 0)
    head = b"LMLSLOT\x01" + bytes([kind, role, log_n, r, p]) + bytes(3)
    if kind == 1:
        limit = 128 * r * (2**log_n + p + 2) + 2**20
        kek = hashlib.scrypt(secret, salt=salt, n=2**log_n, r=r, p=p, maxmem=limit, dklen=32)
    else:
        kek = hkdf(secret, salt, b"lamella/1 kek" + b"\0" + root + head)
    bundle = DATA_ROOT + (PRUNE_SEED if role == 1 else bytes(32)) + ENROL_SEED
    covered = head + salt + xor(bundle, hkdf(kek, root, b"wrap", 96))
    covered += prf(hkdf(kek, root, b"mac"), covered)
    return covered + signature(PRUNE_SEED, b"lamella/1 slot" + b"\0" + root + covered)


def derive(id_alg: int, purpose: bytes, id_: bytes) -> bytes:
    info = b"lamella/1" + b"\0" + u8(len(purpose)) + purpose + u8(len(id_)) + id_
    return hkdf(DATA_ROOT, root_of(id_alg), info)


def enc_key(id_alg: int, domain: bytes) -> bytes:
    return derive(id_alg, b"cat", b"enc") if domain == CATALOGUE else derive(id_alg, b"enc", domain)


def id_key(id_alg: int, domain: bytes) -> bytes:
    purpose = {1: b"idh", 2: b"idb"}[id_alg]
    return derive(id_alg, b"cat", purpose) if domain == CATALOGUE else derive(id_alg, purpose, domain)


def recovery_text(key: bytes) -> str:
    letters = base64.b32encode(key + hashlib.sha256(b"lamella recovery" + key).digest()[:3]).decode()
    return "-".join(checked_group(at // 4 + 1, letters[at : at + 4]) for at in range(0, 56, 4))


def checked_group(number: int, group: str) -> str:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    total = 0
    for power, value in zip((5, 4, 3, 2, 1), (number, *map(letters.index, group)), strict=True):
        total ^= value << power
    for bit in range(9, 4, -1):  # the remainder of a division by x^5 + x^2 + 1
        if total >> bit & 1:
            total ^= 0b100101 << (bit - 5)
    return group + letters[total]


# --- 4 contents, ids, blobs ------------------------------------------------------------------------------------------


def content_id(id_alg: int, domain: bytes, kind: int, content: bytes) -> bytes:
    key = id_key(id_alg, domain)
    if id_alg == 1:
        return prf(key, b"lml1" + u8(kind) + content)[:24]
    return hashlib.blake2b(content, key=key, digest_size=24, person=b"lml1" + u8(kind) + bytes(11)).digest()


def zlib_run(byte: int, matches: int) -> bytes:
    """A zlib stream for `1 + 258 * matches` times one byte below 144: one block in the fixed codes of RFC 1951."""
    bits = "1" + "10"  # last block; type 01, low bit first
    bits += f"{0x30 + byte:08b}"
    bits += (f"{0b11000101:08b}" + "00000") * matches  # length 258, distance 1
    bits += "0000000"
    bits += "0" * (-len(bits) % 8)
    packed = bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))
    return b"\x78\x01" + packed + zlib.adler32(bytes([byte]) * (1 + 258 * matches)).to_bytes(4, "big")


def zstd_run(byte: int, length: int, tail: bytes) -> bytes:
    """A zstd frame (RFC 8878) for `length` times one byte and `tail`: an RLE block and a raw block, one segment."""
    blocks = u24(length << 3 | 1 << 1) + u8(byte) + u24(len(tail) << 3 | 1) + tail
    return b"\x28\xb5\x2f\xfd" + u8(2 << 6 | 1 << 5) + u32(length + len(tail)) + blocks


def body(codec: int, content: bytes, payload: bytes) -> bytes:
    return u8(codec) + u32(len(content)) + payload


def pack_key(id_alg: int, domain: bytes, aead: int, salt: bytes) -> bytes:
    return prf(enc_key(id_alg, domain), b"pack" + u8(aead) + salt)


def blob_key(k_pack: bytes, kind: int, id_: bytes) -> bytes:
    return prf(k_pack, u8(kind) + id_)


class Pack:
    """What the blobs of one container share."""

    def __init__(self, id_alg: int, domain: bytes, aead: int, label: str, bound: bytes = b"") -> None:
        self.id_alg, self.domain, self.aead, self.bound = id_alg, domain, aead, bound
        self.salt = fixed(f"salt of {label}", 32)
        self.k_pack = pack_key(id_alg, domain, aead, self.salt)

    def seal(self, kind: int, id_: bytes, plaintext: bytes) -> bytes:
        key = blob_key(self.k_pack, kind, id_)
        cipher = AESGCM(key) if self.aead == 1 else ChaCha20Poly1305(key)
        additional = self.header(0)[:12] + root_of(self.id_alg) + self.domain + self.bound
        return cipher.encrypt(bytes(12), plaintext, additional)

    def header(self, dir_len: int) -> bytes:
        start = b"LMLPACK\x01" + bytes([self.aead, 1]) + u16(0) + u32(dir_len)
        return start + self.salt + hint(self.id_alg, self.domain, self.salt)

    def container(self, contents: list[tuple[int, bytes, bytes]]) -> tuple[bytes, list[Json]]:
        """(object, rows) from `(kind, content, body)`."""
        ids = [content_id(self.id_alg, self.domain, kind, content) for kind, content, _ in contents]
        sealed = [self.seal(kind, id_, plain) for (kind, _, plain), id_ in zip(contents, ids, strict=True)]
        directory = u8(1) + u8(0) + u16(len(contents))
        for (kind, content, _), id_, blob in zip(contents, ids, sealed, strict=True):
            directory += id_ + u24(len(blob)) + u8(kind) + u32(len(content))
        dir_id = prf(self.k_pack, b"dir" + directory)[:24]
        tail = dir_id + self.seal(0, dir_id, body(0, directory, directory))
        made = self.header(len(tail)) + tail
        rows: list[Json] = []
        for (kind, content, _), id_, blob in zip(contents, ids, sealed, strict=True):
            made += bytes(-len(made) % 16)
            place = {"offset": len(made), "sealed_length": len(blob)}
            rows.append({"kind": kind, "id": id_.hex(), **place, "content": content.hex()})
            made += blob
        return made, rows


# --- 5 container -----------------------------------------------------------------------------------------------------


def hint(id_alg: int, domain: bytes, salt: bytes) -> bytes:
    hdr = derive(id_alg, b"hdr", b"")
    return xor(domain, prf(hdr, b"hint" + salt)[:16]) + prf(hdr, b"mac" + salt + domain)[:8]


# --- 6 manifest tree -------------------------------------------------------------------------------------------------


def node(level: int, first_chunk: int, data_below: int, slots: list[int | bytes], chunk_log2: int) -> bytes:
    ids = [value for value in slots if isinstance(value, bytes)]
    types = bytearray(16)
    for i, value in enumerate(slots):
        # A difference has three ids: its own, the base's, that of what differs.
        kind = value if isinstance(value, int) else 3 if len(value) == 72 else 2
        types[i // 4] |= kind << 2 * (i % 4)
    head = b"LMLN" + bytes([1, level, len(ids), chunk_log2]) + VOLUME + u64(first_chunk) + u64(data_below)
    return head + bytes(types) + b"".join(ids)


def tree_note(root: bytes, size: int, time_ms: int, chunk_log2: int, name: str) -> bytes:
    return b"LMLTREE\x01" + VOLUME + root + u64(size) + u64(time_ms) + u8(chunk_log2) + text(name)


# --- 8 commits -------------------------------------------------------------------------------------------------------

WRITER = hashlib.sha256(public(WRITER_SEED)).digest()[:16]
NONCE = fixed("volume", 16)
VOLUME = hashlib.sha256(b"lamella/1 volume\0" + WRITER + NONCE).digest()[:16]


def record(kind: int, value: bytes) -> bytes:
    return u16(kind) + u32(len(value)) + value


def prune_signed(id_alg: int, seq: int, prev: bytes, kind: int, value: bytes) -> bytes:
    """The value with its signature behind it; its length counts the signature."""
    covered = b"lamella/1 prune" + b"\0" + root_of(id_alg) + WRITER + u64(seq) + prev
    covered += u16(kind) + u32(len(value) + 64) + value
    return value + signature(PRUNE_SEED, covered)


def enrolment(id_alg: int, seed: bytes) -> bytes:
    return signature(seed, b"lamella/1 enrol" + b"\0" + root_of(id_alg) + public(WRITER_SEED))


def commit(id_alg: int, seq: int, content: bytes, enrol_seed: bytes = ENROL_SEED) -> tuple[bytes, str]:
    """(object, name)"""
    pack = Pack(id_alg, CATALOGUE, 1, f"commit {seq}", WRITER + u64(seq))
    container, _ = pack.container([(6, content, body(0, content, content))])
    trailer = public(WRITER_SEED) + enrolment(id_alg, enrol_seed) + hashlib.sha256(container).digest()
    covered = b"lamella/1 commit" + b"\0" + root_of(id_alg) + WRITER + u64(seq) + trailer
    made = container + trailer + signature(WRITER_SEED, covered)
    return made, f"w/{WRITER.hex()}/{seq:016x}-{hashlib.sha256(made).hexdigest()}"


def fingerprint(root: bytes, heads: list[bytes]) -> str:
    digest = hashlib.sha256(b"lamella/1 heads" + b"\0" + root + b"".join(sorted(heads))).digest()
    letters = base64.b32encode(digest[:10]).decode()
    return "-".join(letters[at : at + 4] for at in range(0, 16, 4))
