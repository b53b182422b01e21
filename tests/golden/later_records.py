"""Vectors of records beyond those of the two commits: labels, sessions, deletion and damage (FORMAT 8)."""

from __future__ import annotations

from tests.golden.literal import (
    DOMAIN,
    PRUNE_SEED,
    VOLUME,
    WRITER,
    Json,
    fixed,
    prune_signed,
    public,
    root_of,
    signature,
    text,
    u8,
    u16,
    u32,
    u64,
)

REF = WRITER + u64(1) + fixed("snap", 16)
PACKS = [fixed("pack a", 32), fixed("pack b", 32)]
HEAD = fixed("other writer", 16) + u64(0x1_0000_0001) + fixed("other head", 32)
SHOWN_PACKS = [pack.hex() for pack in PACKS]


def later_records(added: tuple[Json, bytes]) -> list[Json]:
    """Each with the fields it is made of; values as hexadecimal text. `added` is an ADD_SNAP: fields and value."""
    return [*_labels(), *_sessions(), *_deletion(), *_last_resorts(added), *_losses(), _bad(), *_owners()]


def _row(type_: int, fields: Json, value: bytes, *, signed: bool | None = None) -> Json:
    row: Json = {"type": type_, "fields": fields}
    if signed is not None:
        row["signed"] = signed
        value = prune_signed(1, 1, bytes(32), type_, value) if signed else value + bytes(64)
    return {**row, "value": value.hex()}


def _losses() -> list[Json]:
    ref = REF.hex()
    some = REF + u64(3 * 65536) + u32(2) + u64(65536) + u64(65536) + u64(1 << 40) + u64(2 * 65536)
    ranges = [[65536, 131072], [1 << 40, (1 << 40) + 131072]]
    return [
        _row(
            0x8002,
            {"ref": ref, "lost_bytes": 3 * 65536, "ranges": ranges, "documents": ["settings"]},
            some + u16(1) + text("settings"),
            signed=False,
        ),
        _row(
            0x8002,
            {"ref": ref, "lost_bytes": 0, "ranges": [], "documents": []},
            REF + u64(0) + u32(0) + u16(0),
            signed=True,
        ),
    ]


def _owners() -> list[Json]:
    """SUCCEEDS in commit 1 of the writer, JOIN and GIVE."""
    old, other = fixed("older writer", 32), fixed("other writer", 16)
    said = signature(old, b"lamella/1 succeeds\0" + root_of(1) + WRITER)
    return [
        _row(13, {"public": public(old).hex(), "signature": said.hex()}, public(old) + said),
        _row(25, {"new": WRITER.hex(), "old": other.hex()}, WRITER + other, signed=True),
        _row(26, {"volume_id": VOLUME.hex(), "writer": other.hex()}, VOLUME + other, signed=True),
        _row(
            27,
            {"expel_id": fixed("expel", 16).hex(), "head": HEAD.hex(), "stay": [other.hex()]},
            fixed("expel", 16) + HEAD + u16(1) + other,
            signed=True,
        ),
        _row(28, {"expel_id": fixed("expel", 16).hex()}, fixed("expel", 16), signed=True),
        _admitted(closes=True),
        _admitted(closes=False),
    ]


def _admitted(*, closes: bool) -> Json:
    writers = [public(fixed(f"{word} writer", 32)) for word in ("older", "newer")]
    rows = [(one, signature(PRUNE_SEED, b"lamella/1 enrol\0" + root_of(1) + one)) for one in writers]
    fields = {"closes": closes, "writers": [[one.hex(), by.hex()] for one, by in rows]}
    return _row(29, fields, u8(closes) + u32(2) + b"".join(one + by for one, by in rows), signed=True)


def _bad() -> Json:
    """A chunk of one pack, and the head of another."""
    addresses = [(PACKS[0], 1, fixed("bad chunk", 24)), (PACKS[1], 0, bytes(24))]
    shown = [[pack.hex(), kind, id_.hex()] for pack, kind, id_ in addresses]
    value = u32(2) + b"".join(pack + u8(kind) + id_ for pack, kind, id_ in addresses)
    return _row(0x8004, {"addresses": shown}, value)


