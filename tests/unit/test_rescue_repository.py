"""rescue.py against repositories made by an independent writer: equality, damage, names, secrets, safe start."""

from __future__ import annotations

import base64
import errno
import hashlib
import hmac
import os
import random
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from backports import zstd
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lamella import rescue
from lamella.stores.base import MOST_OTHERS
from tests.unit import rescue_writer as rw

DOMAIN = b"D" * 16
KEYFILE = bytes(range(100, 164))
RECOVERY = b"recovery-key-of-thirty-two-bytes"
CHUNKS = 70
SIZE = CHUNKS * rw.CHUNK - 1000
ALICE = rw.Chain(Ed25519PrivateKey.from_private_bytes(b"a" * 32))
BOB = rw.Chain(Ed25519PrivateKey.from_private_bytes(b"b" * 32))
VOLUME, BOBS = rw.created(ALICE, 1), rw.created(BOB, 1)


def fresh(chain: rw.Chain) -> rw.Chain:
    return rw.Chain(chain.key)


@dataclass
class Case:
    writer: rw.Writer
    alice: rw.Chain
    bob: rw.Chain
    first: bytes
    second: bytes
    document: bytes
    packs: list[bytes]
    root2: bytes


def small_content(seed: int) -> bytes:
    """A chunk that compresses to almost nothing, so that the repository is small."""
    return struct.pack("<I", seed) * (rw.CHUNK // 4)


def image(data: dict[int, bytes]) -> bytes:
    out = bytearray(SIZE)
    for number, content in data.items():
        out[number * rw.CHUNK : number * rw.CHUNK + len(content)] = content
    return bytes(out)


def blobs_of(writer: rw.Writer, data: dict[int, bytes], zero: tuple[int, ...]) -> tuple[bytes, list[rw.Blob]]:
    slots: dict[int, rw.Slot] = {number: (rw.ZERO, b"") for number in zero}
    blobs = []
    for number, content in data.items():
        blobs.append(writer.blob(DOMAIN, 1, content, (rw.ZLIB, rw.ZSTD, rw.RAW)[number % 3]))
        slots[number] = rw.DATA, blobs[-1].ident
    root, nodes = writer.tree(DOMAIN, VOLUME, SIZE, slots)
    return root, blobs + nodes


def build(id_alg: int = 1, aead: int = 1) -> Case:
    """Two snapshots of a volume of two levels, a document, a second writer with a volume of size 0."""
    writer = rw.Writer(id_alg, aead)
    writer.slot(3, KEYFILE)
    alice, bob = fresh(ALICE), fresh(BOB)
    data = {0: small_content(1), 1: small_content(2)}
    data[3] = hashlib.shake_256(b"raw").digest(rw.CHUNK) if aead == 2 else small_content(9)
    data[69] = small_content(5)[: SIZE - 69 * rw.CHUNK]
    root, blobs = blobs_of(writer, data, (2, 65))
    document = b"<settings/>" * 30
    part = writer.blob(DOMAIN, 5, b"LMLDOCU\x01" + document, rw.ZSTD)
    pack1 = writer.pack(DOMAIN, [*blobs, part])
    snap1 = rw.Snap(b"1" * 16, VOLUME, DOMAIN, SIZE, root, "20261101T000000Z-aaaa", [pack1])
    snap1.documents = [("settings.xml", len(document), [part.ident])]
    start = rw.record(1, rw.text("host-a") + rw.text("machine")) + rw.volume_record(VOLUME, DOMAIN, "disk")
    run = rw.text(snap1.name) + b"\0" + struct.pack("<H", 0)
    writer.commit(alice, start + snap1.record() + rw.record(0x8001, run))
    second = {**data, 1: small_content(77)}
    root2, blobs2 = blobs_of(writer, second, (2, 65))
    known = {(b.kind, b.ident) for b in blobs}
    pack2 = writer.pack(DOMAIN, [b for b in blobs2 if (b.kind, b.ident) not in known])
    snap2 = rw.Snap(b"2" * 16, VOLUME, DOMAIN, SIZE, root2, "20261102T000000Z-bbbb", [pack2])
    snap2.parent = rw.ref(alice, 1, snap1.snap_id)
    writer.commit(alice, snap2.record() + rw.record(4, struct.pack("<I", 1) + rw.ref(alice, 1, snap1.snap_id)))
    empty_root, empty = writer.tree(b"E" * 16, BOBS, 0, {})
    pack3 = writer.pack(b"E" * 16, empty)
    snap3 = rw.Snap(b"3" * 16, BOBS, b"E" * 16, 0, empty_root, "20261103T000000Z-cccc", [pack3])
    seen = [alice.writer + struct.pack("<Q", alice.seq) + alice.prev]
    writer.commit(bob, rw.volume_record(BOBS, b"E" * 16, "empty", "other") + snap3.record(), seen)
    return Case(writer, alice, bob, image(data), image(second), document, [pack1, pack2], root2)


@dataclass
class Result:
    code: int
    out: str
    err: str


class Bench:
    """Runs rescue.py in this process on a repository directory, unlocked by key file."""

    def __init__(self, tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.repo, self.tmp, self._capsys = tmp / "repo", tmp, capsys
        self.keyfile, self.target = tmp / "key", tmp / "out.img"
        self.keyfile.write_bytes(KEYFILE)
        self.repo.mkdir()

    def run(self, *words: str, key: bool = True) -> Result:
        secret = ["--keyfile", str(self.keyfile)] if key else []
        code = rescue.main(["--repo", str(self.repo), *secret, *words])
        captured = self._capsys.readouterr()
        assert "Traceback" not in captured.err and "internal error" not in captured.err, captured.err
        return Result(code, captured.out, captured.err)

    def restore(self, what: str, *words: str) -> bytes | Result:
        """The bytes restored, or the failed run, after which nothing has the final name."""
        self.target.unlink(missing_ok=True)
        result = self.run("restore", what, "--to", str(self.target), *words)
        if result.code == 0:
            return self.target.read_bytes()
        assert not self.target.exists()
        return result

    def save(self, writer: rw.Writer) -> None:
        shutil.rmtree(self.repo)
        writer.save(self.repo)


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ("LAMELLA_PASSPHRASE", "LAMELLA_PASSPHRASE_FILE", "LAMELLA_RECOVERY_KEY_FILE", "LAMELLA_REPO"):
        monkeypatch.delenv(name, raising=False)
    return Bench(tmp_path, capsys)


@pytest.mark.parametrize(("id_alg", "aead"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_every_snapshot_comes_back_byte_for_byte(bench: Bench, id_alg: int, aead: int) -> None:
    case = build(id_alg, aead)
    bench.save(case.writer)
    assert bench.restore("disk") == case.second
    assert bench.restore("disk@latest") == case.second
    assert bench.restore("disk@20261101") == case.first
    assert bench.restore(VOLUME.hex() + "@20261101T000000Z-aaaa") == case.first
    assert bench.restore("empty") == b""
    assert bench.restore("disk@20261101", "--document", "settings.xml") == case.document


def test_target_is_sparse_and_overwrite_is_needed(bench: Bench) -> None:
    case = build()
    bench.save(case.writer)
    bench.target.write_bytes(b"precious")
    result = bench.run("restore", "disk", "--to", str(bench.target))
    assert (result.code, bench.target.read_bytes()) == (2, b"precious")
    assert bench.run("restore", "disk", "--overwrite", "--to", str(bench.target)).code == 0
    assert bench.target.read_bytes() == case.second
    assert bench.target.stat().st_blocks * 512 <= 8 * rw.CHUNK
    assert not (bench.tmp / "out.img.lamella-partial").exists()


def test_list_names_volumes_snapshots_and_states(bench: Bench) -> None:
    case = build()
    bench.save(case.writer)
    result = bench.run("list")
    lines = {line.split()[1]: line.split() for line in result.out.splitlines()[2:]}
    assert result.code == 0 and result.err == ""
    first = ["disk", "20261101T000000Z-aaaa", "2025-11-22T18:45:01Z", str(SIZE), "quiesced", "dom", "complete"]
    assert lines["20261101T000000Z-aaaa"] == first
    assert lines["20261102T000000Z-bbbb"][-1] == "unstated,unconfirmed"
    assert lines["20261103T000000Z-cccc"][0] == "empty"


def fingerprint(case: Case) -> str:
    heads = sorted(c.writer + struct.pack("<Q", c.seq) + c.prev for c in (case.alice, case.bob))
    digest = hashlib.sha256(b"lamella/1 heads\0" + case.writer.r + b"".join(heads)).digest()[:10]
    return base64.b32encode(digest).decode()


def test_expected_fingerprint(bench: Bench) -> None:
    case = build()
    bench.save(case.writer)
    good = fingerprint(case)
    assert "-".join(good[i : i + 4] for i in range(0, 16, 4)) in bench.run("list").out
    assert bench.run("list", "--expect", good.lower()).code == 0
    assert bench.run("--expect", "A" * 16, "info").code == 21
    result = bench.restore("disk", "--expect", "A" * 16)
    assert isinstance(result, Result) and result.code == 21


@pytest.mark.slow
def test_every_flipped_byte_gives_the_data_or_an_error(bench: Bench) -> None:
    """Of every object a bit of every third or seventh byte: never other data, never a crash."""
    case = build()
    bench.save(case.writer)
    chosen = random.Random(7)
    for name, data in case.writer.objects.items():
        path = bench.repo / name
        step = 7 if len(data) > 1000 else 3
        for at in range(chosen.randrange(step), len(data), step):
            changed = bytearray(data)
            changed[at] ^= 1 << chosen.randrange(8)
            path.write_bytes(changed)
            got = bench.restore("disk@latest")
            if name.startswith("w/"):  # whoever made it: there may be a newer snapshot in it
                assert isinstance(got, Result) and got.code == 21, (name, at, got)
            elif isinstance(got, Result):
                assert got.code in (1, 4, 10, 12, 20), (name, at, got)
            else:
                assert got == case.second, (name, at)
        path.write_bytes(data)
    assert bench.restore("disk") == case.second


def test_every_object_truncated_removed_or_exchanged(bench: Bench) -> None:
    case = build()
    bench.save(case.writer)
    objects = case.writer.objects
    for name, data in objects.items():
        path = bench.repo / name
        others = [other for other_name, other in objects.items() if other_name != name]
        for changed in [data[:cut] for cut in (0, 1, 71, 73, len(data) // 2, len(data) - 1)] + [data + b"\0"] + others:
            path.write_bytes(changed)
            got = bench.restore("disk@latest")
            if name.startswith(f"w/{case.alice.writer.hex()}"):  # another commit names each of them
                assert isinstance(got, Result) and got.code == 21, (name, len(changed), got)
            elif isinstance(got, Result):
                assert got.code in (1, 4, 10, 12, 20, 21), (name, len(changed), got)
            else:
                assert got == case.second, (name, len(changed))
        path.unlink()
        got = bench.restore("disk@latest")
        if name.startswith(f"w/{case.alice.writer.hex()}"):
            assert isinstance(got, Result) and got.code == 21, name
        else:
            assert isinstance(got, Result) or got == case.second
        path.write_bytes(data)


def test_damage_leaves_a_partial_file_with_everything_else(bench: Bench) -> None:
    case = build()
    bench.save(case.writer)
    (bench.repo / f"p/{case.packs[1].hex()[:2]}/{case.packs[1].hex()}").unlink()
    result = bench.restore("disk@20261102")
    assert isinstance(result, Result) and result.code == 20
    assert (bench.tmp / "out.img.lamella-partial").stat().st_size == SIZE
    assert bench.restore("disk@20261101") == case.first


def test_a_good_copy_elsewhere_is_used(bench: Bench) -> None:
    case = build()
    root, blobs = blobs_of(case.writer, {0: small_content(1)}, ())
    assert root
    copy = case.writer.container(DOMAIN, blobs)
    case.writer.put_pack(copy[:-40] + bytes(40))  # the last blob, a node of no snapshot, is damaged
    bench.save(case.writer)
    path = bench.repo / f"p/{case.packs[0].hex()[:2]}/{case.packs[0].hex()}"
    data = bytearray(path.read_bytes())
    entries = int.from_bytes(data[12:16], "little")
    data[72 + entries + 40] ^= 1
    path.write_bytes(data)
    assert bench.restore("disk@20261101") == case.first


def test_a_directory_under_another_id_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who holds the keys can seal a directory under an id that its content does not have."""
    writer, chain = simple()

    def lying(key: bytes, message: bytes) -> bytes:
        right = hmac.digest(key, message, "sha256")
        return right[::-1] if message.startswith(b"dir") else right

    with monkeypatch.context() as patch:
        patch.setattr(rw, "prf", lying)
        snap = one_chunk(writer, chain, 1)
    writer.commit(chain, rw.volume_record(VOLUME, DOMAIN, "disk") + snap.record())
    bench.save(writer)
    result = bench.restore("disk")
    assert isinstance(result, Result) and result.code == 20 and "the directory does not match its id" in result.err


def forged(payload: bytes, rlen: int) -> bytes:
    return struct.pack("<BI", 2, rlen) + payload


def test_forged_zstd_frames_are_refused(bench: Bench) -> None:
    content = small_content(3)
    frame = zstd.compress(content)
    lie = bytearray(frame)
    lie[5:9] = struct.pack("<I", 1 << 30)
    bodies = [
        forged(frame + b"\0", len(content)),
        forged(frame + frame, len(content)),
        forged(bytes(lie), len(content)),
        forged(b"\x50\x2a\x4d\x18\4\0\0\0abcd" + frame, len(content)),
        forged(frame[:-1], len(content)),
        forged(bytes([*frame[:4], frame[4] | 1, 7, *frame[5:]]), len(content)),
        forged(b"\x28\xb5\x2f\xfd\x80\x98" + struct.pack("<I", len(content)) + frame[9:], len(content)),
        struct.pack("<BI", 3, len(content)) + frame,
    ]
    for body in bodies:
        writer = rw.Writer()
        writer.slot(3, KEYFILE)
        ident = writer.blob_id(DOMAIN, 1, content)
        root, nodes = writer.tree(DOMAIN, VOLUME, rw.CHUNK, {0: (rw.DATA, ident)})
        pack = writer.pack(DOMAIN, [rw.Blob(1, ident, body), *nodes])
        snap = rw.Snap(b"1" * 16, VOLUME, DOMAIN, rw.CHUNK, root, "20261101T000000Z-aaaa", [pack])
        writer.commit(fresh(ALICE), rw.volume_record(VOLUME, DOMAIN, "disk") + snap.record())
        bench.save(writer)
        result = bench.restore("disk")
        assert isinstance(result, Result) and result.code == 20, body[:20]


def one_chunk(writer: rw.Writer, chain: rw.Chain, seed: int, extra: bytes = b"", **kw: bytes) -> rw.Snap:
    """The records of one more snapshot of one chunk; the caller publishes them."""
    chunk = writer.blob(DOMAIN, 1, small_content(seed), rw.ZLIB)
    root, nodes = writer.tree(DOMAIN, VOLUME, rw.CHUNK, {0: (rw.DATA, chunk.ident)})
    pack = writer.pack(DOMAIN, [chunk, *nodes])
    name = f"2026110{seed}T000000Z-{seed:04x}"
    return rw.Snap(bytes([seed]) * 16, VOLUME, DOMAIN, rw.CHUNK, root, name, [pack], **kw)  # type: ignore[arg-type]


def simple() -> tuple[rw.Writer, rw.Chain]:
    writer, chain = rw.Writer(), fresh(ALICE)
    writer.slot(3, KEYFILE)
    return writer, chain


def test_unknown_records(bench: Bench) -> None:
    writer, chain = simple()
    snap = one_chunk(writer, chain, 1)
    optional, required = rw.record(0x8123, b"?"), rw.record(0x0777, b"?")
    writer.commit(chain, rw.volume_record(VOLUME, DOMAIN, "disk") + optional + snap.record())
    bench.save(writer)
    assert bench.run("list").err == ""
    writer.commit(chain, required + one_chunk(writer, chain, 2, inner=rw.record(0x8001, bytes(40))).record())
    bench.save(writer)
    assert "0x0777" in bench.run("list").err
    assert bench.restore("disk") == small_content(2)
    writer.commit(chain, one_chunk(writer, chain, 3, inner=rw.record(1, b"x")).record())
    bench.save(writer)
    result = bench.restore("disk")
    assert isinstance(result, Result) and result.code == 1
    assert "unusable" in bench.run("list").out
    assert bench.restore("disk@20261102") == small_content(2)


def test_forks_are_joined_and_reported(bench: Bench) -> None:
    writer, chain = simple()
    writer.commit(chain, rw.volume_record(VOLUME, DOMAIN, "disk") + one_chunk(writer, chain, 1).record())
    branch = rw.Chain(chain.key, chain.seq, chain.prev)
    writer.commit(chain, one_chunk(writer, chain, 2).record())
    writer.commit(branch, one_chunk(writer, branch, 3).record())
    bench.save(writer)
    result = bench.run("list")
    assert result.code == 21 and "fork" in result.err and result.out.count("disk") == 3
    assert bench.restore("disk@20261102") == small_content(2)
    assert bench.restore("disk@20261103") == small_content(3)
    result = bench.run("restore", "disk", "--to", str(bench.tmp / "other"))
    assert result.code == 0 and "as late may be" in result.err
    bob = fresh(BOB)
    seen = [chain.writer + struct.pack("<Q", 2) + tip for tip in (chain.prev, branch.prev)]
    message = b"lamella/1 succeeds\0" + writer.r + bob.writer
    follows = rw.record(0x0D, rw.public_of(chain.key) + chain.key.sign(message))
    writer.commit(bob, follows + one_chunk(writer, bob, 4).record(), seen)
    bench.save(writer)
    assert bench.run("list").code == 21  # whoever goes on: that it forked stays to be seen
    assert bench.restore("disk") == small_content(4)


def test_missing_commits_are_found(bench: Bench) -> None:
    case = build()
    bench.save(case.writer)
    head = f"w/{case.alice.writer.hex()}/{2:016x}-{case.alice.prev.hex()}"
    (bench.repo / head).unlink()
    result = bench.run("list")
    assert result.code == 21 and head in result.err
    needed = bench.run("needs", "disk")
    assert (needed.code, needed.out.split()) == (21, [head])


@pytest.mark.parametrize("in_segment", [True, False])
def test_a_chain_that_begins_at_a_checkpoint(bench: Bench, in_segment: bool) -> None:
    writer, chain = simple()
    first = rw.volume_record(VOLUME, DOMAIN, "disk") + one_chunk(writer, chain, 1).record()
    sha = writer.commit(chain, first)
    entries, at = b"", 0
    while at < len(first):
        size = 6 + int.from_bytes(first[at + 2 : at + 6], "little")
        entries += struct.pack("<Q32sQ", 1, bytes(32), 5) + first[at : at + size]
        at += size
    segment = writer.blob(bytes(16), 7, b"\x01" + bytes(7) + entries, rw.ZLIB)
    value = struct.pack("<II", 0, 0) + entries
    if in_segment:
        value = struct.pack("<II", 0, 1) + segment.ident + writer.pack(bytes(16), [segment])
    writer.commit(chain, rw.record(12, value), checkpoint=True)
    writer.commit(chain, one_chunk(writer, chain, 3).record())
    del writer.objects[f"w/{chain.writer.hex()}/{1:016x}-{sha.hex()}"]
    bench.save(writer)
    result = bench.run("list")
    assert result.code == 21 and "was not checked" in result.err and result.out.count("disk") == 2
    got = bench.restore("disk")
    assert isinstance(got, Result) and got.code == 21
    prune = fresh(BOB)
    writer.commit(prune, writer.prune_sign(prune, 0x16, chain.writer + struct.pack("<Q", 1) + sha + bytes(40)))
    bench.save(writer)
    result = bench.run("list")
    assert result.code == 0 and "was not checked" in result.err and result.out.count("disk") == 2
    assert bench.restore("disk@20261101") == small_content(1)
    assert bench.restore("disk@latest") == small_content(3)
    named = chain.writer + struct.pack("<Q", 2) + chain.checkpoint[8:]
    writer.commit(prune, writer.prune_sign(prune, 0x15, named))
    bench.save(writer)
    assert "was not checked" not in bench.run("list").err


def test_removals_count_only_when_signed(bench: Bench) -> None:
    writer, chain = simple()
    writer.commit(chain, rw.volume_record(VOLUME, DOMAIN, "disk") + one_chunk(writer, chain, 1).record())
    writer.commit(chain, one_chunk(writer, chain, 2).record())
    target = struct.pack("<I", 1) + rw.ref(chain, 2, bytes([2]) * 16)
    writer.commit(chain, rw.record(0x10, target + bytes(64)))
    bench.save(writer)
    assert bench.restore("disk") == small_content(2)
    listed = bench.run("list")
    assert "marked-removed" in listed.out and "without a valid signature" in listed.err
    writer.commit(chain, writer.prune_sign(chain, 0x10, target))
    bench.save(writer)
    assert bench.restore("disk") == small_content(1)
    assert "20261102" not in bench.run("list").out
    result = bench.restore("disk@20261102")
    assert isinstance(result, Result) and result.code == 4
    # Who knows its whole name may try: what is still there is not hidden for ever.
    assert "removed" in bench.run("info").out
    assert bench.restore("disk@20261102T000000Z-0002") == small_content(2)


def tag(chain: rw.Chain, seq: int, snap: int, op: int, word: str) -> bytes:
    return rw.ref(chain, seq, bytes([snap]) * 16) + bytes([op]) + rw.text(word)


def test_tags_select_and_are_taken_away_by_their_giver_or_the_prune_key(bench: Bench) -> None:
    writer, chain = simple()
    bob = fresh(BOB)
    writer.commit(chain, rw.volume_record(VOLUME, DOMAIN, "disk") + one_chunk(writer, chain, 1).record())
    writer.commit(chain, one_chunk(writer, chain, 2).record() + rw.record(5, tag(chain, 1, 1, 1, "old") + bytes(64)))
    seen = [chain.writer + struct.pack("<Q", 2) + chain.prev]
    writer.commit(bob, rw.record(5, tag(chain, 1, 1, 2, "old") + bytes(64)), seen)  # not its own
    bench.save(writer)
    assert "^old" in bench.run("list").out
    assert bench.restore("disk@^old") == small_content(1)
    result = bench.restore("disk@^ol")
    assert isinstance(result, Result) and result.code == 4
    writer.commit(bob, writer.prune_sign(bob, 5, tag(chain, 1, 1, 2, "old")))
    bench.save(writer)
    assert "^old" not in bench.run("list").out
    writer.commit(chain, rw.record(5, tag(chain, 1, 1, 1, "new") + bytes(64)))
    writer.commit(chain, rw.record(5, tag(chain, 1, 1, 2, "new") + bytes(64)))
    bench.save(writer)
    assert "^new" not in bench.run("list").out


def test_what_lies_before_an_audited_checkpoint_says_nothing(bench: Bench) -> None:
    """It was removed, and its tombstone is gone, too: an old commit that turns up again must not bring it back."""
    writer, chain = simple()
    writer.commit(chain, rw.volume_record(VOLUME, DOMAIN, "disk") + one_chunk(writer, chain, 1).record())
    kept = rw.volume_record(VOLUME, DOMAIN, "disk")
    value = struct.pack("<II", 0, 0) + struct.pack("<Q32sQ", 1, bytes(32), 5) + kept
    writer.commit(chain, rw.record(12, value), checkpoint=True)
    writer.commit(chain, one_chunk(writer, chain, 3).record())
    bench.save(writer)
    assert "20261101" in bench.run("list").out
    auditor = fresh(BOB)
    named = chain.writer + struct.pack("<Q", 2) + chain.checkpoint[8:]
    writer.commit(auditor, rw.record(0x15, named + bytes(64)))
    bench.save(writer)
    assert "20261101" in bench.run("list").out  # not signed
    writer.commit(auditor, writer.prune_sign(auditor, 0x15, named))
    bench.save(writer)
    result = bench.run("list")
    assert result.code == 0 and "20261101" not in result.out and "20261103" in result.out, result
    assert bench.restore("disk") == small_content(3)


def test_checkpoints_say_what_their_commits_had_seen(bench: Bench) -> None:
    """With SEEN the latest is known although the commits that say so are gone."""
    writer, chain = simple()
    bob = fresh(BOB)
    given = writer.prune_sign(chain, 0x1A, VOLUME + bob.writer)
    writer.commit(chain, rw.volume_record(VOLUME, DOMAIN, "disk") + given + one_chunk(writer, chain, 1).record())
    seen = chain.writer + struct.pack("<Q", 1) + chain.prev
    snap = one_chunk(writer, bob, 2)
    snap.when -= 10_000
    later = snap.record()
    sha = writer.commit(bob, later, [seen])
    said = rw.record(0x8003, struct.pack("<H", 1) + seen[:24])
    head = struct.pack("<Q32sQ", 1, bytes(32), 5)
    for entries, latest in ((head + later, 1), (head + said + head + later, 2)):
        other = fresh(BOB)
        other.seq, other.prev = 1, sha
        copy = rw.Writer(objects=dict(writer.objects))
        given_up = copy.prune_sign(other, 0x16, bob.writer + struct.pack("<Q", 1) + sha + bytes(40))
        copy.commit(other, rw.record(12, struct.pack("<II", 0, 0) + entries) + given_up, checkpoint=True)
        del copy.objects[f"w/{bob.writer.hex()}/{1:016x}-{sha.hex()}"]
        bench.save(copy)
        assert bench.restore("disk") == small_content(latest)


def test_another_writers_volume_record_does_not_apply(bench: Bench) -> None:
    writer, chain = simple()
    writer.commit(chain, rw.volume_record(VOLUME, DOMAIN, "disk") + one_chunk(writer, chain, 1).record())
    bob = fresh(BOB)
    seen = [chain.writer + struct.pack("<Q", 1) + chain.prev]
    writer.commit(bob, rw.volume_record(VOLUME, DOMAIN, "stolen"), seen)
    writer.commit(chain, rw.record(6, VOLUME + rw.text("renamed") + bytes(64)))
    bench.save(writer)
    result = bench.run("list")
    assert "renamed" in result.out and "stolen" not in result.out and "another writer" in result.err


def test_equal_names_are_told_apart(bench: Bench) -> None:
    writer, chain = simple()
    writer.commit(chain, rw.volume_record(VOLUME, DOMAIN, "disk") + one_chunk(writer, chain, 1).record())
    writer.commit(fresh(BOB), rw.volume_record(BOBS, DOMAIN, "disk"))
    bench.save(writer)
    result = bench.restore("disk")
    assert isinstance(result, Result) and result.code == 4 and f"disk~{BOBS.hex()[:4]}" in result.err
    assert bench.restore(f"disk~{VOLUME.hex()[:4]}") == small_content(1)


@pytest.mark.parametrize(
    ("wrong", "code"), [("signature", 0), ("writer", 0), ("directory", 21), ("prune", 21), ("prev", 21), ("seq", 21)]
)
def test_commits_that_are_not_the_writers(bench: Bench, wrong: str, code: int) -> None:
    writer, chain = simple()
    writer.commit(chain, rw.volume_record(VOLUME, DOMAIN, "disk") + one_chunk(writer, chain, 1).record())
    evil = rw.Chain(Ed25519PrivateKey.from_private_bytes(b"e" * 32))
    victim = rw.Chain(chain.key, chain.seq, chain.prev)
    if wrong in ("signature", "directory"):  # a directory that opens is the work of a key holder: it proves a commit
        victim.seq += 1
        body = writer.blob(bytes(16), 6, b"")
        box = writer.commit_box(victim, body) if wrong == "directory" else writer.container(bytes(16), [body])
        writer.put_commit(victim, box, evil.key)
    elif wrong == "writer":
        sha = writer.commit(evil, one_chunk(writer, evil, 2).record())
        data = writer.objects.pop(f"w/{evil.writer.hex()}/{1:016x}-{sha.hex()}")
        writer.objects[f"w/{chain.writer.hex()}/{2:016x}-{sha.hex()}"] = data
    elif wrong == "prune":
        writer.commit(rw.Chain(writer.prune), one_chunk(writer, evil, 2).record())
    elif wrong == "prev":
        writer.commit(rw.Chain(chain.key, chain.seq, b"x" * 32), one_chunk(writer, evil, 2).record())
    else:
        victim.seq += 5
        writer.commit(victim, one_chunk(writer, evil, 2).record())
    bench.save(writer)
    assert bench.run("list").code == code
    got = bench.restore("disk")
    assert got == small_content(1) if code == 0 else isinstance(got, Result) and got.code == code


def test_secrets(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    case = build()
    case.writer.slot(1, "pässwörd".encode())
    case.writer.slot(2, RECOVERY)
    case.writer.slot(3, b"q" * 40, role=2)
    bench.save(case.writer)
    key = RECOVERY + hashlib.sha256(b"lamella recovery" + RECOVERY).digest()[:3]
    words = base64.b32encode(key).decode()
    sheet = bench.tmp / "sheet"
    groups = "-".join(words[i : i + 4] for i in range(0, 56, 4))
    sheet.write_text(groups.lower().replace("o", "0").replace("b", "8") + "\n")
    assert bench.run("list", "--recovery-key-file", str(sheet), key=False).code == 0
    sheet.write_text("A" * 56)
    assert bench.run("list", "--recovery-key-file", str(sheet), key=False).code == 12
    for content, code in ((b"q" * 40, 0), (b"z" * 40, 12), (b"short", 2)):
        bench.keyfile.write_bytes(content)
        assert bench.run("list").code == code
    monkeypatch.setenv("LAMELLA_PASSPHRASE", "pa\u0308sswo\u0308rd")
    assert bench.run("list", key=False).code == 0
    assert bench.run("list").code == 2
    monkeypatch.setenv("LAMELLA_PASSPHRASE", "wrong")
    assert bench.run("list", key=False).code == 12
    monkeypatch.delenv("LAMELLA_PASSPHRASE")
    (bench.tmp / "pass").write_text("pässwörd\n")
    monkeypatch.setenv("LAMELLA_PASSPHRASE_FILE", str(bench.tmp / "pass"))
    assert bench.run("list", key=False).code == 0


@pytest.mark.parametrize("role", [1, 2])
def test_slots_that_do_not_fit_their_role(bench: Bench, role: int) -> None:
    writer = rw.Writer()
    seed = b"p" * 32 if role == 2 else b"other" + bytes(27)
    writer.slot(3, KEYFILE, role, bundle=writer.data_root + seed + bytes(32))
    bench.save(writer)
    assert bench.run("list").code == 12


def domain_key_file(writer: rw.Writer, root: bytes) -> bytes:
    enc, ident = writer.domain_keys(DOMAIN)
    volume = rw.text("disk") + VOLUME + root + struct.pack("<QB", SIZE, 16)
    head = b"LMLDOMK\x01" + bytes([writer.id_alg]) + bytes(7) + writer.r
    return head + DOMAIN + enc + ident + struct.pack("<I", 1) + volume


def test_domain_key(bench: Bench) -> None:
    case = build()
    bench.save(case.writer)
    path = bench.tmp / "domain"
    path.write_bytes(domain_key_file(case.writer, case.root2))
    assert "disk" in bench.run("list", "--domain-key", str(path), key=False).out
    result = bench.run("restore", "disk", "--to", str(bench.target), "--domain-key", str(path), key=False)
    assert (result.code, result.err.count("warning")) == (0, 0) and bench.target.read_bytes() == case.second
    path.write_bytes(domain_key_file(rw.Writer(2), case.root2))
    assert bench.run("list", "--domain-key", str(path), key=False).code == 12
    path.write_bytes(domain_key_file(case.writer, case.root2)[:-1])
    assert bench.run("list", "--domain-key", str(path), key=False).code == 2


def test_needs_works_in_rounds(bench: Bench) -> None:
    case = build()
    objects = case.writer.objects
    wanted = {name for name in objects if name.startswith("p/")}
    assert bench.run("needs", "disk").out.split() == ["lamella", "keys/", "w/"]
    for name, data in objects.items():
        if not name.startswith("p/"):
            (bench.repo / name).parent.mkdir(parents=True, exist_ok=True)
            (bench.repo / name).write_bytes(data)
    got = set(bench.run("needs", "disk").out.split())
    assert got < wanted and len(got) == 2
    for name in got:
        (bench.repo / name).parent.mkdir(parents=True, exist_ok=True)
        (bench.repo / name).write_bytes(objects[name])
    assert bench.run("needs", "disk").out == ""
    assert bench.restore("disk") == case.second


def test_nothing_matches(bench: Bench) -> None:
    case = build()
    bench.save(case.writer)
    assert bench.run("list", "nothing").code == 4
    for what in ("nothing", "disk@2025", "disk@2026"):
        result = bench.restore(what)
        assert isinstance(result, Result) and result.code == 4
    shutil.rmtree(bench.repo)
    assert bench.run("list").code == 10
    assert bench.run("unknown").code == 2
    assert bench.run("list", "--unknown").code == 2


def test_only_regular_files_are_read(bench: Bench) -> None:
    case = build()
    bench.save(case.writer)
    pack = bench.repo / f"p/{case.packs[1].hex()[:2]}/{case.packs[1].hex()}"
    moved = pack.rename(bench.tmp / "elsewhere")
    pack.symlink_to(moved)
    result = bench.restore("disk")
    assert isinstance(result, Result) and result.code == 20
    pack.unlink()
    os.mkfifo(pack)
    result = bench.restore("disk")
    assert isinstance(result, Result) and result.code == 20
    pack.unlink()
    moved.rename(pack)
    folder = (bench.repo / "w").rename(bench.tmp / "w")
    (bench.repo / "w").symlink_to(folder)
    assert bench.run("list").out.count("disk") == 0


def test_a_listing_stops_at_so_many_invalid_names(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No sooner than where other names end it: whoever may add objects may add some of invalid names."""
    bench.save(build().writer)
    for number in range(1200):
        (bench.repo / "w" / f"!{number}\x1b[2J").write_bytes(b"")
    result = bench.run("list")
    assert result.code == 0 and "1200 names of no object" in result.err and "\x1b" not in result.err
    assert rescue.INVALID_NAMES == MOST_OTHERS
    monkeypatch.setattr(rescue, "INVALID_NAMES", 1000)
    result = bench.run("list")
    assert result.code == 21 and "listing stops" in result.err and "\x1b" not in result.err


def test_no_number_of_planted_names_hides_a_slot(bench: Bench) -> None:
    bench.save(build().writer)
    for number in range(1200):
        (bench.repo / "keys" / f"!{number}\x1b[2J").write_bytes(b"")
        (bench.repo / "keys" / f"{number:08x}").write_bytes(b"LMLSLOT\x01\x03" + bytes(231))
    result = bench.run("list")
    assert result.code == 0 and result.err.count("\n") == 1 and "\x1b" not in result.err
    assert "2400 objects in keys/ that no admin signed are ignored" in result.err


@pytest.mark.parametrize("by", [b"e" * 32, b"o" * 32])
def test_a_slot_that_no_admin_signed_opens_nothing(bench: Bench, by: bytes) -> None:
    writer = rw.Writer()
    writer.slot(3, KEYFILE, by=Ed25519PrivateKey.from_private_bytes(by))
    bench.save(writer)
    result = bench.run("list")
    assert result.code == 12 and "none of 0 slots" in result.err
    writer.slot(3, KEYFILE)
    bench.save(writer)
    assert bench.run("list").code == 0


def test_a_slot_that_cannot_be_read_is_no_wrong_key(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.save(build().writer)

    pread = os.pread

    def read(held: int, size: int, at: int) -> bytes:
        if size == rescue.SLOT:
            raise OSError(errno.EIO, "Input/output error")
        return pread(held, size, at)

    monkeypatch.setattr("os.pread", read)
    result = bench.run("list")
    assert result.code == 1 and "Input/output error" in result.err


PLANTED = [
    "argparse",
    "base64",
    "collections",
    "contextlib",
    "ctypes",
    "hashlib",
    "zlib",
    "struct",
    "json",
    "hmac",
    "re",
    "stat",
    "typing",
    "unicodedata",
    "functools",
    "sqlite3",
    "getpass",
    "traceback",
    "__future__",
    "errno",
    "backports",
]


@pytest.mark.parametrize("flags", [[], ["-S"], ["-I", "-S"], ["-I"]])
def test_planted_modules_never_run(tmp_path: Path, flags: list[str]) -> None:
    case = build()
    repo = case.writer.save(tmp_path / "repo")
    hostile = tmp_path / "path"
    hostile.mkdir()
    for name in PLANTED:
        trap = f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n"
        (repo / f"{name}.py").write_text(trap)
        if name not in ("re", "collections", "typing", "contextlib", "stat", "errno", "functools"):  # site imports some
            (hostile / f"{name}.py").write_text(trap)
    copy = shutil.copy(rescue.__file__, repo / "restore.py")
    (tmp_path / "key").write_bytes(KEYFILE)
    out = tmp_path / "out"
    words = ["restore", "disk", "--repo", ".", "--to", str(out), "--keyfile", "../key"]
    command = [sys.executable, *flags, str(copy), *words]
    environment = {"PYTHONPATH": f"{hostile}:", "PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == case.second
    assert not (tmp_path / "ran").exists()


def test_help_and_errors_are_short(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", rescue.__file__]
    done = subprocess.run([*command, "-h"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "restore" in done.stdout
    command += ["list", "--repo", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 10 and done.stderr.count("\n") == 1
