"""No bombs: what is too much is refused by both readers, before it costs memory or time; what is just allowed is read.

FORMAT, "Bounds". All of it is sealed with the keys: whoever may write can make it.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.fuzz.mutations import DOMAIN, KEYFILE, VOLUME
from tests.fuzz.two_readers import View, by_lamella, by_rescue, memory_peak
from tests.unit import rescue_writer as rw

MIB = 1 << 20
PART = 8 * MIB
OPTIONAL = 0x8FFF


class Repository:
    """A sound snapshot by one writer, and a second writer that goes too far."""

    def __init__(self) -> None:
        self.writer = rw.Writer()
        self.writer.slot(3, KEYFILE)
        self.good = rw.Chain(Ed25519PrivateKey.from_private_bytes(b"a" * 32))
        self.bad = rw.Chain(Ed25519PrivateKey.from_private_bytes(b"b" * 32))
        self.snap = self.snapshot(1)
        who = rw.record(1, rw.text("host") + rw.text("machine"))
        self.writer.commit(self.good, who + rw.volume_record(VOLUME, DOMAIN, "disk") + self.snap.record())

    def snapshot(self, number: int) -> rw.Snap:
        chunk = self.writer.blob(DOMAIN, 1, struct.pack("<I", number) * (rw.CHUNK // 4), rw.ZLIB)
        root, nodes = self.writer.tree(DOMAIN, VOLUME, rw.CHUNK, {0: (rw.DATA, chunk.ident)})
        pack = self.writer.pack(DOMAIN, [chunk, *nodes])
        name = f"2026110{number}T000000Z-aaaa"
        return rw.Snap(bytes([number]) * 16, VOLUME, DOMAIN, rw.CHUNK, root, name, [pack])

    def commit_of_parts(self, records: bytes) -> None:
        """A commit whose body is cut into parts, as FORMAT 8 says, each compressed."""
        chain, writer = self.bad, self.writer
        chain.seq += 1
        body = b"\x01" + bytes(7) + chain.writer + struct.pack("<Q", chain.seq) + chain.prev
        body += struct.pack("<Q", 1_700_000_000_000) + chain.checkpoint + struct.pack("<I", 0) + records
        blobs = [writer.blob(bytes(16), 6, body[at : at + PART], rw.ZLIB) for at in range(0, len(body), PART)]
        bound = chain.writer + struct.pack("<Q", chain.seq)
        chain.prev = writer.put_commit(chain, writer.container(bytes(16), blobs, bound))

    def second(self) -> bytes:
        """A snapshot that shows whether its commit was read."""
        return self.snapshot(2).record()


def checkpoint(repo: Repository, segments: bytes, count: int, entries: bytes) -> None:
    repo.writer.commit(repo.bad, repo.second())
    carried = rw.record(0x0C, struct.pack("<II", 0, count) + segments + entries)
    repo.commit_of_parts(carried)
    del repo.writer.objects[
        next(name for name in repo.writer.objects if name.startswith(f"w/{repo.bad.writer.hex()}/"))
    ]


def entry(seq: int, row: bytes) -> bytes:
    return struct.pack("<Q", seq) + bytes(40) + row


def large_record(size: int) -> bytes:
    """An optional record whose parts of 8 MiB differ, so that each is stored; it deflates to next to nothing."""
    value = bytearray(size)
    for at in range(0, size, MIB):
        struct.pack_into("<Q", value, at, at + 1)
    return rw.record(OPTIONAL, bytes(value))


def body_of(size: int) -> Callable[[Repository], None]:
    return lambda repo: repo.commit_of_parts(repo.second() + large_record(size))


def many_records(number: int) -> Callable[[Repository], None]:
    return lambda repo: repo.commit_of_parts(repo.second() + rw.record(OPTIONAL, b"") * (number - 1))


def listed_packs(number: int) -> Callable[[Repository], None]:
    def make(repo: Repository) -> None:
        snap = repo.snapshot(2)
        snap.packs = [struct.pack("<Q", at) * 4 for at in range(number)]
        repo.commit_of_parts(snap.record())

    return make


def documents(sizes: list[int]) -> Callable[[Repository], None]:
    def make(repo: Repository) -> None:
        snap = repo.snapshot(2)
        for at, size in enumerate(sizes):
            snap.documents.append((f"d{at}", size, [bytes([at]) * 24] * -(-size // (PART - 8))))
        repo.commit_of_parts(snap.record())

    return make


def carried(number: int, size: int = 0) -> Callable[[Repository], None]:
    """A checkpoint of so many small entries, or of one with so many bytes, beside the snapshot's."""

    def make(repo: Repository) -> None:
        kept = entry(1, repo.second())
        rows = entry(1, rw.record(OPTIONAL, b"")) * number
        checkpoint(repo, b"", 0, kept + rows + (entry(1, large_record(size)) if size else b""))

    return make


