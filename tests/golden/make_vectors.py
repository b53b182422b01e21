"""Writes vectors.json: docs/FORMAT.md followed literally, with no code of Lamella's.

Everything comes from fixed labels, so that each run writes the same bytes. Compressed payloads are assembled here bit
by bit, because the bytes a compressor makes differ between its versions.

Run it with `python tests/golden/make_vectors.py`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import struct
import unicodedata
import zlib
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

TARGET = Path(__file__).with_name("vectors.json")
CATALOGUE = bytes(16)
Json = dict[str, Any]


def fixed(label: str, length: int) -> bytes:
    """Bytes that look random and are the same in every run."""
    return hashlib.shake_256(b"lamella golden vectors: " + label.encode()).digest(length)


DATA_ROOT, PRUNE_SEED = fixed("data root", 32), fixed("prune seed", 32)
WRITER_SEED, DOMAIN, VOLUME = fixed("writer seed", 32), fixed("domain", 16), fixed("volume", 16)
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
    return b"LAMELLA\0" + bytes([1, minor, id_alg]) + bytes(5) + fixed("repo", 16) + public(PRUNE_SEED)


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
    bundle = DATA_ROOT + (PRUNE_SEED if role == 1 else bytes(32)) + bytes(32)
    covered = head + salt + xor(bundle, hkdf(kek, root, b"wrap", 96))
    return covered + prf(hkdf(kek, root, b"mac"), covered)


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
    return "-".join(letters[at : at + 4] for at in range(0, 56, 4))


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

    def __init__(self, id_alg: int, domain: bytes, aead: int, label: str) -> None:
        self.id_alg, self.domain, self.aead = id_alg, domain, aead
        self.salt = fixed(f"salt of {label}", 32)
        self.k_pack = pack_key(id_alg, domain, aead, self.salt)

    def seal(self, kind: int, id_: bytes, plaintext: bytes) -> bytes:
        key = blob_key(self.k_pack, kind, id_)
        cipher = AESGCM(key) if self.aead == 1 else ChaCha20Poly1305(key)
        additional = self.header(0)[:12] + root_of(self.id_alg) + self.domain
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
        types[i // 4] |= (2 if isinstance(value, bytes) else value) << 2 * (i % 4)
    head = b"LMLN" + bytes([1, level, len(ids), chunk_log2]) + VOLUME + u64(first_chunk) + u64(data_below)
    return head + bytes(types) + b"".join(ids)


def tree_note(root: bytes, size: int, time_ms: int, chunk_log2: int, name: str) -> bytes:
    return b"LMLTREE\x01" + VOLUME + root + u64(size) + u64(time_ms) + u8(chunk_log2) + text(name)


# --- 8 commits -------------------------------------------------------------------------------------------------------

WRITER = hashlib.sha256(public(WRITER_SEED)).digest()[:16]


def record(kind: int, value: bytes) -> bytes:
    return u16(kind) + u32(len(value)) + value


def prune_signed(id_alg: int, seq: int, prev: bytes, kind: int, value: bytes) -> bytes:
    """The value with its signature behind it; its length counts the signature."""
    covered = b"lamella/1 prune" + b"\0" + root_of(id_alg) + WRITER + u64(seq) + prev
    covered += u16(kind) + u32(len(value) + 64) + value
    return value + signature(PRUNE_SEED, covered)


def commit(id_alg: int, seq: int, content: bytes) -> tuple[bytes, str]:
    """(object, name)"""
    container, _ = Pack(id_alg, CATALOGUE, 1, f"commit {seq}").container([(6, content, body(0, content, content))])
    covered = b"lamella/1 commit" + b"\0" + root_of(id_alg) + WRITER + u64(seq) + hashlib.sha256(container).digest()
    made = container + public(WRITER_SEED) + signature(WRITER_SEED, covered)
    return made, f"w/{WRITER.hex()}/{seq:016x}-{hashlib.sha256(made).hexdigest()}"


def fingerprint(root: bytes, heads: list[bytes]) -> str:
    digest = hashlib.sha256(b"lamella/1 heads" + b"\0" + root + b"".join(sorted(heads))).digest()
    letters = base64.b32encode(digest[:10]).decode()
    return "-".join(letters[at : at + 4] for at in range(0, 16, 4))


# --- the vectors -----------------------------------------------------------------------------------------------------


def marker_vectors() -> list[Json]:
    cases = [(1, 0), (2, 0), (1, 7)]
    return [
        {"id_alg": alg, "minor": minor, "bytes": marker(alg, minor).hex(), "R": root_of(alg).hex()}
        for alg, minor in cases
    ]


def slot_vectors() -> list[Json]:
    normal = unicodedata.normalize("NFC", PASSPHRASE).encode()
    secrets = {1: normal, 2: fixed("recovery", 32), 3: fixed("key file", 100)}
    rows: list[Json] = []
    for kind, role in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]:
        made = slot(1, kind, role, secrets[kind])
        name = "keys/" + hashlib.sha256(made).hexdigest()[:8]
        row: Json = {"type": kind, "role": role, "name": name, "secret": secrets[kind].hex(), "bytes": made.hex()}
        if kind == 1:
            row["passphrase"] = PASSPHRASE
        rows.append(row)
    return rows


def key_vectors() -> list[Json]:
    rows = []
    for alg in (1, 2):
        keys = {f"cat {name}": derive(alg, b"cat", name.encode()).hex() for name in ("enc", "idh", "idb")}
        keys |= {name: derive(alg, name.encode(), DOMAIN).hex() for name in ("enc", "idh", "idb")}
        salt = fixed("salt of a hint", 32)
        hints = [
            {"domain_id": d.hex(), "salt": salt.hex(), "hint": hint(alg, d, salt).hex()} for d in (DOMAIN, CATALOGUE)
        ]
        rows.append({"id_alg": alg, **keys, "hdr": derive(alg, b"hdr", b"").hex(), "hints": hints})
    return rows


def id_vectors() -> list[Json]:
    rows = []
    for alg in (1, 2):
        for kind in range(1, 8):
            domain = CATALOGUE if kind in (6, 7) else DOMAIN
            for content in (b"", fixed(f"content of kind {kind}", 100)):
                id_ = content_id(alg, domain, kind, content).hex()
                rows.append(
                    {"id_alg": alg, "domain_id": domain.hex(), "kind": kind, "content": content.hex(), "id": id_}
                )
    return rows


def chunk_contents() -> list[tuple[bytes, bytes]]:
    """(content, body) in each codec."""
    plain, run, mixed = fixed("plain chunk", 70), b"A" * (1 + 258 * 3), b"B" * 3000 + fixed("tail", 40)
    return [
        (plain, body(0, plain, plain)),
        (run, body(1, run, zlib_run(ord("A"), 3))),
        (mixed, body(2, mixed, zstd_run(ord("B"), 3000, fixed("tail", 40)))),
    ]


def blob_vectors() -> list[Json]:
    rows = []
    for alg, aead in ((1, 1), (2, 2)):
        pack = Pack(alg, DOMAIN, aead, f"blobs {aead}")
        for content, plain in chunk_contents():
            id_ = content_id(alg, DOMAIN, 1, content)
            keys: Json = {"K_pack": pack.k_pack.hex(), "K_blob": blob_key(pack.k_pack, 1, id_).hex()}
            head: Json = {"id_alg": alg, "aead": aead, "salt": pack.salt.hex(), "kind": 1, "id": id_.hex()}
            sealed = pack.seal(1, id_, plain).hex()
            rows.append({**head, **keys, "content": content.hex(), "body": plain.hex(), "sealed": sealed})
    return rows


def pack_vectors() -> list[Json]:
    rows = []
    for alg, aead in ((1, 1), (2, 2)):
        pack = Pack(alg, DOMAIN, aead, f"pack {aead}")
        made, blobs = pack.container([(1, content, plain) for content, plain in chunk_contents()])
        digest = hashlib.sha256(made).hexdigest()
        head = {"id_alg": alg, "aead": aead, "domain_id": DOMAIN.hex(), "salt": pack.salt.hex()}
        rows.append({**head, "name": f"p/{digest[:2]}/{digest}", "blobs": blobs, "bytes": made.hex()})
    return rows


def node_vectors() -> list[Json]:
    ids = [fixed(f"child {i}", 24) for i in range(3)]
    size = 64 * 65536 + 5 * 65536 + 17  # 70 chunks of 64 KiB, the last one short
    leaf: list[int | bytes] = [ids[0], 1, ids[1], 0, 1, ids[2], *[0] * 58]
    inner: list[int | bytes] = [1, ids[0], *[0] * 62]
    rows = []
    for level, first, below, slots in ((0, 64, 3, leaf), (1, 0, 3, inner)):
        place = {"volume_id": VOLUME.hex(), "size": size, "chunk_log2": 16, "level": level, "first_chunk": first}
        shown = [value.hex() if isinstance(value, bytes) else value for value in slots]
        made = node(level, first, below, slots, 16)
        rows.append({**place, "data_below": below, "slots": shown, "bytes": made.hex()})
    empty = {"volume_id": VOLUME.hex(), "size": 0, "chunk_log2": 16, "level": 0, "first_chunk": 0}
    rows.append({**empty, "data_below": 0, "slots": [0] * 64, "bytes": node(0, 0, 0, [0] * 64, 16).hex()})
    return rows


def document_vectors() -> Json:
    document = b"<domain/>\n" * 3
    root, size, time_ms = fixed("root", 24), 70 * 65536, 1_795_000_000_123
    note = {"volume_id": VOLUME.hex(), "root": root.hex(), "size": size, "time_ms": time_ms, "chunk_log2": 16}
    made = tree_note(root, size, time_ms, 16, "vm-\u00e4: root")
    return {
        "part": {"document": document.hex(), "bytes": (b"LMLDOCU\x01" + document).hex()},
        "note": {**note, "name": "vm-\u00e4: root", "bytes": made.hex()},
    }


def ref(seq: int) -> bytes:
    return WRITER + u64(seq) + fixed("snap", 16)


def add_snap() -> tuple[Json, bytes]:
    root, packs, parts = fixed("root", 24), [fixed("pack a", 32), fixed("pack b", 32)], [fixed("part", 24)]
    figures = record(0x8001, u8(2) + bytes(7) + u64(1000) + u64(200) + u64(3) + u64(2))
    unknown = record(0x8FFF, b"later")
    value = (
        fixed("snap", 16) + VOLUME + DOMAIN + u8(16) + u8(3) + u16(0) + u64(70 * 65536) + root + u64(1_795_000_000_000)
    )
    value += bytes(40) + text("20261122T184501Z-k3v9")
    value += u16(1) + text("domain.xml") + u64(30) + u16(1) + parts[0]
    value += u32(2) + b"".join(packs) + figures + unknown
    fields = {
        "snap_id": fixed("snap", 16).hex(), "volume_id": VOLUME.hex(), "domain_id": DOMAIN.hex(), "chunk_log2": 16,
        "consistency": 3, "size": 70 * 65536, "root": root.hex(), "time_ms": 1_795_000_000_000,
        "parent": bytes(40).hex(), "name": "20261122T184501Z-k3v9",
        "documents": [{"name": "domain.xml", "size": 30, "parts": [parts[0].hex()]}],
        "packs": [pack.hex() for pack in packs], "inner": [[0x8001, figures[6:].hex()], [0x8fff, b"later".hex()]],
        "figures": [2, 1000, 200, 3, 2],
    }  # fmt: skip
    return fields, value


def file_fields(name: str) -> tuple[Json, bytes]:
    digest = hashlib.sha256(marker(1)).digest()
    return {"name": name, "size": 64, "sha256": digest.hex()}, text(name) + u64(64) + digest


def first_records() -> list[Json]:
    """The records of commit 1, with the fields they are made of."""
    rows: list[Json] = [{"type": 1, "fields": {"label": "box", "machine": "f00d"}, "value": text("box") + text("f00d")}]
    identity = b"\x00\xffpool/vm"
    value = VOLUME + DOMAIN + u8(16) + text("vm: root") + text("all") + bytes16(identity)
    fields: Json = {
        "volume_id": VOLUME.hex(), "domain_id": DOMAIN.hex(), "chunk_log2": 16, "name": "vm: root", 
        "domain_label": "all", "identity": identity.hex(),
    }  # fmt: skip
    rows.append({"type": 2, "fields": fields, "value": prune_signed(1, 1, bytes(32), 2, value), "signed": True})
    rows.append({"type": 2, "fields": fields, "value": value + bytes(64), "signed": False})
    fields, value = add_snap()
    rows.append({"type": 3, "fields": fields, "value": value})
    for kind in (8, 9):
        fields, value = file_fields("lamella")
        rows.append(
            {"type": kind, "fields": fields, "value": prune_signed(1, 1, bytes(32), kind, value), "signed": True}
        )
    listed = [(VOLUME, "vm: root", 0, ""), (bytes(16), "vm: gone", 1, "no such volume")]
    value = text("20261122T184501Z-k3v9") + u8(1) + u16(2)
    value += b"".join(id_ + text(name) + u8(failed) + text(why) for id_, name, failed, why in listed)
    shown = [[id_.hex(), name, failed, why] for id_, name, failed, why in listed]
    fields = {"name": "20261122T184501Z-k3v9", "result": 1, "volumes": shown}
    rows.append({"type": 0x8001, "fields": fields, "value": value})
    return rows


def second_records(first: list[Json]) -> tuple[list[Json], Json, list[Json]]:
    """(records of commit 2, the catalogue segment of its checkpoint, the entries in segment and record)."""
    entries = [u64(1) + bytes(32) + u64(1_795_000_000_500) + record(row["type"], row["value"]) for row in first]
    shown = [
        {
            "seq": 1,
            "prev": bytes(32).hex(),
            "time_ms": 1_795_000_000_500,
            "type": row["type"],
            "value": row["value"].hex(),
        }
        for row in first
    ]
    segment = u8(1) + bytes(7) + b"".join(entries[:4])
    made, blobs = Pack(1, CATALOGUE, 2, "segment").container([(7, segment, body(0, segment, segment))])
    digest = hashlib.sha256(made)
    place = bytes.fromhex(blobs[0]["id"]) + digest.digest()
    value = u32(0) + u32(1) + place + b"".join(entries[4:])
    checkpoint = {"earlier": [], "segments": [[blobs[0]["id"], digest.hexdigest()]]}
    heads = [fixed("fork a", 32), fixed("fork b", 32)]
    forked = {"writer": fixed("other writer", 16).hex(), "seq": 9, "heads": [head.hex() for head in heads]}
    rows: list[Json] = [
        {"type": 4, "fields": {"refs": [ref(1).hex()]}, "value": u32(1) + ref(1)},
        {"type": 13, "fields": forked, "value": fixed("other writer", 16) + u64(9) + u8(2) + b"".join(heads)},
        {"type": 12, "fields": {**checkpoint, "entries": b"".join(entries[4:]).hex()}, "value": value},
    ]
    name = f"p/{digest.hexdigest()[:2]}/{digest.hexdigest()}"
    return rows, {"name": name, "bytes": made.hex(), "blobs": blobs, "entries": shown[:4]}, shown[4:]


def late_checkpoint() -> Json:
    """A CHECKPOINT that has earlier ones and neither segments nor entries."""
    earlier = [(64, fixed("checkpoint 64", 32)), (128, fixed("checkpoint 128", 32))]
    value = u32(2) + b"".join(u64(seq) + sha256 for seq, sha256 in earlier) + u32(0)
    fields = {"earlier": [[seq, sha256.hex()] for seq, sha256 in earlier], "segments": [], "entries": ""}
    return {"type": 12, "fields": fields, "value": value.hex()}


def commit_body(seq: int, prev: bytes, time_ms: int, seen: list[bytes], rows: list[Json]) -> bytes:
    head = u8(1) + bytes(7) + WRITER + u64(seq) + prev + u64(time_ms) + u64(0) + bytes(32)
    return head + u32(len(seen)) + b"".join(seen) + b"".join(record(row["type"], row["value"]) for row in rows)


def commit_vectors() -> Json:
    first = first_records()
    second, segment, entries = second_records(first)
    made_first, name_first = commit(1, 1, commit_body(1, bytes(32), 1_795_000_000_500, [], first))
    prev = hashlib.sha256(made_first).digest()
    seen = [fixed("other writer", 16) + u64(0x1_0000_0001) + fixed("other head", 32)]
    made_second, name_second = commit(1, 2, commit_body(2, prev, 1_795_000_060_000, seen, second))
    heads = [WRITER + u64(2) + hashlib.sha256(made_second).digest(), *seen]
    for row in (*first, *second):
        row["value"] = row["value"].hex()
    common = {"writer": WRITER.hex(), "public": public(WRITER_SEED).hex()}
    times = (1_795_000_000_500, 1_795_000_060_000)
    return {
        "commits": [
            {"seq": 1, "prev": bytes(32).hex(), "time_ms": times[0], "seen": [], "records": first, **common,
             "name": name_first, "bytes": made_first.hex()},
            {"seq": 2, "prev": prev.hex(), "time_ms": times[1], "seen": [row.hex() for row in seen], "records": second,
             **common, "name": name_second, "bytes": made_second.hex()},
        ],
        "segment": segment,
        "checkpoint_entries": entries,
        "late_checkpoint": late_checkpoint(),
        "heads": {"rows": [head.hex() for head in heads], "fingerprint": fingerprint(root_of(1), heads)},
    }  # fmt: skip


def build() -> Json:
    """All vectors; byte strings as hexadecimal text."""
    seeds = {"data_root": DATA_ROOT, "prune_seed": PRUNE_SEED, "writer_seed": WRITER_SEED, "domain_id": DOMAIN}
    recovery = [fixed("recovery", 32), bytes(32), b"\xff" * 32]
    return {
        "seeds": {name: value.hex() for name, value in seeds.items()},
        "markers": marker_vectors(),
        "slots": slot_vectors(),
        "recovery": [{"key": key.hex(), "text": recovery_text(key)} for key in recovery],
        "keys": key_vectors(),
        "ids": id_vectors(),
        "blobs": blob_vectors(),
        "packs": pack_vectors(),
        "nodes": node_vectors(),
        "documents": document_vectors(),
        **commit_vectors(),
    }


def rendered() -> str:
    """The text of vectors.json."""
    return json.dumps(build(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    TARGET.write_text(rendered(), encoding="utf-8")
