"""Changes to bytes as an attacker with all keys would make them, and repositories that are changed before sealing.

Everything follows from a number, the seed: the same seed makes the same repository.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.unit import rescue_writer as rw

KEYFILE = bytes(range(100, 164))
ALICE, BOB, CAROL, DAVE = (
    rw.Chain(Ed25519PrivateKey.from_private_bytes(letter * 32)) for letter in (b"a", b"b", b"c", b"d")
)
DOMAIN, VOLUME, OTHER = b"D" * 16, rw.created(ALICE, 1), rw.created(BOB, 1)
_SIZES = (1, 1, 1, 2, 4, 8)
_NUMBERS = (0, 1, 2, 3, 5, 16, 23, 63, 64, 65, 127, 128, 255, 256, 4096, 4097, 65535, 65536, 65537, 1 << 20, 64 << 20)


def change(chosen: random.Random, data: bytes) -> bytes:
    """Other bytes than these: one small change, often to what may be a number or a length."""
    kinds: tuple[Callable[[random.Random, bytes], bytes], ...] = (_flip, _number, _number, _cut, _twice, _insert, _ends)
    for _ in range(20):
        changed = chosen.choice(kinds)(chosen, data)
        if changed != data:
            return changed
    return data + b"\0"


def _at(chosen: random.Random, data: bytes) -> int:
    """A place; the beginning, where the fields are, more often."""
    most = len(data) if chosen.random() < 0.5 else min(len(data), 128)
    return chosen.randrange(max(1, most))


def _flip(chosen: random.Random, data: bytes) -> bytes:
    at, changed = _at(chosen, data), bytearray(data)
    if changed:
        changed[at] ^= 1 << chosen.randrange(8)
    return bytes(changed)


def _number(chosen: random.Random, data: bytes) -> bytes:
    at, size = _at(chosen, data), chosen.choice(_SIZES)
    old = int.from_bytes(data[at : at + size], "little")
    new = chosen.choice([*_NUMBERS, old + 1, old - 1, -1, -2, 1 << (8 * size - 1), len(data), len(data) - at])
    return data[:at] + (new % (1 << 8 * size)).to_bytes(size, "little") + data[at + size :]


def _cut(chosen: random.Random, data: bytes) -> bytes:
    at = _at(chosen, data)
    return data[:at] + data[at + chosen.choice((1, 2, 8, 16, 24, 32, 40, 64)) :]


def _twice(chosen: random.Random, data: bytes) -> bytes:
    at, size = _at(chosen, data), chosen.choice((1, 2, 8, 16, 24, 32, 40, 64))
    return data[:at] + data[at : at + size] * 2 + data[at + size :]


def _insert(chosen: random.Random, data: bytes) -> bytes:
    at = _at(chosen, data)
    return data[:at] + chosen.choice((b"\0", b"\xff", b"\0" * 8, b"\xff" * 8, chosen.randbytes(4))) + data[at:]


def _ends(chosen: random.Random, data: bytes) -> bytes:
    if chosen.random() < 0.5:
        return data[: chosen.randrange(len(data) + 1)]
    return data + chosen.choice((b"\0", b"\xff", bytes(16), data[-24:]))


def records_of(content: bytes) -> list[tuple[int, bytes]]:
    """Records as (type, value)."""
    rows = []
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from("<HI", content, at)
        rows.append((kind, content[at + 6 : at + 6 + size]))
        at += 6 + size
    return rows


@dataclass
class Mutator(rw.Writer):
    """Writes a repository, and changes what the seed says on its way into authenticated bytes: records, bodies of
    commits, nodes, parts of documents, segments, directories, encoded bodies.
    """

    seed: int = 0
    places: frozenset[int] = frozenset()
    touched: list[str] = field(default_factory=list)
    passed: int = 0

    def touch(self, what: str, data: bytes) -> bytes:
        """The data, changed if it is this place's turn."""
        self.passed += 1
        if self.passed not in self.places:
            return data
        self.touched.append(what)
        return change(random.Random(self.seed * 1000 + self.passed), data)

    def blob(self, domain: bytes, kind: int, content: bytes, codec: int = rw.RAW) -> rw.Blob:
        made = super().blob(domain, kind, self.touch(f"content of kind {kind}", content), codec)
        made.body = self.touch(f"body of kind {kind}", made.body)
        return made

    def directory(self, blobs: list[rw.Blob]) -> bytes:
        return self.touch("directory", super().directory(blobs))

    def commit(
        self, chain: rw.Chain, records: bytes, seen: list[bytes] | None = None, checkpoint: bool = False
    ) -> bytes:
        rows = records_of(records)
        made = b"".join(rw.record(kind, self.touch(f"record {kind:#06x}", value)) for kind, value in rows)
        made = self.touch("records", made)
        return super().commit(chain, made, seen, checkpoint)

    def prune_sign(self, chain: rw.Chain, kind: int, value: bytes) -> bytes:
        return super().prune_sign(chain, kind, self.touch(f"signed record {kind:#06x}", value))


