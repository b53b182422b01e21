"""A small writer of the repository format, made from docs/FORMAT.md for the tests of rescue.py and from nothing else.

It favours being obviously right over speed: everything is kept in a dict of object name -> bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from backports import zstd
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

CHUNK = 1 << 16
RAW, ZLIB, ZSTD = 0, 1, 2
HOLE, ZERO, DATA = 0, 1, 2
Slot = tuple[int, bytes]


def prf(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()


def hkdf(ikm: bytes, salt: bytes, info: bytes, size: int = 32) -> bytes:
    return HKDF(SHA256(), size, salt, info).derive(ikm)


def xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def text(value: str) -> bytes:
    return bytes([len(value.encode())]) + value.encode()


def public_of(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def record(kind: int, value: bytes) -> bytes:
    return struct.pack("<HI", kind, len(value)) + value


def encode(codec: int, content: bytes) -> bytes:
    coders: dict[int, Callable[[bytes], bytes]] = {RAW: bytes, ZLIB: zlib.compress, ZSTD: zstd.compress}
    payload = coders[codec](content)
    if len(payload) >= len(content):
        codec, payload = RAW, content
    return struct.pack("<BI", codec, len(content)) + payload


@dataclass
class Blob:
    kind: int
    ident: bytes
    body: bytes


@dataclass
class Chain:
    """One writer."""

    key: Ed25519PrivateKey
    seq: int = 0
    prev: bytes = bytes(32)
    checkpoint: bytes = bytes(40)

    @property
    def writer(self) -> bytes:
        return hashlib.sha256(public_of(self.key)).digest()[:16]


@dataclass
class Writer:
    """A repository in memory. salt_number makes the salts, so that equal runs give equal bytes."""

    id_alg: int = 1
    aead: int = 1
    data_root: bytes = bytes(range(32))
    prune: Ed25519PrivateKey = field(default_factory=lambda: Ed25519PrivateKey.from_private_bytes(b"p" * 32))
    enrol: Ed25519PrivateKey = field(default_factory=lambda: Ed25519PrivateKey.from_private_bytes(b"e" * 32))
    objects: dict[str, bytes] = field(default_factory=dict)
    salt_number: int = 0
    admitted: set[bytes] = field(default_factory=set)
    """The writers that the prune key enrols in their commits."""

    def __post_init__(self) -> None:
        head = b"LAMELLA\0" + bytes([1, 0, self.id_alg]) + bytes(5) + b"repository-id-16"
        self.objects["lamella"] = head + public_of(self.prune) + public_of(self.enrol)
        self.r = hashlib.sha256(self.objects["lamella"]).digest()

    # keys

    def derive(self, purpose: bytes, name: bytes) -> bytes:
        info = b"lamella/1\0" + bytes([len(purpose)]) + purpose + bytes([len(name)]) + name
        return hkdf(self.data_root, self.r, info)

    def domain_keys(self, domain: bytes) -> tuple[bytes, bytes]:
        word = b"idh" if self.id_alg == 1 else b"idb"
        if domain == bytes(16):
            return self.derive(b"cat", b"enc"), self.derive(b"cat", word)
        return self.derive(b"enc", domain), self.derive(word, domain)

    def slot(
        self,
        kind: int,
        secret: bytes,
        role: int = 1,
        log_n: int = 15,
        bundle: bytes | None = None,
        by: Ed25519PrivateKey | None = None,
    ) -> str:
        cost = bytes([log_n, 8, 1]) if kind == 1 else bytes(3)
        salt = hashlib.sha256(b"slot" + bytes([kind, role]) + secret).digest()
        head = b"LMLSLOT\x01" + bytes([kind, role]) + cost + bytes(3) + salt
        if kind == 1:
            kek = Scrypt(salt, 32, 1 << log_n, 8, 1).derive(secret)
        else:
            kek = hkdf(secret, salt, b"lamella/1 kek\0" + self.r + head[:16])
        seed = b"p" * 32 if role == 1 else bytes(32)
        whole = head + xor(bundle or self.data_root + seed + b"e" * 32, hkdf(kek, self.r, b"wrap", 96))
        whole += prf(hkdf(kek, self.r, b"mac"), whole)
        whole += (by or self.prune).sign(b"lamella/1 slot\0" + self.r + whole)
        name = "keys/" + hashlib.sha256(whole).hexdigest()[:8]
        self.objects[name] = whole
        return name

    # blobs and containers

    def blob_id(self, domain: bytes, kind: int, content: bytes) -> bytes:
        key = self.domain_keys(domain)[1]
        if self.id_alg == 1:
            return prf(key, b"lml1" + bytes([kind]) + content)[:24]
        person = b"lml1" + bytes([kind]) + bytes(11)
        return hashlib.blake2b(content, key=key, digest_size=24, person=person).digest()

    def blob(self, domain: bytes, kind: int, content: bytes, codec: int = RAW) -> Blob:
        return Blob(kind, self.blob_id(domain, kind, content), encode(codec, content))

    def container(self, domain: bytes, blobs: list[Blob], bound: bytes = b"") -> bytes:
        self.salt_number += 1
        salt = hashlib.sha256(b"salt%d" % self.salt_number).digest()
        hdr = self.derive(b"hdr", b"")
        hint = xor(domain, prf(hdr, b"hint" + salt)[:16]) + prf(hdr, b"mac" + salt + domain)[:8]
        fixed = b"LMLPACK\x01" + bytes([self.aead, 1, 0, 0])
        additional = fixed + self.r + domain + bound
        pack_key = prf(self.domain_keys(domain)[0], b"pack" + bytes([self.aead]) + salt)
        cipher = AESGCM if self.aead == 1 else ChaCha20Poly1305

        def seal(kind: int, ident: bytes, body: bytes) -> bytes:
            return cipher(prf(pack_key, bytes([kind]) + ident)).encrypt(bytes(12), body, additional)

        content = self.directory(blobs)
        dir_id = prf(pack_key, b"dir" + content)[:24]
        directory = dir_id + seal(0, dir_id, struct.pack("<BI", 0, len(content)) + content)
        out = fixed + struct.pack("<I", len(directory)) + salt + hint + directory
        for b in blobs:
            out += bytes(-len(out) % 16) + seal(b.kind, b.ident, b.body)
        return out

    def directory(self, blobs: list[Blob]) -> bytes:
        """The content of a directory."""
        content = struct.pack("<BBH", 1, 0, len(blobs))
        for b in blobs:
            rlen = int.from_bytes(b.body[1:5], "little")
            content += b.ident + (len(b.body) + 16).to_bytes(3, "little") + struct.pack("<BI", b.kind, rlen)
        return content

    def put_pack(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        self.objects[f"p/{name[:2]}/{name}"] = data
        return name

    def pack(self, domain: bytes, blobs: list[Blob]) -> bytes:
        """Puts a pack; its name in 32 bytes."""
        unique = {(b.kind, b.ident): b for b in blobs}
        return bytes.fromhex(self.put_pack(self.container(domain, list(unique.values()))))

    # trees

    def tree(self, domain: bytes, volume: bytes, size: int, slots: dict[int, Slot]) -> tuple[bytes, list[Blob]]:
        """Root id and node blobs; slots: chunk number -> (type, id), HOLE where none is given."""
        chunks = -(-size // CHUNK)
        depth = next(d for d in range(1, 11) if 64**d >= max(1, chunks))
        blobs: list[Blob] = []

        def build(level: int, first: int) -> tuple[int, bytes, int]:
            span, inside = 64**level, min(64, -(-(chunks - first) // 64**level))
            here: list[Slot] = []
            count = 0
            for slot in range(inside):
                if level == 0:
                    here.append(slots.get(first + slot, (HOLE, b"")))
                    count += here[-1][0] == DATA
                else:
                    kind, ident, below = build(level - 1, first + slot * span)
                    here.append((kind, ident))
                    count += below
            types = {kind for kind, _ in here}
            if level + 1 < depth and types in ({HOLE}, {ZERO}):
                return types.pop(), b"", 0
            bits = sum(kind << 2 * i for i, (kind, _) in enumerate(here))
            ids = [ident for kind, ident in here if kind == DATA]
            content = b"LMLN" + bytes([1, level, len(ids), 16]) + volume + struct.pack("<QQ", first, count)
            node = self.blob(domain, 3 if level else 2, content + bits.to_bytes(16, "little") + b"".join(ids))
            blobs.append(node)
            return DATA, node.ident, count

        return build(depth - 1, 0)[1], blobs

    # commits

    def commit(self, chain: Chain, records: bytes, seen: list[bytes] | None = None, checkpoint: bool = False) -> bytes:
        """Publishes the next commit of a chain; its SHA-256."""
        chain.seq += 1
        seen = seen or []
        body = b"\x01" + bytes(7) + chain.writer + struct.pack("<Q", chain.seq) + chain.prev
        body += struct.pack("<Q", 1_700_000_000_000 + chain.seq) + chain.checkpoint
        body += struct.pack("<I", len(seen)) + b"".join(seen) + records
        box = self.commit_box(chain, self.blob(bytes(16), 6, body, ZLIB))
        sha = self.put_commit(chain, box)
        chain.prev = sha
        if checkpoint:
            chain.checkpoint = struct.pack("<Q", chain.seq) + sha
        return sha

    def commit_box(self, chain: Chain, body: Blob) -> bytes:
        """The container of the commit that the chain has arrived at."""
        return self.container(bytes(16), [body], chain.writer + struct.pack("<Q", chain.seq))

    def put_commit(self, chain: Chain, box: bytes, key: Ed25519PrivateKey | None = None) -> bytes:
        trailer = public_of(chain.key) + self.enrolment(chain.key) + hashlib.sha256(box).digest()
        message = b"lamella/1 commit\0" + self.r + chain.writer + struct.pack("<Q", chain.seq) + trailer
        data = box + trailer + (key or chain.key).sign(message)
        sha = hashlib.sha256(data).digest()
        self.objects[f"w/{chain.writer.hex()}/{chain.seq:016x}-{sha.hex()}"] = data
        return sha

    def enrolment(self, key: Ed25519PrivateKey) -> bytes:
        by = self.prune if Chain(key).writer in self.admitted else self.enrol
        return by.sign(b"lamella/1 enrol\0" + self.r + public_of(key))

    def admission(self, *chains: Chain, closes: bool = True) -> bytes:
        """The value of an ADMIT for the writers of these chains, without its signature."""
        keys = [public_of(chain.key) for chain in chains]
        rows = [key + self.prune.sign(b"lamella/1 enrol\0" + self.r + key) for key in keys]
        return bytes([closes]) + struct.pack("<I", len(rows)) + b"".join(rows)

    def prune_sign(self, chain: Chain, kind: int, value: bytes) -> bytes:
        """A record for the next commit of the chain, signed by the prune key."""
        head = chain.writer + struct.pack("<Q", chain.seq + 1) + chain.prev + struct.pack("<HI", kind, len(value) + 64)
        return record(kind, value + self.prune.sign(b"lamella/1 prune\0" + self.r + head + value))

    def save(self, place: Path) -> Path:
        for name, data in self.objects.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return place


def ref(chain: Chain, seq: int, snap: bytes) -> bytes:
    return chain.writer + struct.pack("<Q", seq) + snap


CREATED: dict[bytes, bytes] = {}
"""Of volumes that somebody created, creator and nonce."""


def created(by: Chain, number: int) -> bytes:
    """The id of a volume that this writer creates."""
    made = by.writer + bytes([number]) * 16
    volume = hashlib.sha256(b"lamella/1 volume\0" + made).digest()[:16]
    CREATED[volume] = made
    return volume


def volume_record(volume: bytes, domain: bytes, name: str, label: str = "dom") -> bytes:
    identity = b"file:x:/" + name.encode()
    head = volume + domain + bytes([16]) + text(name) + text(label)
    end = CREATED.get(volume, bytes(32)) + bytes(32) + bytes(64)
    return record(2, head + struct.pack("<H", len(identity)) + identity + end)


@dataclass
class Snap:
    snap_id: bytes
    volume: bytes
    domain: bytes
    size: int
    root: bytes
    name: str
    packs: list[bytes] = field(default_factory=list)
    documents: list[tuple[str, int, list[bytes]]] = field(default_factory=list)
    parent: bytes = bytes(40)
    inner: bytes = b""
    flags: int = 0
    when: int = 1_763_837_101_000

    def value(self) -> bytes:
        out = self.snap_id + self.volume + self.domain + bytes([16, 2])
        out += struct.pack("<HQ", self.flags, self.size) + self.root + struct.pack("<Q", self.when)
        out += self.parent + text(self.name) + struct.pack("<H", len(self.documents))
        for name, size, parts in self.documents:
            out += text(name) + struct.pack("<QH", size, len(parts)) + b"".join(parts)
        return out + struct.pack("<I", len(self.packs)) + b"".join(self.packs) + self.inner

    def record(self) -> bytes:
        return record(3, self.value())
