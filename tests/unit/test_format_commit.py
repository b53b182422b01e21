"""Rules of commits, their names and trailers, and of records (FORMAT 8)."""

from __future__ import annotations

import hashlib

import pytest

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.ids import CATALOGUE, ChunkId, DomainId, SnapId, VolumeId, WriterId
from lamella.base.signed import Trailer
from lamella.base.trust import Opened
from lamella.format import commit, known, records
from lamella.format.carried import Room
from lamella.format.commit import Body, ChainEntry, Head
from lamella.format.records import RawRecord

WRITER = WriterId(b"w" * 16)
FIRST = Body(WRITER, 1, bytes(32), 5, (0, bytes(32)), (), ())


def read(body: Body, head: Head | None = None) -> Body:
    return commit.decode_body(body.encode(), head or Head(body.writer, body.seq, bytes(32)))


def test_a_first_and_a_later_commit() -> None:
    later = Body(WRITER, 2, b"p" * 32, 5, (1, b"c" * 32), (Head(WRITER, 1, b"h" * 32),), (RawRecord(0x9999, b"x"),))
    assert (read(FIRST), read(later)) == (FIRST, later)


@pytest.mark.parametrize(("seq", "prev"), [(1, b"p" * 32), (2, bytes(32)), (0, bytes(32)), (0, b"p" * 32)])
def test_only_the_first_commit_has_no_predecessor(seq: int, prev: bytes) -> None:
    with pytest.raises(IntegrityError):
        read(Body(WRITER, seq, prev, 5, (0, bytes(32)), (), ()))


@pytest.mark.parametrize("head", [Head(WRITER, 2, bytes(32)), Head(WriterId(b"v" * 16), 1, bytes(32))])
def test_a_body_that_contradicts_its_name(head: Head) -> None:
    with pytest.raises(IntegrityError):
        read(FIRST, head)


@pytest.mark.parametrize(("count", "fits"), [(1024, True), (1025, False)])
def test_at_most_1024_heads_are_seen(count: int, fits: bool) -> None:
    seen = tuple(Head(WriterId(n.to_bytes(16, "little")), n, bytes(32)) for n in range(count))
    body = Body(WRITER, 1, bytes(32), 5, (0, bytes(32)), seen, ())
    if fits:
        assert read(body) == body
        return
    with pytest.raises(IntegrityError):
        read(body)


def test_an_unknown_version_and_reserved_bytes() -> None:
    head, encoded = Head(WRITER, 1, bytes(32)), FIRST.encode()
    with pytest.raises(UnknownFormat):
        commit.decode_body(b"\x02" + encoded[1:], head)
    for at in range(1, 8):
        with pytest.raises(IntegrityError):
            commit.decode_body(encoded[:at] + b"\x01" + encoded[at + 1 :], head)


@pytest.mark.parametrize(
    "name",
    [
        "", "w/", "W/" + "a" * 32 + "/" + "0" * 16 + "-" + "b" * 64, "w/" + "a" * 32 + "/" + "0" * 16 + "-" + "b" * 63,
        "w/" + "A" * 32 + "/" + "0" * 16 + "-" + "b" * 64, "w/" + "a" * 32 + "/" + "0" * 16 + "-" + "b" * 64 + "\n",
        " w/" + "a" * 32 + "/" + "0" * 16 + "-" + "b" * 64, "w/" + "a" * 32 + "/" + "\u0660" * 16 + "-" + "b" * 64,
    ],
)  # fmt: skip
def test_what_is_no_name_of_a_commit(name: str) -> None:
    assert commit.parse_name(name) is None


PUBLIC = b"k" * 32
ENROLMENT = b"e" * 64
OBJECT = b"container" + PUBLIC + ENROLMENT + hashlib.sha256(b"container").digest() + b"s" * 64


def test_trailer() -> None:
    head = Head(commit.writer_id(PUBLIC), 1, hashlib.sha256(OBJECT).digest())
    assert commit.split_trailer(OBJECT, head) == (
        b"container",
        Trailer(PUBLIC, ENROLMENT, hashlib.sha256(b"container").digest(), b"s" * 64),
    )
    assert head.writer == hashlib.sha256(PUBLIC).digest()[:16]


@pytest.mark.parametrize("content", [b"", OBJECT[:-1], OBJECT + b"\0", OBJECT[-192:], OBJECT[:9]])
def test_a_commit_that_is_not_what_its_name_says(content: bytes) -> None:
    with pytest.raises(IntegrityError):
        commit.split_trailer(content, Head(commit.writer_id(PUBLIC), 1, hashlib.sha256(OBJECT).digest()))


@pytest.mark.parametrize("content", [b"", OBJECT[-191:], OBJECT[-192:]])
def test_an_object_that_is_no_more_than_a_trailer(content: bytes) -> None:
    with pytest.raises(IntegrityError):
        commit.split_trailer(content, Head(commit.writer_id(PUBLIC), 1, hashlib.sha256(content).digest()))


@pytest.mark.parametrize("at", [0, 8, 105, 136])
def test_a_trailer_that_names_another_container(at: int) -> None:
    content = OBJECT[:at] + bytes([OBJECT[at] ^ 1]) + OBJECT[at + 1 :]
    with pytest.raises(IntegrityError, match="another one's"):
        commit.split_trailer(content, Head(commit.writer_id(PUBLIC), 1, hashlib.sha256(content).digest()))


def test_another_writers_trailer() -> None:
    with pytest.raises(IntegrityError):
        commit.split_trailer(OBJECT, Head(WRITER, 1, hashlib.sha256(OBJECT).digest()))