def segments(number: int, size: int) -> Callable[[Repository], None]:
    """A checkpoint that names one segment again and again."""

    def make(repo: Repository) -> None:
        content = b"\x01" + bytes(7) + entry(1, rw.record(OPTIONAL, bytes(size - 62)))
        segment = repo.writer.blob(bytes(16), 7, content, rw.ZLIB)
        pack = repo.writer.pack(bytes(16), [segment])
        checkpoint(repo, (segment.ident + pack) * number, number, entry(1, repo.second()))

    return make


TOO_MUCH = {
    "a body of 65 MiB": body_of(65 * MIB),
    "a body of 130 MiB": body_of(130 * MIB),
    "65,537 records": many_records(65_537),
    "three million records": many_records(3_000_000),
    "65,537 packs": listed_packs(65_537),
    "documents of more than 64 MiB": documents([32 * MIB, 33 * MIB]),
    "a document of 65 MiB": documents([65 * MIB]),
    "262,144 entries and the snapshot's": carried(262_144),
    "256 segments of 8 MiB": segments(256, PART),
    "257 segments": segments(257, 100),
}
ALLOWED = {
    "a body of 63 MiB": body_of(63 * MIB),
    "65,536 records": many_records(65_536),
    "65,536 packs": listed_packs(65_536),
    "documents of 64 MiB": documents([32 * MIB, 32 * MIB]),
    "262,143 entries and the snapshot's": carried(262_143),
    "7 segments of 8 MiB": segments(7, PART),
    "256 segments": segments(256, 100),
}


def both(make: Callable[[Repository], None], place: Path) -> tuple[View, View]:
    repo = Repository()
    make(repo)
    objects = dict(repo.writer.objects)
    assert sum(map(len, objects.values())) < 4 * MIB
    return by_lamella(objects, place), by_rescue(objects, place)


def names(view: View) -> set[str]:
    return {seen.name for seen in view.snapshots.values()}


FIRST, SECOND = "20261101T000000Z-aaaa", "20261102T000000Z-aaaa"


@pytest.mark.slow
@pytest.mark.parametrize("name", TOO_MUCH)
def test_too_much_is_refused_by_both_readers_and_costs_little(name: str, tmp_path: Path) -> None:
    repo = Repository()
    TOO_MUCH[name](repo)
    objects = dict(repo.writer.objects)
    del repo
    assert sum(map(len, objects.values())) < 4 * MIB
    for reader in (by_lamella, by_rescue):
        memory_peak()
        base, since = memory_peak(), time.monotonic()
        view = reader(objects, tmp_path)
        assert names(view) == {FIRST}, reader
        assert not view.refused
        assert memory_peak() - base < 400 * MIB, reader
        assert time.monotonic() - since < 60, reader


@pytest.mark.slow
@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_just_allowed_is_read_by_both_readers(name: str, tmp_path: Path) -> None:
    for view in both(ALLOWED[name], tmp_path):
        assert names(view) == {FIRST, SECOND}
