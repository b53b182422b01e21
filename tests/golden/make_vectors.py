"""Writes vectors.json from fixed labels: each run writes the same bytes.

Run it with `python -m tests.golden.make_vectors`.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from pathlib import Path

from tests.golden.later_records import later_records, origins
from tests.golden.literal import (
    CATALOGUE,
    DATA_ROOT,
    DOMAIN,
    ENROL_SEED,
    NONCE,
    PASSPHRASE,
    PRUNE_SEED,
    VOLUME,
    WRITER,
    WRITER_SEED,
    Json,
    Pack,
    blob_key,
    body,
    bytes16,
    commit,
    content_id,
    derive,
    fingerprint,
    fixed,
    hint,
    marker,
    node,
    prune_signed,
    public,
    record,
    recovery_text,
    root_of,
    slot,
    text,
    tree_note,
    u8,
    u16,
    u32,
    u64,
    zlib_run,
    zstd_run,
)

TARGET = Path(__file__).with_name("vectors.json")


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
    differing: list[int | bytes] = [ids[0] + ids[1] + ids[2], ids[1], 1, ids[2] + ids[0] + ids[1], *[0] * 60]
    for level, first, below, slots in ((0, 64, 3, leaf), (1, 0, 3, inner), (0, 64, 3, differing)):
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
    origin = [fixed("repo b", 16), fixed("volume b", 16)]
    value += WRITER + NONCE + b"".join(origin)
    fields: Json = {
        "volume_id": VOLUME.hex(), "domain_id": DOMAIN.hex(), "chunk_log2": 16, "name": "vm: root", 
        "domain_label": "all", "identity": identity.hex(), "creator": WRITER.hex(), "nonce": NONCE.hex(),
        "origin": [one.hex() for one in origin],
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
    rows: list[Json] = [
        {"type": 4, "fields": {"refs": [ref(1).hex()]}, "value": u32(1) + ref(1)},
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
    made_first, name_first = commit(1, 1, commit_body(1, bytes(32), 1_795_000_000_500, [], first), PRUNE_SEED)
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
        "later_records": later_records(add_snap()),
        "origins": origins(),
        "heads": {"rows": [head.hex() for head in heads], "fingerprint": fingerprint(root_of(1), heads)},
    }  # fmt: skip


def build() -> Json:
    """All vectors; byte strings as hexadecimal text."""
    seeds = {"data_root": DATA_ROOT, "prune_seed": PRUNE_SEED, "enrol_seed": ENROL_SEED}
    seeds |= {"writer_seed": WRITER_SEED, "domain_id": DOMAIN}
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
