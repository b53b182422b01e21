"""Every decoder of the format: round trips, damage, and counts that promise more than there is."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamella.base.errors import IntegrityError, UnknownFormat
from lamella.base.ids import CATALOGUE, ChunkId, DomainId, RepoId, SnapId, VolumeId, WriterId
from lamella.base.trust import Opened
from lamella.format import (
    commit,
    container,
    deletion,
    document,
    keyslot,
    known,
    labels,
    lost,
    marker,
    node,
    owners,
    records,
    sessions,
)
from lamella.format.carried import SEGMENT_HEAD, Room, decode_entries
from lamella.format.container import Kind

REFUSALS = (IntegrityError, UnknownFormat)


class Sample(NamedTuple):
    """A value with the pair of functions under test; `decode` may depend on where the value is expected."""

    value: Any
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]

    @property
    def content(self) -> bytes:
        return self.encode(self.value)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


U8, U64 = st.integers(0, 255), st.integers(0, 2**64 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CHUNK_IDS = exactly(24).map(ChunkId)
WRITERS = exactly(16).map(WriterId)
VOLUMES = exactly(16).map(VolumeId)
REPOS = exactly(16).map(RepoId)
DOMAINS = exactly(16).filter(lambda raw: raw != CATALOGUE).map(DomainId)
REFS = st.builds(records.Ref, WRITERS, U64, exactly(16).map(SnapId))
HEADS = st.builds(commit.Head, WRITERS, U64, exactly(32))
RAW = st.builds(records.RawRecord, st.integers(0, 0xFFFF), st.binary(max_size=20))


def few(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=3).map(tuple)


# --- one strategy of samples for each decoder ------------------------------------------------------------------------

MARKERS = st.builds(marker.Marker, exactly(16).map(RepoId), exactly(32), exactly(32), st.sampled_from([1, 2]), U8).map(
    lambda value: Sample(value, marker.Marker.encode, marker.decode)
)


@st.composite
def slots(draw: st.DrawFn) -> Sample:
    type_, role = draw(st.sampled_from(keyslot.SlotType)), draw(st.sampled_from(keyslot.Role))
    salt, wrapped, mac, signature = (draw(exactly(size)) for size in (32, 96, 32, 64))
    by_passphrase = type_ == keyslot.SlotType.PASSPHRASE
    log_n, p = (draw(st.integers(15, 20)), draw(st.integers(1, 4))) if by_passphrase else (0, 0)
    value = keyslot.KeySlot(type_, role, salt, wrapped, mac, signature, log_n, p)
    # The name follows from the bytes: without the right one every damage would be refused for that alone.
    return Sample(value, keyslot.KeySlot.encode, lambda raw: keyslot.decode(raw, named(raw)))


def named(raw: bytes) -> str:
    return "keys/" + hashlib.sha256(raw).hexdigest()[:8]


HEADERS = st.builds(
    container.Header,
    st.sampled_from([1, 2]),
    st.integers(1, container.MAX_BLOBS).map(container.directory_length),
    exactly(32),
    exactly(24),
).map(lambda value: Sample(value, container.Header.encode, lambda raw: container.decode_header(raw[:72], "p")))


@st.composite
def directories(draw: st.DrawFn) -> Sample:
    kinds = st.sampled_from(sorted(set(Kind) - {Kind.DIRECTORY}))
    keys = draw(st.lists(st.tuples(kinds, exactly(24)), min_size=1, max_size=6, unique=True))
    entries = []
    for kind, id_ in keys:
        rlen = draw(st.integers(0, container.max_content(kind)))
        entries.append((kind, id_, draw(st.integers(21, 21 + rlen)), rlen))
    header = container.Header(1, container.directory_length(len(keys)), bytes(32), bytes(24))

    def again(raw: bytes) -> list[tuple[Kind, bytes, int, int]]:
        blobs = container.decode_directory(Opened(raw), header, "p")
        return [(blob.kind, bytes(blob.id), blob.sealed_length, blob.content_length) for blob in blobs]

    return Sample(entries, container.encode_directory, again)


@st.composite
def nodes(draw: st.DrawFn) -> Sample:
    shape = node.Shape(draw(VOLUMES), draw(st.integers(0, 2**40)), draw(st.integers(16, 22)))
    level = draw(st.integers(0, shape.depth - 1))
    span = 64 ** (level + 1)
    first = draw(st.integers(0, max(0, shape.chunks - 1) // span)) * span
    inside = min(64, max(0, -(-(shape.chunks - first) // 64**level)))
    values: list[Any] = draw(
        st.lists(st.sampled_from([node.Slot.HOLE, node.Slot.ZERO]) | CHUNK_IDS, min_size=inside, max_size=inside)
    )
    is_root = first == 0 and level == shape.depth - 1
    if not is_root and not any(isinstance(value, bytes) for value in values):
        values[0] = draw(CHUNK_IDS)
    count = sum(isinstance(value, bytes) for value in values)
    below = draw(st.integers(0, count * 64**level)) if level else count
    value = node.Node(level, first, below, (*values, *[node.Slot.HOLE] * (64 - inside)))
    return Sample(
        value, lambda made: node.encode(made, shape), lambda raw: node.decode(Opened(raw), shape, level, first)
    )


@st.composite
def bodies(draw: st.DrawFn) -> Sample:
    writer, seq = draw(WRITERS), draw(st.integers(1, 2**64 - 1))
    prev = bytes(32) if seq == 1 else draw(exactly(32).filter(any))
    before = draw(st.integers(0, seq - 1))
    checkpoint = (before, draw(exactly(32).filter(any)) if before else bytes(32))
    value = commit.Body(writer, seq, prev, draw(U64), checkpoint, draw(few(HEADS)), draw(few(RAW)))
    head = commit.Head(writer, seq, bytes(32))
    return Sample(value, commit.Body.encode, lambda raw: commit.decode_body(raw, head))


# No commit has the number 0, and checkpoints carry no checkpoint.
CARRIED = RAW.filter(lambda record: record.type != records.Checkpoint.TYPE)
ENTRIES = few(st.builds(commit.ChainEntry, st.integers(1, 2**64 - 1), exactly(32), U64, CARRIED))


def joined(entries: tuple[commit.ChainEntry, ...]) -> bytes:
    return b"".join(entry.encode() for entry in entries)


ENTRY_LISTS = ENTRIES.map(lambda value: Sample(value, joined, lambda raw: tuple(decode_entries(raw, "e"))))
SEGMENTS = ENTRIES.map(
    lambda value: Sample(
        value,
        lambda made: SEGMENT_HEAD + joined(made),
        lambda raw: tuple(Room().segment(Opened(raw), "s")),
    )
)
PARTS = st.binary(min_size=1, max_size=60).map(
    lambda value: Sample(
        value,
        lambda made: b"".join(document.parts(made)) if made else document.PART_MAGIC,
        lambda raw: document.part_of(Opened(raw), "d"),
    )
)
FIGURES = st.builds(records.Figures, U8, U64, U64, U64, U64).map(
    lambda value: Sample(value, lambda made: made.encode().value, records.Figures.decode)
)
SIGNATURES = exactly(64)


def _document(name: str, parts: tuple[ChunkId, ...], last: int) -> records.Document:
    size = (len(parts) - 1) * records.DOCUMENT_PART + last if parts else 0
    return records.Document(name, size, parts)


DOCUMENTS = st.builds(_document, TEXT, few(CHUNK_IDS), st.integers(1, records.DOCUMENT_PART))
ADD_SNAPS = st.builds(
    records.AddSnap,
    snap_id=exactly(16).map(SnapId), volume_id=VOLUMES, domain_id=DOMAINS, chunk_log2=st.integers(16, 22),
    consistency=st.integers(0, 4), size=st.integers(0, 2**63 - 1), root=CHUNK_IDS, time_ms=U64, parent=REFS, name=TEXT,
    documents=few(DOCUMENTS), packs=few(exactly(32)), inner=few(RAW),
)  # fmt: skip
IDS, PACKS = exactly(16), few(exactly(32))
BASES = st.builds(sessions.SessionVolume, VOLUMES, TEXT, REFS, CHUNK_IDS)
PARTIAL = st.builds(sessions.PartialRoot, VOLUMES, DOMAINS, CHUNK_IDS, U64, st.integers(16, 22), U64)
U40 = st.integers(0, 1 << 40)


def lost_record(ref: records.Ref, pairs: list[tuple[int, int]], names: list[str], signature: bytes) -> lost.Lost:
    made = lost.Lost.of(ref, sorted((start, start + length) for start, length in pairs), names)
    return replace(made, signature=signature)


PACK_KINDS = st.sampled_from([Kind.CHUNK, Kind.LEAF, Kind.INNER, Kind.DOCUMENT, Kind.SEGMENT])
BAD_HEADS = st.builds(lost.Address, exactly(32), st.just(Kind.DIRECTORY), st.just(ChunkId(bytes(24))))
ADDRESSES = st.builds(lost.Address, exactly(32), PACK_KINDS, exactly(24).filter(any).map(ChunkId)) | BAD_HEADS


RECORDS: dict[str, st.SearchStrategy[Any]] = {
    "TAG": st.builds(labels.Tag, REFS, st.booleans(), TEXT, SIGNATURES),
    "RENAME": st.builds(records.Rename, VOLUMES, TEXT, SIGNATURES),
    "PIN": st.builds(labels.Pin, REFS, st.booleans(), TEXT, SIGNATURES),
    "SESSION": st.builds(sessions.Session, IDS, TEXT, few(BASES), PACKS, few(PARTIAL)),
    "ABANDON": st.builds(sessions.Abandon, IDS),
    "REMOVE": st.builds(deletion.Remove, few(REFS), SIGNATURES),
    "CONDEMN": st.builds(deletion.Condemn, IDS, PACKS, few(HEADS), SIGNATURES),
    "RESCUE": st.builds(deletion.Rescue, IDS, PACKS, SIGNATURES),
    "REAPED": st.builds(deletion.Reaped, IDS, PACKS, few(HEADS), SIGNATURES),
    "RETIRE": st.builds(deletion.Retire, HEADS, SIGNATURES),
    "SEEN": st.builds(records.Seen, few(st.tuples(WRITERS, U64))),
    "AUDITED": st.builds(deletion.Audited, HEADS, SIGNATURES),
    "FORGO": st.builds(deletion.Forgo, HEADS, st.tuples(U64, exactly(32)), SIGNATURES),
    "REVIVE": st.builds(deletion.Revive, REFS, ADD_SNAPS, SIGNATURES),
    "REMOVE_LAST": st.builds(deletion.RemoveLast, few(REFS), SIGNATURES),
    "WRITER": st.builds(records.Writer, TEXT, TEXT),
    "VOLUME": st.builds(
        records.Volume,
        VOLUMES,
        DOMAINS,
        st.integers(16, 22),
        TEXT,
        TEXT,
        st.binary(max_size=40),
        WRITERS,
        exactly(16),
        st.builds(records.VolumeOrigin, REPOS, VOLUMES),
        SIGNATURES,
    ),
    "ADD_SNAP": ADD_SNAPS,
    "CONFIRM": st.builds(records.Confirm, few(REFS)),
    "FILE": st.builds(records.File, TEXT, U64, exactly(32), SIGNATURES),
    "FILE_GONE": st.builds(records.FileGone, TEXT, U64, exactly(32), SIGNATURES),
    "SUCCEEDS": st.builds(owners.Succeeds, exactly(32), exactly(64)),
    "JOIN": st.builds(owners.Join, WRITERS, WRITERS, SIGNATURES),
    "GIVE": st.builds(owners.Give, VOLUMES, WRITERS, SIGNATURES),
    "EXPEL": st.builds(owners.Expel, exactly(16), HEADS, few(WRITERS), SIGNATURES),
    "READMIT": st.builds(owners.Readmit, exactly(16), SIGNATURES),
    "ADMIT": st.builds(owners.Admit, st.booleans(), few(st.tuples(exactly(32), exactly(64))), SIGNATURES),
    "RUN": st.builds(
        records.Run, TEXT, st.booleans(), few(st.builds(records.RunVolume, VOLUMES, TEXT, st.booleans(), TEXT))
    ),
    "LOST": st.builds(lost_record, REFS, few(st.tuples(U40, st.integers(1, 1 << 30))), few(TEXT), SIGNATURES),
    "BAD": st.builds(lost.Bad, st.lists(ADDRESSES, min_size=1, max_size=3).map(tuple)),
    "CHECKPOINT": st.builds(
        records.Checkpoint,
        few(st.tuples(U64, exactly(32))),
        few(st.builds(records.SegmentPlace, CHUNK_IDS, exactly(32))),
        st.binary(max_size=40),
    ),
}


def of_record(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Sample]:
    def sample(value: Any) -> Sample:  # noqa: ANN401
        type_ = value.TYPE
        return Sample(
            value,
            lambda made: made.encode_value(),
            lambda raw: known.understood(records.RawRecord(type_, raw)),
        )

    return values.map(sample)


DECODERS: dict[str, st.SearchStrategy[Sample]] = {
    "marker": MARKERS,
    "slot": slots(),
    "header": HEADERS,
    "directory": directories(),
    "node": nodes(),
    "commit body": bodies(),
    "entries": ENTRY_LISTS,
    "segment": SEGMENTS,
    "part": PARTS,
    "FIGURES": FIGURES,
    **{name: of_record(values) for name, values in RECORDS.items()},
}
every_decoder = pytest.mark.parametrize("name", DECODERS)
FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def returns_same_or_refuses(sample: Sample, raw: bytes) -> None:
    """The law of all decoders: no error but the two, and no two byte strings with one meaning."""
    try:
        value = sample.decode(raw)
    except REFUSALS:
        return
    assert sample.encode(value) == raw


# --- laws ------------------------------------------------------------------------------------------------------------


def test_each_known_record_is_covered() -> None:
    assert len(RECORDS) == len(known.kinds())


def test_each_layout_has_a_field_for_each_attribute() -> None:
    for kind in known.kinds():
        assert len(kind.LAYOUT) == len(kind.__match_args__), kind


@every_decoder
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_round_trip(name: str, data: st.DataObject) -> None:
    sample = data.draw(DECODERS[name])
    assert sample.decode(sample.content) == sample.value


@every_decoder
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_bytes_and_random_ends(name: str, data: st.DataObject) -> None:
    sample = data.draw(DECODERS[name])
    keep = data.draw(st.integers(0, len(sample.content)))
    raw = sample.content[:keep] + data.draw(st.binary(max_size=120))
    returns_same_or_refuses(sample, raw if name != "header" else raw[:72])


@every_decoder
@FEW
@given(data=st.data())
def test_every_truncation(name: str, data: st.DataObject) -> None:
    sample = data.draw(DECODERS[name])
    for length in range(len(sample.content)):
        returns_same_or_refuses(sample, sample.content[:length])


@every_decoder
@FEW
@given(data=st.data())
def test_a_flip_in_every_byte(name: str, data: st.DataObject) -> None:
    sample, shift = data.draw(DECODERS[name]), data.draw(st.integers(0, 7))
    content = sample.content
    for at in range(len(content)):
        flipped = content[at] ^ 1 << (at + shift) % 8
        returns_same_or_refuses(sample, content[:at] + bytes([flipped]) + content[at + 1 :])


@every_decoder
@FEW
@given(data=st.data())
def test_an_appended_byte(name: str, data: st.DataObject) -> None:
    sample = data.draw(DECODERS[name])
    raw = sample.content + b"\0"
    returns_same_or_refuses(sample, raw if name != "header" else raw[:72])


@every_decoder
@FEW
@given(data=st.data())
def test_counts_that_claim_billions_cost_nothing(name: str, data: st.DataObject) -> None:
    sample = data.draw(DECODERS[name])
    content = sample.content
    tracemalloc.start()
    try:
        for at in range(max(0, len(content) - 3)):
            returns_same_or_refuses(sample, content[:at] + b"\xff" * 4 + content[at + 4 :])
            returns_same_or_refuses(sample, content[:at] + b"\xff\xff\xff\x7f")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@given(st.text(max_size=130) | st.from_regex(r"w/[0-9a-f]{32}/[0-9a-f]{16}-[0-9a-f]{64}\n?", fullmatch=True))
def test_names_of_commits(name: str) -> None:
    head = commit.parse_name(name)
    assert head is None or head.name == name


@given(HEADS)
def test_a_head_is_found_by_its_name(head: commit.Head) -> None:
    assert commit.parse_name(head.name) == head