def _last_resorts(added: tuple[Json, bytes]) -> list[Json]:
    """A commit given up, a snapshot published anew, a removal that nothing takes back."""
    fields, value = added
    return [
        _row(0x0016, {"head": HEAD.hex(), "left": 3}, HEAD + u64(3) + HEAD[24:], signed=True),
        _row(0x0017, {"removed": REF.hex(), "added": fields}, REF + value, signed=True),
        _row(0x0018, {"refs": [REF.hex()]}, u32(1) + REF, signed=True),
    ]


def origins() -> list[Json]:
    """ORIGIN, an inner record of ADD_SNAP: made directly from the first one, and over another repository."""
    first, other = (
        (fixed("repo a", 16), REF),
        (fixed("repo b", 16), fixed("other writer", 16) + u64(9) + fixed("copy", 16)),
    )
    return [
        {
            "first": {"repo_id": first[0].hex(), "ref": first[1].hex()},
            "copied": {"repo_id": made[0].hex(), "ref": made[1].hex()},
            "type": 0x8010,
            "value": b"".join((*first, *made)).hex(),
        }
        for made in (first, other)
    ]


def _labels() -> list[Json]:
    ref = REF.hex()
    renamed = {"volume_id": VOLUME.hex(), "name": "vm: wurzel"}
    return [
        _row(
            5,
            {"ref": ref, "removed": False, "text": "vor dem Umzug"},
            REF + u8(1) + text("vor dem Umzug"),
            signed=False,
        ),
        _row(
            5, {"ref": ref, "removed": True, "text": "vor dem Umzug"}, REF + u8(2) + text("vor dem Umzug"), signed=True
        ),
        _row(6, renamed, VOLUME + text("vm: wurzel"), signed=True),
        _row(6, renamed, VOLUME + text("vm: wurzel"), signed=False),
        _row(7, {"ref": ref, "removed": False, "text": "trial"}, REF + u8(1) + text("trial"), signed=False),
        _row(7, {"ref": ref, "removed": True, "text": ""}, REF + u8(2) + text(""), signed=True),
    ]


def _sessions() -> list[Json]:
    session, name, base, partial = fixed("session", 16), "20261122T184501Z-k3v9", fixed("root", 24), fixed("part", 24)
    value = session + text(name) + u16(2) + VOLUME + text("vm: root") + REF + base
    value += fixed("volume 2", 16) + text("new") + bytes(40) + bytes(24) + u32(2) + b"".join(PACKS)
    value += u16(1) + VOLUME + DOMAIN + partial + u64(70 * 65536) + u8(16) + u64(64)
    volumes = [
        [VOLUME.hex(), "vm: root", REF.hex(), base.hex()],
        [fixed("volume 2", 16).hex(), "new", bytes(40).hex(), bytes(24).hex()],
    ]
    roots = [[VOLUME.hex(), DOMAIN.hex(), partial.hex(), 70 * 65536, 16, 64]]
    fields = {"session": session.hex(), "name": name, "volumes": volumes, "packs": SHOWN_PACKS, "partial_roots": roots}
    return [_row(10, fields, value), _row(11, {"session": session.hex()}, session)]


def _deletion() -> list[Json]:
    batch, packs, heads = fixed("batch", 16), u32(2) + b"".join(PACKS), u32(1) + HEAD
    shown = {"batch": batch.hex(), "packs": SHOWN_PACKS}
    named = {**shown, "heads": [HEAD.hex()]}
    return [
        _row(16, {"refs": [REF.hex()]}, u32(1) + REF, signed=True),
        _row(16, {"refs": [REF.hex()]}, u32(1) + REF, signed=False),
        _row(17, named, batch + packs + heads, signed=True),
        _row(18, shown, batch + packs, signed=True),
        _row(19, named, batch + packs + heads, signed=True),
        _row(20, {"head": HEAD.hex()}, HEAD, signed=True),
        _row(21, {"head": HEAD.hex()}, HEAD, signed=True),
        _row(
            0x8003,
            {"heads": [[WRITER.hex(), 7], [HEAD[:16].hex(), 0x1_0000_0001]]},
            u16(2) + WRITER + u64(7) + HEAD[:24],
        ),
    ]
