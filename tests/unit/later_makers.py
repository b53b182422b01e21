"""From the fields of a record vector to the record: snapshots, labels, sessions, losses and deletion."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lamella.base.ids import ChunkId, DomainId, SnapId, VolumeId, WriterId
from lamella.format import container, deletion, known, labels, lost, owners, records, sessions
from lamella.format.commit import Head
from tests.golden.literal import Json


def ref(text: str) -> records.Ref:
    raw = bytes.fromhex(text)
    return records.Ref(WriterId(raw[:16]), int.from_bytes(raw[16:24], "little"), SnapId(raw[24:]))


def add_snap(fields: Json) -> records.AddSnap:
    documents = tuple(
        records.Document(row["name"], row["size"], tuple(ChunkId(bytes.fromhex(part)) for part in row["parts"]))
        for row in fields["documents"]
    )
    return records.AddSnap(
        SnapId(bytes.fromhex(fields["snap_id"])), VolumeId(bytes.fromhex(fields["volume_id"])),
        DomainId(bytes.fromhex(fields["domain_id"])), fields["chunk_log2"], fields["consistency"], fields["size"],
        ChunkId(bytes.fromhex(fields["root"])), fields["time_ms"], ref(fields["parent"]), fields["name"], documents,
        packs(fields["packs"]), tuple(records.RawRecord(kind, bytes.fromhex(value)) for kind, value in fields["inner"]),
    )  # fmt: skip


def head(text: str) -> Head:
    raw = bytes.fromhex(text)
    return Head(WriterId(raw[:16]), int.from_bytes(raw[16:24], "little"), raw[24:])


def packs(texts: Sequence[str]) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(text) for text in texts)


def session(fields: Json, signature: bytes) -> sessions.Session:
    volumes = [
        sessions.SessionVolume(VolumeId(bytes.fromhex(id_)), name, ref(base), ChunkId(bytes.fromhex(root)))
        for id_, name, base, root in fields["volumes"]
    ]
    roots = [
        sessions.PartialRoot(
            VolumeId(bytes.fromhex(id_)), DomainId(bytes.fromhex(domain)), ChunkId(bytes.fromhex(root)), *numbers
        )
        for id_, domain, root, *numbers in fields["partial_roots"]
    ]
    return sessions.Session(
        bytes.fromhex(fields["session"]), fields["name"], tuple(volumes), packs(fields["packs"]), tuple(roots)
    )


def batch(kind: type[deletion.Condemn]) -> Callable[[Json, bytes], known.Known]:
    return lambda fields, signature: kind(
        bytes.fromhex(fields["batch"]),
        packs(fields["packs"]),
        tuple(head(text) for text in fields["heads"]),
        signature,
    )


LATER_MAKERS: dict[int, Callable[[Json, bytes], known.Known]] = {
    0x0005: lambda fields, sig: labels.Tag(ref(fields["ref"]), fields["removed"], fields["text"], sig),
    0x0006: lambda fields, sig: records.Rename(VolumeId(bytes.fromhex(fields["volume_id"])), fields["name"], sig),
    0x0007: lambda fields, sig: labels.Pin(ref(fields["ref"]), fields["removed"], fields["text"], sig),
    0x000A: session,
    0x000B: lambda fields, _: sessions.Abandon(bytes.fromhex(fields["session"])),
    0x0010: lambda fields, sig: deletion.Remove(tuple(ref(text) for text in fields["refs"]), sig),
    0x0011: batch(deletion.Condemn),
    0x0012: lambda fields, sig: deletion.Rescue(bytes.fromhex(fields["batch"]), packs(fields["packs"]), sig),
    0x0013: batch(deletion.Reaped),
    0x0014: lambda fields, sig: deletion.Retire(head(fields["head"]), sig),
    0x0016: lambda fields, sig: deletion.Forgo(
        head(fields["head"]), (fields["left"], head(fields["head"]).sha256), sig
    ),
    0x0017: lambda fields, sig: deletion.Revive(ref(fields["removed"]), add_snap(fields["added"]), sig),
    0x0018: lambda fields, sig: deletion.RemoveLast(tuple(ref(text) for text in fields["refs"]), sig),
    0x000D: lambda fields, _: owners.Succeeds(bytes.fromhex(fields["public"]), bytes.fromhex(fields["signature"])),
    0x0019: lambda fields, sig: owners.Join(
        WriterId(bytes.fromhex(fields["new"])), WriterId(bytes.fromhex(fields["old"])), sig
    ),
    0x001A: lambda fields, sig: owners.Give(
        VolumeId(bytes.fromhex(fields["volume_id"])), WriterId(bytes.fromhex(fields["writer"])), sig
    ),
    0x001B: lambda fields, sig: owners.Expel(
        bytes.fromhex(fields["expel_id"]),
        head(fields["head"]),
        tuple(WriterId(bytes.fromhex(one)) for one in fields["stay"]),
        sig,
    ),
    0x001C: lambda fields, sig: owners.Readmit(bytes.fromhex(fields["expel_id"]), sig),
    0x001D: lambda fields, sig: owners.Admit(
        fields["closes"], tuple((bytes.fromhex(one), bytes.fromhex(by)) for one, by in fields["writers"]), sig
    ),
    0x8002: lambda fields, sig: lost.Lost(
        ref(fields["ref"]),
        fields["lost_bytes"],
        tuple((start, end) for start, end in fields["ranges"]),
        tuple(fields["documents"]),
        sig,
    ),
    0x8004: lambda fields, _: lost.Bad(
        tuple(
            lost.Address(bytes.fromhex(pack), container.Kind(kind), ChunkId(bytes.fromhex(id_)))
            for pack, kind, id_ in fields["addresses"]
        )
    ),
    0x8003: lambda fields, _: records.Seen(tuple((WriterId(bytes.fromhex(id_)), seq) for id_, seq in fields["heads"])),
    0x0015: lambda fields, sig: deletion.Audited(head(fields["head"]), sig),
}
