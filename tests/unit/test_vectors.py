"""Lamella against the committed vectors, which were made from docs/FORMAT.md without its code."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.ids import ChunkId, DomainId, RepoId, SnapId, VolumeId, WriterId
from lamella.base.signed import commit_message, enrolled_by
from lamella.base.trust import Opened
from lamella.crypto import chunk_id, recovery, seal, sign, slots, unseal
from lamella.crypto.derive import Bundle, DomainKeys, Keys
from lamella.format import commit, compression, container, document, inner, keyslot, known, marker, node, records
from lamella.format.carried import SEGMENT_HEAD, Room, decode_entries
from lamella.format.container import Kind
from lamella.format.cursor import Cursor
from tests.golden import make_vectors
from tests.unit.later_makers import LATER_MAKERS, add_snap

Json = dict[str, Any]
VECTORS: Json = json.loads(Path(make_vectors.TARGET).read_text(encoding="utf-8"))
SEEDS = {name: bytes.fromhex(value) for name, value in VECTORS["seeds"].items()}
unhex = bytes.fromhex


def mark(id_alg: int) -> marker.Marker:
    row = next(row for row in VECTORS["markers"] if row["id_alg"] == id_alg and row["minor"] == 0)
    return marker.decode(unhex(row["bytes"]))


def keys(id_alg: int) -> Keys:
    return Keys(mark(id_alg), Bundle(SEEDS["data_root"], SEEDS["enrol_seed"], SEEDS["prune_seed"]))


def test_the_generator_makes_the_committed_file() -> None:
    assert make_vectors.rendered() == Path(make_vectors.TARGET).read_text(encoding="utf-8")


@pytest.mark.parametrize("row", VECTORS["markers"])
def test_marker(row: Json) -> None:
    decoded = marker.decode(unhex(row["bytes"]))
    assert (decoded.id_alg, decoded.minor) == (row["id_alg"], row["minor"])
    assert decoded.encode().hex() == row["bytes"]
    assert decoded.root.hex() == row["R"]
    assert decoded.writable == (row["minor"] == 0)


@pytest.mark.parametrize("row", VECTORS["slots"])
def test_slot_opens(row: Json) -> None:
    slot = keyslot.decode(unhex(row["bytes"]), row["name"])
    assert slot.encode().hex() == row["bytes"]
    assert (slot.type, slot.role) == (row["type"], row["role"])
    secret = slots.Secret(keyslot.SlotType(row["type"]), unhex(row["secret"]))
    expected_seed = SEEDS["prune_seed"] if row["role"] == 1 else None
    assert slots.is_signed(mark(1), slot)
    assert slots.unwrap(mark(1), secret, slot) == (SEEDS["data_root"], SEEDS["enrol_seed"], expected_seed)
    if row["type"] == 1:
        assert slots.passphrase(row["passphrase"]) == secret


@pytest.mark.parametrize("row", VECTORS["recovery"])
def test_recovery_text(row: Json) -> None:
    secret = slots.Secret(keyslot.SlotType.RECOVERY, unhex(row["key"]))
    assert recovery.recovery_text(secret) == row["text"]
    assert recovery.recovery_key(row["text"]) == secret


@pytest.mark.parametrize("row", VECTORS["keys"])
def test_derived_keys_and_hints(row: Json) -> None:
    mine = keys(row["id_alg"])
    id_name = {1: "idh", 2: "idb"}[row["id_alg"]]
    domain, catalogue = mine.domain(DomainId(SEEDS["domain_id"])), mine.domain(DomainId(bytes(16)))
    assert (domain.enc.hex(), domain.id_key.hex()) == (row["enc"], row[id_name])
    assert (catalogue.enc.hex(), catalogue.id_key.hex()) == (row["cat enc"], row[f"cat {id_name}"])
    for made in row["hints"]:
        assert mine.hint(DomainId(unhex(made["domain_id"])), unhex(made["salt"])).hex() == made["hint"]
        assert mine.domain_of(unhex(made["salt"]), unhex(made["hint"])) == unhex(made["domain_id"])


@pytest.mark.parametrize("row", VECTORS["ids"])
def test_id(row: Json) -> None:
    domain = keys(row["id_alg"]).domain(DomainId(unhex(row["domain_id"])))
    assert chunk_id.identifier(domain, Kind(row["kind"]))(unhex(row["content"])).hex() == row["id"]


def own_header(aead: int, salt: bytes) -> container.Header:
    return container.Header(aead, container.directory_length(1), salt, bytes(24))


@pytest.mark.parametrize("row", VECTORS["blobs"])
def test_sealed_blob(row: Json) -> None:
    domain = keys(row["id_alg"]).domain(DomainId(SEEDS["domain_id"]))
    content, body, sealed = unhex(row["content"]), unhex(row["body"]), unhex(row["sealed"])
    id_ = chunk_id.identifier(domain, Kind.CHUNK)(content)
    assert id_.hex() == row["id"]
    salt = unhex(row["salt"])
    assert seal.PackSealer(domain, salt, row["aead"]).seal(Kind.CHUNK, id_, body) == sealed
    opener = unseal.PackOpener(domain, own_header(row["aead"], salt), "p")
    opened = opener.body(container.Blob(Kind.CHUNK, id_, 0, len(sealed), len(content)), sealed)
    assert opened == body
    assert compression.decode(opened, len(content), "p") == content


def open_container(content: bytes, id_alg: int, rows: list[Json], domain_id: bytes) -> list[bytes]:
    """The contents in a container, with everything about it compared to `rows`."""
    mine = keys(id_alg)
    header = container.decode_header(content[: container.FIRST_READ], "p")
    assert mine.domain_of(header.salt, header.hint) == domain_id
    domain = mine.domain(DomainId(domain_id))
    opener = unseal.PackOpener(domain, header, "p")
    blobs = container.decode_directory(opener.directory(content, header), header, "p")
    container.check_padding(content, header, blobs, "p")
    contents = []
    for blob, row in zip(blobs, rows, strict=True):
        assert (blob.kind, blob.id.hex()) == (row["kind"], row["id"])
        assert (blob.offset, blob.sealed_length) == (row["offset"], row["sealed_length"])
        sealed = content[blob.offset : blob.offset + blob.sealed_length]
        contents.append(compression.decode(opener.body(blob, sealed), blob.content_length, "p"))
        assert chunk_id.identifier(domain, blob.kind)(contents[-1]) == blob.id
        assert contents[-1].hex() == row["content"]
    return [bytes(content) for content in contents]


@pytest.mark.parametrize("row", VECTORS["packs"])
def test_whole_pack_opens(row: Json) -> None:
    content = unhex(row["bytes"])
    assert f"p/{row['name'][2:4]}/{hashlib.sha256(content).hexdigest()}" == row["name"]
    assert len(open_container(content, row["id_alg"], row["blobs"], SEEDS["domain_id"])) == 3


@pytest.mark.parametrize("row", VECTORS["packs"])
def test_any_byte_of_a_pack_changed_is_noticed_without_its_name(row: Json) -> None:
    content = unhex(row["bytes"])
    mine = keys(row["id_alg"])
    for at in range(len(content)):
        changed = content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
        if 48 <= at < 72:
            assert mine.domain_of(changed[16:48], changed[48:72]) is None
            continue
        if 16 <= at < 48:
            assert mine.domain_of(changed[16:48], changed[48:72]) is None
        with pytest.raises((IntegrityError, UnknownFormat)):
            read_again(changed, mine.domain(DomainId(SEEDS["domain_id"])))


def read_again(content: bytes, domain: DomainKeys) -> None:
    header = container.decode_header(content, "p")
    opener = unseal.PackOpener(domain, header, "p")
    blobs = container.decode_directory(opener.directory(content, header), header, "p")
    container.check_padding(content, header, blobs, "p")
    for blob in blobs:
        opener.body(blob, content[blob.offset : blob.offset + blob.sealed_length])


@pytest.mark.parametrize("row", VECTORS["packs"])
def test_whole_pack_is_made_again(row: Json) -> None:
    content = unhex(row["bytes"])
    mine = keys(row["id_alg"])
    sealer = seal.PackSealer(mine.domain(DomainId(SEEDS["domain_id"])), unhex(row["salt"]), row["aead"])
    bodies = [unhex(blob["body"]) for blob in VECTORS["blobs"] if blob["id_alg"] == row["id_alg"]]
    sealed = [
        sealer.seal(Kind(blob["kind"]), ChunkId(unhex(blob["id"])), body)
        for blob, body in zip(row["blobs"], bodies, strict=True)
    ]
    entries = [
        (Kind(blob["kind"]), unhex(blob["id"]), len(made), len(blob["content"]) // 2)
        for blob, made in zip(row["blobs"], sealed, strict=True)
    ]
    directory = sealer.seal_directory(container.encode_directory(entries))
    hint = mine.hint(DomainId(SEEDS["domain_id"]), sealer.salt)
    made_again = container.Header(row["aead"], len(directory), sealer.salt, hint).encode() + directory
    for blob in sealed:
        made_again += bytes(container.aligned(len(made_again)) - len(made_again)) + blob
    assert made_again == content


def slot_of(ids: bytes) -> ChunkId:
    return node.DeltaChunk.slot(ids[:24], ids[24:48], ids[48:]) if len(ids) == 72 else ChunkId(ids)


def ids_of(slot: node.SlotValue) -> node.SlotValue | bytes:
    return slot.encoded() if isinstance(slot, node.DeltaChunk) else slot


@pytest.mark.parametrize("row", VECTORS["nodes"])
def test_node(row: Json) -> None:
    shape = node.Shape(VolumeId(unhex(row["volume_id"])), row["size"], row["chunk_log2"])
    values = tuple(slot_of(unhex(slot)) if isinstance(slot, str) else node.Slot(slot) for slot in row["slots"])
    expected = node.Node(row["level"], row["first_chunk"], row["data_below"], values)
    assert node.encode(expected, shape).hex() == row["bytes"]
    found = node.decode(Opened(unhex(row["bytes"])), shape, row["level"], row["first_chunk"])
    assert found == expected
    assert [ids_of(slot) for slot in found.slots] == [ids_of(slot) for slot in values], "bases and differences, too"


def test_document_part() -> None:
    row = VECTORS["documents"]["part"]
    assert [part.hex() for part in document.parts(unhex(row["document"]))] == [row["bytes"]]
    assert document.part_of(Opened(unhex(row["bytes"])), "part").hex() == row["document"]


def test_tree_note() -> None:
    row = VECTORS["documents"]["note"]
    volume, root = VolumeId(unhex(row["volume_id"])), ChunkId(unhex(row["root"]))
    note = document.TreeNote(volume, root, row["size"], row["time_ms"], row["chunk_log2"], row["name"])
    assert note.encode().hex() == row["bytes"]


# --- records and commits ---------------------------------------------------------------------------------------------


def ref(text: str) -> records.Ref:
    raw = unhex(text)
    return records.Ref(WriterId(raw[:16]), int.from_bytes(raw[16:24], "little"), SnapId(raw[24:]))


def volume(fields: Json, signature: bytes) -> records.Volume:
    return records.Volume(
        VolumeId(unhex(fields["volume_id"])), DomainId(unhex(fields["domain_id"])), fields["chunk_log2"],
        fields["name"], fields["domain_label"], unhex(fields["identity"]),
        WriterId(unhex(fields["creator"])), unhex(fields["nonce"]),
        records.VolumeOrigin(RepoId(unhex(fields["origin"][0])), VolumeId(unhex(fields["origin"][1]))), signature,
    )  # fmt: skip


def run(fields: Json, signature: bytes) -> records.Run:
    rows = [
        records.RunVolume(VolumeId(unhex(id_)), name, bool(failed), why) for id_, name, failed, why in fields["volumes"]
    ]
    return records.Run(fields["name"], fields["result"] == 0, tuple(rows))


def checkpoint(fields: Json, signature: bytes) -> records.Checkpoint:
    earlier = tuple((seq, unhex(sha256)) for seq, sha256 in fields["earlier"])
    places = tuple(records.SegmentPlace(ChunkId(unhex(id_)), unhex(pack)) for id_, pack in fields["segments"])
    return records.Checkpoint(earlier, places, unhex(fields["entries"]))


MAKERS: dict[int, Callable[[Json, bytes], known.Known]] = {
    0x0001: lambda fields, _: records.Writer(fields["label"], fields["machine"]),
    0x0002: volume,
    0x0003: lambda fields, _: add_snap(fields),
    0x0004: lambda fields, _: records.Confirm(tuple(ref(row) for row in fields["refs"])),
    0x0008: lambda fields, sig: records.File(fields["name"], fields["size"], unhex(fields["sha256"]), sig),
    0x0009: lambda fields, sig: records.FileGone(fields["name"], fields["size"], unhex(fields["sha256"]), sig),
    0x000C: checkpoint,
    0x8001: run,
    **LATER_MAKERS,
}
RECORDS = [
    *(row for made in VECTORS["commits"] for row in made["records"]),
    VECTORS["late_checkpoint"],
    *VECTORS["later_records"],
]


def test_every_record_lamella_knows_has_a_vector() -> None:
    assert {kind.TYPE for kind in known.kinds()} == {row["type"] for row in RECORDS} == set(MAKERS)


@pytest.mark.parametrize("row", RECORDS, ids=[f"{row['type']:04x}" for row in RECORDS])
def test_record(row: Json) -> None:
    value = unhex(row["value"])
    signature = value[-64:] if "signed" in row else b""
    expected = MAKERS[row["type"]](row["fields"], signature)
    raw = records.RawRecord(row["type"], value)
    assert records.raw(expected) == raw
    assert known.understood(raw) == expected
    if row.get("signed"):
        writer = WriterId(unhex(VECTORS["commits"][0]["writer"]))
        message = records.prune_signed_message(mark(1).root, writer, 1, bytes(32), raw)
        assert sign.verified(mark(1).prune_public, signature, message)
        assert sign.sign(SEEDS["prune_seed"], message) == signature


def test_figures_and_unknown_inner_records() -> None:
    row = next(row for row in RECORDS if row["type"] == records.AddSnap.TYPE)
    snap = add_snap(row["fields"])
    assert snap.figures == records.Figures(*row["fields"]["figures"])
    assert snap.usable
    assert snap.inner[0] == records.Figures(*row["fields"]["figures"]).encode()


@pytest.mark.parametrize("row", VECTORS["origins"], ids=["direct", "over another"])
def test_origin(row: Json) -> None:
    snap = add_snap(next(one for one in RECORDS if one["type"] == records.AddSnap.TYPE)["fields"])
    first, copied = (
        inner.OriginPlace(RepoId(unhex(place["repo_id"])), records.Ref.decode(Cursor(unhex(place["ref"]), "a ref")))
        for place in (row["first"], row["copied"])
    )
    made = inner.Origin(first, copied)
    assert made.encode() == records.RawRecord(row["type"], unhex(row["value"]))
    copy = replace(snap, inner=(*snap.inner, made.encode()))
    assert copy.usable and inner.Origin.of(copy) == made
    assert inner.Origin.of(replace(copy, inner=(made.encode()._replace(value=unhex(row["value"])[:-1]),))) is None
    elsewhere = RepoId(bytes(16))
    assert inner.first_place(elsewhere, copied.ref, copy) == first
    assert inner.first_place(elsewhere, copied.ref, snap) == inner.OriginPlace(elsewhere, copied.ref)


@pytest.mark.parametrize("row", VECTORS["commits"], ids=["first", "second"])
def test_commit(row: Json) -> None:
    head = commit.parse_name(row["name"])
    assert head is not None and head.name == row["name"]
    assert (head.writer.hex(), head.seq) == (row["writer"], row["seq"])
    inside, trailer = commit.split_trailer(unhex(row["bytes"]), head)
    assert trailer.public.hex() == row["public"]
    assert commit.writer_id(trailer.public) == head.writer
    assert trailer.container == hashlib.sha256(inside).digest()
    message = commit_message(mark(1).root, head.writer, head.seq, trailer)
    by_admin = row["seq"] == 1
    assert (keys(1).enrolment(trailer.public) == trailer.enrolment) is by_admin
    signers = mark(1).signers
    by = enrolled_by(signers, trailer.public, trailer.enrolment, sign.verified)
    assert by == (signers.prune if by_admin else signers.enrol)
    assert sign.verified(trailer.public, trailer.signature, message)
    assert sign.sign(SEEDS["writer_seed"], message) == trailer.signature
    encoded = body_of(inside, head.writer + head.seq.to_bytes(8, "little"))
    raws = tuple(records.RawRecord(made["type"], unhex(made["value"])) for made in row["records"])
    seen = tuple(commit.Head(ref(made[:80]).writer, ref(made[:80]).seq, unhex(made[48:])) for made in row["seen"])
    expected = commit.Body(
        head.writer, head.seq, unhex(row["prev"]), row["time_ms"], (0, bytes(32)), seen, raws
    )  # fmt: skip
    assert commit.decode_body(encoded, head) == expected
    assert expected.encode() == encoded
    assert list(commit.parts(encoded)) == [encoded]


def body_of(inside: bytes, bound: bytes) -> bytes:
    header = container.decode_header(inside, "w")
    domain = keys(1).domain(DomainId(bytes(16)))
    opener = unseal.PackOpener(domain, header, "w", bound)
    blobs = container.decode_directory(opener.directory(inside, header), header, "w")
    container.check_padding(inside, header, blobs, "w")
    assert [blob.kind for blob in blobs] == [Kind.COMMIT]
    body = opener.body(blobs[0], inside[blobs[0].offset :])
    return bytes(compression.decode(body, blobs[0].content_length, "w"))


def entry(row: Json) -> commit.ChainEntry:
    raw = records.RawRecord(row["type"], unhex(row["value"]))
    return commit.ChainEntry(row["seq"], unhex(row["prev"]), row["time_ms"], raw)


def test_segment_and_entries_of_a_checkpoint() -> None:
    row = VECTORS["segment"]
    (content,) = open_container(unhex(row["bytes"]), 1, row["blobs"], bytes(16))
    expected = [entry(made) for made in row["entries"]]
    assert list(Room().segment(Opened(content), "s")) == expected
    assert SEGMENT_HEAD + b"".join(made.encode() for made in expected) == content
    made = records.Checkpoint.decode(Cursor(unhex(VECTORS["commits"][1]["records"][1]["value"]), "c"))
    assert list(decode_entries(made.entries, "c")) == [entry(row) for row in VECTORS["checkpoint_entries"]]
    assert made.segments[0].id.hex() == row["blobs"][0]["id"]


def test_head_fingerprint() -> None:
    rows = [unhex(row) for row in VECTORS["heads"]["rows"]]
    heads = [commit.Head(WriterId(row[:16]), int.from_bytes(row[16:24], "little"), row[24:]) for row in rows]
    for order in (heads, heads[::-1]):
        digest = hashlib.sha256(commit.fingerprint_message(mark(1).root, order)).digest()
        letters = base64.b32encode(digest[:10]).decode()
        assert "-".join(letters[at : at + 4] for at in range(0, 16, 4)) == VECTORS["heads"]["fingerprint"]