@pytest.mark.parametrize("length", [1, (8 << 20) - 1, 8 << 20, (8 << 20) + 1, 16 << 20])
def test_bodies_are_cut_into_parts_of_8_mib(length: int) -> None:
    made = list(commit.parts(bytes(length)))
    assert b"".join(made) == bytes(length)
    assert all(len(part) == 8 << 20 for part in made[:-1]) and 0 < len(made[-1]) <= 8 << 20


@pytest.mark.parametrize("head", [b"", b"\x01", b"\x02" + bytes(7), b"\x01" + bytes(6) + b"\x01"])
def test_segments_of_another_kind(head: bytes) -> None:
    entry = ChainEntry(1, bytes(32), 5, RawRecord(1, b"x"))
    with pytest.raises(IntegrityError):
        list(Room().segment(Opened(head + entry.encode()), "s"))


def test_the_fingerprint_does_not_depend_on_the_order() -> None:
    heads = [Head(WriterId(bytes([n]) * 16), 300 - n, bytes([7 - n]) * 32) for n in range(5)]
    assert commit.fingerprint_message(b"R" * 32, heads) == commit.fingerprint_message(b"R" * 32, heads[::-1])
    assert commit.fingerprint_message(b"R" * 32, heads) != commit.fingerprint_message(b"R" * 32, heads[1:])


# --- records ---------------------------------------------------------------------------------------------------------

SNAP = records.AddSnap(
    SnapId(b"s" * 16), VolumeId(b"v" * 16), DomainId(b"d" * 16), 16, 1, 100, ChunkId(b"r" * 24), 0, records.NO_REF,
    "name",
)  # fmt: skip


def snap_bytes(at: int, value: bytes) -> RawRecord:
    encoded = SNAP.encode_value()
    return RawRecord(3, encoded[:at] + value + encoded[at + len(value) :])


@pytest.mark.parametrize(
    ("at", "value"), [(32, bytes(16)), (48, b"\x0f"), (48, b"\x17"), (49, b"\x06"), (50, b"\x01"), (51, b"\x80")]
)
def test_add_snap_out_of_range(at: int, value: bytes) -> None:
    with pytest.raises(IntegrityError):
        known.understood(snap_bytes(at, value))


def test_no_volume_lives_in_the_catalogue() -> None:
    volume = records.Volume(VolumeId(b"v" * 16), CATALOGUE, 16, "n", "l", b"", WriterId(bytes(16)), bytes(16))
    with pytest.raises(IntegrityError):
        known.understood(records.raw(volume))


@pytest.mark.parametrize("log2", [0, 15, 23, 255])
def test_chunk_sizes_of_volumes_have_the_range_of_trees(log2: int) -> None:
    volume = records.Volume(
        VolumeId(b"v" * 16), DomainId(b"d" * 16), log2, "n", "l", b"", WriterId(bytes(16)), bytes(16)
    )
    with pytest.raises(IntegrityError):
        known.understood(records.raw(volume))


def with_inner(*inner: RawRecord) -> records.AddSnap:
    snap = records.AddSnap(
        SNAP.snap_id, SNAP.volume_id, SNAP.domain_id, 16, 1, 100, SNAP.root, 0, records.NO_REF, "n", inner=inner
    )
    read = known.understood(records.raw(snap))
    assert isinstance(read, records.AddSnap)
    return read


def test_inner_records_of_later_versions() -> None:
    figures = records.Figures(1, 2, 3, 4, 5)
    assert with_inner(RawRecord(0x8002, b""), figures.encode()).usable
    assert with_inner(RawRecord(0x8002, b""), figures.encode()).figures == figures
    assert not with_inner(figures.encode(), RawRecord(0x7FFF, b"")).usable
    assert with_inner().figures is None


def test_a_confirmed_snapshot_loses_its_packs_only() -> None:
    snap = records.AddSnap(
        SNAP.snap_id, SNAP.volume_id, SNAP.domain_id, 16, 1, 100, SNAP.root, 0, records.NO_REF, "name", (), (b"p" * 32,)
    )
    assert snap.without_packs() == SNAP


@pytest.mark.parametrize("type_", [0x000E, 0x000F, 0x001F, 0x7FFF, 0x8000, 0xFFFF, 0])
def test_records_of_unknown_types_have_no_meaning(type_: int) -> None:
    assert known.understood(RawRecord(type_, b"anything")) is None


@pytest.mark.parametrize("value", [2, 128, 255])
def test_results_of_a_run_are_0_or_1(value: int) -> None:
    row = records.RunVolume(VolumeId(b"v" * 16), "n", True, "why")
    encoded = records.Run("run", False, (row,)).encode_value()
    at_run, at_row = 4, 4 + 1 + 2 + 16 + 2
    for at in (at_run, at_row):
        assert encoded[at] == 1
        with pytest.raises(IntegrityError):
            known.understood(RawRecord(0x8001, encoded[:at] + bytes([value]) + encoded[at + 1 :]))


def test_a_prune_signature_covers_everything_but_itself() -> None:
    record = RawRecord(8, b"value" + b"s" * 64)
    prev = b"p" * 32
    expected = b"lamella/1 prune\0" + b"R" * 32 + WRITER + (7).to_bytes(8, "little") + prev
    expected += b"\x08\x00" + (69).to_bytes(4, "little") + b"value"
    assert records.prune_signed_message(b"R" * 32, WRITER, 7, prev, record) == expected
    with pytest.raises(IntegrityError):
        records.prune_signed_message(b"R" * 32, WRITER, 7, prev, RawRecord(8, b"s" * 63))