def _content(number: int) -> bytes:
    return struct.pack("<I", number) * (rw.CHUNK // 4)


def _snapshot(writer: rw.Writer, chain: rw.Chain, number: int, volume: bytes = VOLUME) -> rw.Snap:
    """A snapshot of three chunks, with a document; the caller publishes it."""
    size = 3 * rw.CHUNK - 100
    codecs = (rw.ZLIB, rw.ZSTD)
    chunk = writer.blob(DOMAIN, 1, _content(number), codecs[number % 2])
    last = writer.blob(DOMAIN, 1, _content(number + 50)[: rw.CHUNK - 100], codecs[(number + 1) % 2])
    slots: dict[int, rw.Slot] = {0: (rw.DATA, chunk.ident), 1: (rw.ZERO, b""), 2: (rw.DATA, last.ident)}
    root, nodes = writer.tree(DOMAIN, volume, size, slots)
    document = b"<settings number='%d'/>" % number * 20
    part = writer.blob(DOMAIN, 5, b"LMLDOCU\x01" + document, rw.ZSTD)
    pack = writer.pack(DOMAIN, [chunk, last, *nodes, part])
    name = f"202611{number:02}T000000Z-{number:04}"
    snap = rw.Snap(bytes([number]) * 16, volume, DOMAIN, size, root, name, [pack])
    snap.documents = [("settings.xml", len(document), [part.ident])]
    snap.when += number * 1000
    return snap


def _refs(chain: rw.Chain, *places: tuple[int, bytes]) -> bytes:
    return struct.pack("<I", len(places)) + b"".join(rw.ref(chain, seq, snap_id) for seq, snap_id in places)


def _head(chain: rw.Chain) -> bytes:
    return chain.writer + struct.pack("<Q", chain.seq) + chain.prev


def _labels(ref: bytes) -> bytes:
    tag = rw.record(5, ref + b"\1" + rw.text("keep") + bytes(64))
    pin = rw.record(7, ref + b"\1" + rw.text("why") + bytes(64))
    return tag + pin + rw.record(6, VOLUME + rw.text("renamed") + bytes(64))


def _lost(ref: bytes) -> bytes:
    ranges = struct.pack("<QIQQQQ", 96, 2, 0, 32, 100, 64)
    return rw.record(0x8002, ref + ranges + struct.pack("<H", 1) + rw.text("settings.xml") + bytes(64))


def _run(name: str) -> bytes:
    volumes = struct.pack("<H", 1) + VOLUME + rw.text("disk") + b"\0" + rw.text("")
    return rw.record(0x8001, rw.text(name) + b"\0" + volumes)


def _entry(chain: rw.Chain, seq: int, prev: bytes, row: bytes) -> bytes:
    return struct.pack("<Q", seq) + prev + struct.pack("<Q", 1_700_000_000_000 + seq) + row


def build(writer: rw.Writer, *, closed: bool = True) -> None:
    """A repository with one of each: two writers, tags, losses, a removal, a checkpoint with a segment.

    If it is `closed`, Alice and Bob are admitted by Bob's ADMIT, Dave by the prune key's enrolment, and Carol is not.
    """
    writer.slot(3, KEYFILE)
    alice, bob = rw.Chain(ALICE.key), rw.Chain(BOB.key)
    who = rw.record(1, rw.text("host-a") + rw.text("machine"))
    first = _snapshot(writer, alice, 1)
    start = who + rw.volume_record(VOLUME, DOMAIN, "disk") + first.record() + _run(first.name)
    writer.commit(alice, start)
    second = _snapshot(writer, alice, 2)
    second.parent = rw.ref(alice, 1, first.snap_id)
    second.inner = rw.record(0x8001, b"\1" + bytes(39)) + rw.record(0x8002, bytes(16))
    writer.commit(alice, second.record() + rw.record(4, _refs(alice, (1, first.snap_id))))
    other = _snapshot(writer, bob, 3, OTHER)
    claim = _snapshot(writer, bob, 6)
    bobs = rw.volume_record(OTHER, DOMAIN, "other") + other.record() + _lost(rw.ref(alice, 1, first.snap_id))
    given = writer.prune_sign(bob, 0x1A, OTHER + alice.writer) + writer.prune_sign(bob, 0x19, bob.writer + bytes(16))
    bobs += claim.record() + given
    writer.commit(bob, bobs, [_head(alice)])
    third = _snapshot(writer, alice, 4)
    signed = writer.prune_sign(alice, 0x10, _refs(alice, (2, second.snap_id)))
    writer.commit(alice, _labels(rw.ref(alice, 1, first.snap_id)) + third.record() + signed, [_head(bob)])
    # A checkpoint that carries the first commit in a segment, and the third itself.
    entries = b"".join(
        _entry(alice, 1, bytes(32), rw.record(kind, value)) for kind, value in records_of(start) if kind != 0x8001
    )
    segment = writer.blob(bytes(16), 7, b"\x01" + bytes(7) + entries, rw.ZLIB)
    pack = writer.pack(bytes(16), [segment])
    seen = rw.record(0x8003, struct.pack("<H", 1) + bob.writer + struct.pack("<Q", 1))
    own = _entry(alice, 3, bytes(32), seen) + _entry(alice, 3, bytes(32), third.record())
    carried = struct.pack("<II", 0, 1) + segment.ident + pack + own
    writer.commit(alice, rw.record(0x0C, carried), checkpoint=True)
    audited = struct.pack("<Q", alice.seq) + alice.prev
    said = writer.prune_sign(bob, 0x15, alice.writer + audited)
    if closed:
        said += writer.prune_sign(bob, 0x1D, writer.admission(alice, bob))
    writer.commit(bob, said, [_head(alice)])
    last = _snapshot(writer, alice, 5)
    heads = [_head(bob), *(_others(writer, alice) if closed else ())]
    writer.commit(alice, last.record() + _run(last.name), heads)


def _others(writer: rw.Writer, alice: rw.Chain) -> list[bytes]:
    """The heads of Dave, whom an admin's secret enrolled, and of Carol, who came when enrolment was closed."""
    carol, dave = rw.Chain(CAROL.key), rw.Chain(DAVE.key)
    writer.admitted.add(dave.writer)
    stolen = rw.volume_record(rw.created(carol, 1), DOMAIN, "disk") + _snapshot(writer, carol, 8).record()
    writer.commit(carol, stolen, [alice.writer + struct.pack("<Q", 99) + bytes(32)])
    carol.seq += 2
    writer.commit(carol, _labels(rw.ref(alice, 1, bytes([1]) * 16)), [_head(alice)])
    other = _snapshot(writer, dave, 7, rw.created(dave, 1))
    writer.commit(dave, rw.volume_record(other.volume, DOMAIN, "dave") + other.record(), [_head(carol)])
    return [_head(carol), _head(dave)]


@cache
def places(*, closed: bool) -> int:
    """How many places of the repository can be changed before they are sealed."""
    dry = Mutator()
    build(dry, closed=closed)
    return dry.passed


def repository(seed: int) -> Mutator:
    """The repository that the seed says: changed inside, or in its objects, or both."""
    chosen = random.Random(seed)
    inside = chosen.choice((1, 1, 1, 2, 3, 0))
    closed = bool(seed % 2)
    numbers = frozenset(1 + chosen.randrange(places(closed=closed)) for _ in range(inside))
    made = Mutator(seed=seed, places=numbers, id_alg=chosen.choice((1, 2)), aead=chosen.choice((1, 2)))
    build(made, closed=closed)
    if not inside or chosen.random() < 0.1:
        _change_objects(made, chosen)
    return made


def _change_objects(made: Mutator, chosen: random.Random) -> None:
    """Drop, damage or exchange objects, as a storage does."""
    names = sorted(made.objects)
    for _ in range(chosen.choice((1, 1, 2, 4))):
        name, kind = chosen.choice(names), chosen.randrange(4)
        made.touched.append(f"object {name.partition('/')[0]} {kind}")
        if kind == 0:
            made.objects.pop(name, None)
        elif kind == 1:
            made.objects[name] = made.objects.get(chosen.choice(names), b"")
        elif name in made.objects:
            made.objects[name] = change(chosen, made.objects[name])
