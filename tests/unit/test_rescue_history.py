"""rescue.py where a part of the history cannot be read, or where a writer lies about it."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lamella import rescue
from tests.unit import rescue_writer as rw
from tests.unit.test_rescue_repository import (
    BOB,
    BOBS,
    DOMAIN,
    VOLUME,
    Bench,
    Result,
    fresh,
    one_chunk,
    simple,
    small_content,
)

OTHER = BOBS
GIVE = 0x1A
DISK = rw.volume_record(VOLUME, DOMAIN, "disk")
ELSEWHERE = rw.volume_record(OTHER, DOMAIN, "other")


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ("LAMELLA_PASSPHRASE", "LAMELLA_PASSPHRASE_FILE", "LAMELLA_RECOVERY_KEY_FILE", "LAMELLA_REPO"):
        monkeypatch.delenv(name, raising=False)
    return Bench(tmp_path, capsys)


def path_of(chain: rw.Chain, seq: int, sha: bytes) -> str:
    return f"w/{chain.writer.hex()}/{seq:016x}-{sha.hex()}"


def head(chain: rw.Chain, seq: int, sha: bytes) -> bytes:
    return chain.writer + struct.pack("<Q", seq) + sha


def name_of(seed: int) -> str:
    return f"2026110{seed}T000000Z-{seed:04x}"


def flip(writer: rw.Writer, path: str, at: int) -> None:
    data = bytearray(writer.objects[path])
    data[at] ^= 1
    writer.objects[path] = bytes(data)


def two_snapshots() -> tuple[rw.Writer, rw.Chain, list[bytes]]:
    """One writer, two snapshots of "disk"; the SHA-256 of its commits."""
    writer, chain = simple()
    tagged = rw.record(5, rw.ref(chain, 1, b"\1" * 16) + b"\1" + rw.text("old") + bytes(64))
    first = rw.record(1, rw.text("box") + rw.text("m")) + DISK + one_chunk(writer, chain, 1).record() + tagged
    return writer, chain, [writer.commit(chain, first), writer.commit(chain, one_chunk(writer, chain, 2).record())]


def refused(bench: Bench, what: str) -> str:
    got = bench.restore(what)
    assert isinstance(got, Result) and got.code == 21, got
    return got.err


def restored_with_21(bench: Bench, what: str) -> tuple[bytes, str]:
    """What was restored although history is missing, and what was said."""
    bench.target.unlink(missing_ok=True)
    got = bench.run("restore", what, "--to", str(bench.target))
    assert got.code == 21 and bench.target.exists(), got
    return bench.target.read_bytes(), got.err


# -- objects that do not open ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [3, 20, 60, 80, 200, -200, -130, -128, -90, -1])
def test_a_flipped_bit_in_the_newest_commit_is_missing_history(bench: Bench, at: int) -> None:
    writer, chain, shas = two_snapshots()
    damaged = path_of(chain, 2, shas[1])
    flip(writer, damaged, at)
    bench.save(writer)
    for words in (["list"], ["info"], ["list", "disk"], ["list", "nothing"], ["needs", "disk"]):
        result = bench.run(*words)
        assert result.code == 21 and damaged in result.err, words
    assert bench.run("needs", "disk").out.split() == [damaged]
    for what in ("disk", "disk@latest", "disk@20261101", "disk@^old", VOLUME.hex(), "nothing", f"disk@{name_of(2)}"):
        assert damaged in refused(bench, what), what
    text = refused(bench, "disk").splitlines()[-1]
    assert damaged in text and f"disk@{name_of(1)}" in text and "--give-up" in text
    for what in (f"disk@{name_of(1)}", f"{VOLUME.hex()}@{'01' * 16}"):
        content, said = restored_with_21(bench, what)
        assert content == small_content(1) and "there may be newer snapshots" in said


def test_a_tag_or_prefix_that_is_like_a_name_is_not_in_full(bench: Bench) -> None:
    writer, chain, shas = two_snapshots()
    snap = one_chunk(writer, chain, 3)
    snap.name = "latest"
    last = writer.commit(chain, snap.record())
    flip(writer, path_of(chain, 2, shas[1]), 200)
    bench.save(writer)
    assert last and "disk@latest" in refused(bench, "disk@latest")
    assert restored_with_21(bench, f"disk@{'03' * 16}")[0] == small_content(3)


@pytest.mark.parametrize("witness", ["none", "seen", "prev", "audited", "unsigned", "checkpoint", "earlier"])
def test_what_proves_nothing_is_missed_only_if_somebody_names_it(bench: Bench, witness: str) -> None:
    writer, chain, bob = *simple(), fresh(BOB)
    start = DISK + one_chunk(writer, chain, 1).record()
    writer.commit(chain, start)
    sha = writer.commit(chain, rw.record(12, struct.pack("<II", 0, 0)) if witness == "checkpoint" else b"")
    named = head(chain, 2, sha)
    junk = path_of(chain, 2, sha)
    if witness == "seen":
        writer.commit(bob, b"", [named])
    elif witness == "prev":
        writer.commit(chain, b"")
    elif witness == "audited":
        writer.commit(bob, writer.prune_sign(bob, 0x15, named))
    elif witness == "unsigned":
        writer.commit(bob, rw.record(0x15, named + bytes(64)))
    elif witness in ("checkpoint", "earlier"):  # two commits after it are gone: nothing else names it
        chain.checkpoint = named[16:] if witness == "checkpoint" else bytes(40)
        chain.seq, chain.prev = 4, b"p" * 32
        earlier = struct.pack("<I", 1) + named[16:] + struct.pack("<I", 0) if witness == "earlier" else b""
        writer.commit(chain, rw.record(12, earlier) if earlier else b"")
    writer.objects[junk] = b"junk" * 40
    bench.save(writer)
    result = bench.run("list")
    if witness in ("none", "unsigned"):
        assert result.code == 0 and f"note: {junk}" in result.err
        assert bench.restore("disk") == small_content(1)
    else:
        assert result.code == 21 and f"history is missing: {junk}" in result.err
        refused(bench, "disk")


def test_junk_and_copies_under_other_names_are_no_news(bench: Bench) -> None:
    writer, chain, shas = two_snapshots()
    genuine = writer.objects[path_of(chain, 2, shas[1])]
    for number, name in enumerate((path_of(chain, 3, shas[1]), path_of(fresh(BOB), 2, shas[1]))):
        writer.objects[name] = genuine if number else genuine[:-1]
    writer.objects[path_of(chain, 0, b"0" * 32)] = genuine
    writer.objects[path_of(chain, 2, b"x" * 32)] = genuine[:-9]  # its intact copy is there
    writer.objects[path_of(chain, 1, b"y" * 32)] = b"y" + writer.objects[path_of(chain, 1, shas[0])]
    writer.objects["i/" + "7" * 64] = b"rot"
    writer.objects["restore.py"] = writer.objects["readme.txt"] = b"\0"
    bench.save(writer)
    result = bench.run("list")
    assert result.code == 0 and result.err.count("no commit is missed") == result.err.count("note: ") == 5
    assert bench.run("needs", "disk").code == 0
    assert bench.restore("disk") == small_content(2)


def test_a_trailer_vouches_for_its_own_container_only(bench: Bench) -> None:
    """Who holds the data key can make a container, but not Alice's word for it."""
    writer, chain, shas = two_snapshots()
    trailer = writer.objects[path_of(chain, 2, shas[1])][-144:]
    forger = rw.Chain(chain.key, 1, shas[0])
    sha = writer.commit(forger, one_chunk(writer, forger, 3).record())
    forged = writer.objects.pop(path_of(forger, 2, sha))[:-144] + trailer
    writer.objects[path_of(chain, 2, hashlib.sha256(forged).digest())] = forged
    bench.save(writer)
    listed = bench.run("list")
    assert listed.code == 0 and name_of(3) not in listed.out and "no commit is missed" in listed.err
    assert bench.restore("disk") == small_content(2)


def test_a_damaged_copy_of_another_commit_of_that_number_is_missed(bench: Bench) -> None:
    """A branch of a fork of which nothing else is left."""
    writer, chain, shas = two_snapshots()
    branch = rw.Chain(chain.key, 1, shas[0])
    sha = writer.commit(branch, one_chunk(writer, branch, 3).record())
    flip(writer, path_of(branch, 2, sha), -140)
    bench.save(writer)
    assert path_of(branch, 2, sha) in refused(bench, "disk")


@pytest.mark.parametrize("call", ["pread", "open"])
def test_what_the_storage_withholds_may_be_anything(bench: Bench, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    writer, chain, shas = two_snapshots()
    bench.save(writer)
    (bench.repo / path_of(chain, 3, b"f" * 32)).mkdir()
    assert bench.run("list").code == 0
    path = bench.repo / path_of(chain, 2, shas[1])
    failing, pread, real_open = path.stat().st_ino, os.pread, os.open

    def read(held: int, size: int, offset: int) -> bytes:
        if os.fstat(held).st_ino == failing:
            raise OSError(errno.EIO, "Input/output error")
        return pread(held, size, offset)

    def opened(name: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if name == path.name:
            raise OSError(errno.EIO, "Input/output error")
        return real_open(name, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, call, {"pread": read, "open": opened}[call])
    assert "Input/output error" in refused(bench, "disk")
    assert restored_with_21(bench, f"disk@{name_of(1)}")[0] == small_content(1)


def test_before_the_beginning_of_a_chain_nothing_is_missed(bench: Bench) -> None:
    writer, chain = simple()
    first = writer.commit(chain, DISK)
    carried = struct.pack("<II", 0, 0) + struct.pack("<Q32sQ", 1, bytes(32), 5) + DISK
    begin = writer.commit(chain, rw.record(12, carried), checkpoint=True)
    writer.commit(chain, one_chunk(writer, chain, 3).record())
    flip(writer, path_of(chain, 1, first), 200)
    bench.save(writer)
    refused(bench, "disk")
    bob = fresh(BOB)
    writer.commit(bob, writer.prune_sign(bob, 0x15, head(chain, 2, begin)))
    bench.save(writer)
    assert bench.run("list").code == 0
    assert bench.restore("disk") == small_content(3)
    assert bench.run("needs", "disk").out == ""
    flip(writer, path_of(chain, 2, begin), 200)  # and the one before it does not say what came after it
    bench.save(writer)
    assert path_of(chain, 2, begin) in refused(bench, "disk")


def test_a_beginning_of_which_a_segment_is_gone_is_missing_history(bench: Bench) -> None:
    writer, chain, bob = *simple(), fresh(BOB)
    first = writer.commit(chain, DISK)
    entries = struct.pack("<Q32sQ", 1, bytes(32), 5) + DISK
    segment = writer.blob(bytes(16), 7, b"\x01" + bytes(7) + entries, rw.ZLIB)
    pack = writer.pack(bytes(16), [segment])
    begin = writer.commit(chain, rw.record(12, struct.pack("<II", 0, 1) + segment.ident + pack), checkpoint=True)
    writer.commit(chain, one_chunk(writer, chain, 3).record())
    writer.commit(bob, writer.prune_sign(bob, 0x15, head(chain, 2, begin)))
    del writer.objects[path_of(chain, 1, first)]
    bench.save(writer)
    assert bench.restore("disk") == small_content(3)
    name = f"p/{pack.hex()[:2]}/{pack.hex()}"
    del writer.objects[name]
    bench.save(writer)
    assert "begins with it" in refused(bench, VOLUME.hex())
    needed = bench.run("needs", VOLUME.hex())
    assert needed.code == 21 and needed.out.split() == [name]


# -- FORGO -------------------------------------------------------------------------------------------------------------


def forgone(chain: rw.Chain, seq: int, sha: bytes, left: int, left_sha: bytes) -> bytes:
    """A FORGO of one commit of a chain, before which another one is left."""
    return head(chain, seq, sha) + struct.pack("<Q", left) + left_sha


def given_up(writer: rw.Writer, named: bytes, kind: str, left: bytes = bytes(40)) -> None:
    """Bob's FORGO of a commit; `left` is the one that was there before it."""
    bob, said = fresh(BOB), named + left[-40:]
    if kind == "unsigned":
        writer.commit(bob, rw.record(0x16, said + bytes(64)))
        return
    signed = writer.prune_sign(bob, 0x16, said)
    sha = writer.commit(bob, signed)
    if kind == "carried":  # and a second one, so that the checkpoint of the chain says the first
        carried = struct.pack("<II", 0, 0) + struct.pack("<Q32sQ", 1, bytes(32), 5) + signed
        begin = writer.commit(bob, rw.record(12, carried), checkpoint=True)
        writer.commit(bob, writer.prune_sign(bob, 0x15, head(bob, 2, begin)))
        del writer.objects[path_of(bob, 1, sha)]


@pytest.mark.parametrize("kind", ["signed", "carried", "unsigned", "hash", "writer", "number"])
def test_a_commit_given_up_is_not_missed(bench: Bench, kind: str) -> None:
    writer, chain, shas = two_snapshots()
    flip(writer, path_of(chain, 2, shas[1]), 200)
    left = head(chain, 1, shas[0])
    named = {"hash": (chain, 2, b"h" * 32), "writer": (fresh(BOB), 3, shas[1]), "number": (chain, 1, shas[1])}
    given_up(writer, head(*named.get(kind, (chain, 2, shas[1]))), kind, left)
    bench.save(writer)
    if kind in ("signed", "carried"):
        assert bench.run("list").code == 0
        assert bench.run("needs", "disk").out == ""
        assert bench.restore("disk") == small_content(1)
    else:
        refused(bench, "disk")
        assert ("without a valid signature" in bench.run("list").err) == (kind == "unsigned")


def test_those_right_before_it_are_given_up_as_well(bench: Bench) -> None:
    writer, chain = simple()
    shas = [
        writer.commit(chain, (b"" if seq else DISK) + one_chunk(writer, chain, seq + 1).record()) for seq in range(7)
    ]
    for seq in (2, 4, 5, 7):
        del writer.objects[path_of(chain, seq, shas[seq - 1])]
    given_up(writer, head(chain, 5, shas[4]), "signed", head(chain, 3, shas[2]))
    saw = rw.Chain(Ed25519PrivateKey.from_private_bytes(b"c" * 32))
    writer.commit(saw, b"", [head(chain, 4, shas[3])])
    bench.save(writer)
    absent = [path_of(chain, 2, shas[1])]
    result = bench.run("list")
    assert result.code == 21 and bench.run("needs", "disk").out.split() == absent, result
    writer.commit(saw, writer.prune_sign(saw, 0x16, forgone(chain, 2, shas[1], 1, shas[0])))
    bench.save(writer)
    assert bench.run("list").code == 0
    assert bench.restore("disk") == small_content(6)
    writer.commit(saw, b"", [head(chain, 5, b"x" * 32)])  # nobody needs to give up what never was
    bench.save(writer)
    assert bench.run("list").code == 0
    # A witness of what came later than anything that is here.
    writer.commit(saw, b"", [head(chain, 7, shas[6])])
    bench.save(writer)
    assert path_of(chain, 7, shas[6]) in refused(bench, "disk")
    writer.commit(saw, writer.prune_sign(saw, 0x16, forgone(chain, 9, b"9" * 32, 6, shas[5])))
    bench.save(writer)
    assert bench.restore("disk") == small_content(6)
    # What was left then is missed as ever: before a gap, and at the end.
    for seq in (3, 6):
        lost = path_of(chain, seq, shas[seq - 1])
        kept = writer.objects.pop(lost)
        bench.save(writer)
        assert bench.run("needs", "disk").out.split()[-1:] == [lost]
        writer.objects[lost] = kept


def test_behind_a_gap_a_writer_still_had_seen_what_it_had_seen_before(bench: Bench) -> None:
    writer, chain, bob = *simple(), fresh(BOB)
    given = writer.prune_sign(chain, GIVE, VOLUME + bob.writer)
    first = writer.commit(chain, DISK + given + one_chunk(writer, chain, 1).record())
    begun = writer.commit(bob, b"", [head(chain, 1, first)])
    gone = writer.commit(bob, b"")
    later = one_chunk(writer, bob, 2)
    later.when -= 1000
    writer.commit(bob, later.record())
    del writer.objects[path_of(bob, 2, gone)]
    writer.commit(chain, writer.prune_sign(chain, 0x16, forgone(bob, 2, gone, 1, begun)))
    bench.save(writer)
    assert bench.restore("disk") == small_content(2)


# -- other writers' volumes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["nothing", "label", "volume", "snapshot", "pin", "file", "lost", "alone"])
def test_history_of_writers_that_never_wrote_this_volume(bench: Bench, said: str) -> None:
    writer, chain = simple()
    writer.commit(chain, DISK + one_chunk(writer, chain, 1).record())
    bob, ref = fresh(BOB), rw.ref(chain, 1, b"\1" * 16)
    other = one_chunk(writer, bob, 2)
    other.volume = OTHER
    records = {
        "label": lambda: rw.record(7, ref + b"\1" + rw.text("stays") + bytes(64)),
        "volume": lambda: rw.volume_record(VOLUME, DOMAIN, "mine"),
        "snapshot": lambda: one_chunk(writer, bob, 3).record(),
        "pin": lambda: writer.prune_sign(bob, 7, ref + b"\1" + rw.text("stays")),
        "file": lambda: writer.prune_sign(bob, 8, rw.text("lamella") + struct.pack("<Q", 64) + bytes(32)),
        "lost": lambda: writer.prune_sign(bob, 0x8002, ref + bytes(14)),
    }
    if said != "alone":
        seen = [head(chain, 1, chain.prev)]
        writer.commit(bob, ELSEWHERE + other.record() + records.get(said, lambda: b"")(), seen)
    sha = writer.commit(bob, b"")
    flip(writer, path_of(bob, bob.seq, sha), 200)
    bench.save(writer)
    assert bench.run("list").code == 21
    if said in ("nothing", "label"):
        content, text = restored_with_21(bench, "disk")
        assert content == small_content(1) and "never wrote this volume" in text
    else:
        refused(bench, "disk")
    if said != "alone":
        refused(bench, "other")


def test_lost_data_says_more_than_missing_history(bench: Bench) -> None:
    writer, chain, shas = two_snapshots()
    flip(writer, path_of(chain, 2, shas[1]), 200)
    for name in [name for name in writer.objects if name.startswith("p/")]:
        flip(writer, name, -100)
    bench.save(writer)
    got = bench.restore(f"disk@{name_of(1)}")
    assert isinstance(got, Result) and got.code == 20 and "there may be newer snapshots" in got.err


def test_needs_names_packs_of_what_is_known_as_well(bench: Bench) -> None:
    writer, chain, shas = two_snapshots()
    flip(writer, path_of(chain, 2, shas[1]), 200)
    packs = [name for name in writer.objects if name.startswith("p/")]
    kept = {name: data for name, data in writer.objects.items() if name not in packs}
    bench.save(rw.Writer(objects=kept))
    got = bench.run("needs", "disk")
    assert got.code == 21 and got.out.split() == [packs[0], path_of(chain, 2, shas[1])]
    got = bench.run("needs", "nothing")
    assert got.code == 21 and got.out.split() == [path_of(chain, 2, shas[1])]


# -- records -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [True, False])
def test_a_snapshot_is_revived(bench: Bench, signed: bool) -> None:
    writer, chain, _ = two_snapshots()
    old = rw.ref(chain, 2, b"\2" * 16)
    writer.commit(chain, writer.prune_sign(chain, 0x10, struct.pack("<I", 1) + old))
    bob = fresh(BOB)
    value = old + one_chunk(writer, chain, 2).value() + rw.record(0x8123, b"optional")
    revived = writer.prune_sign(bob, 0x17, value) if signed else rw.record(0x17, value + bytes(64))
    writer.commit(bob, revived, [head(chain, 3, chain.prev)])
    bench.save(writer)
    listed, told = bench.run("list"), bench.run("info")
    assert listed.code == 0
    if signed:
        assert listed.out.count(name_of(2)) == 1 and told.out.count(name_of(2)) == 2
        assert "conflict" not in told.out and "removed" in told.out
        assert bench.restore("disk") == small_content(2)
        assert bench.restore("disk@20261102") == small_content(2)
    else:
        assert name_of(2) not in listed.out and "without a valid signature" in listed.err
        assert bench.restore("disk") == small_content(1)


def test_the_last_one_is_removed_only_with_a_signature(bench: Bench) -> None:
    writer, chain, _ = two_snapshots()
    target = struct.pack("<I", 1) + rw.ref(chain, 2, b"\2" * 16)
    writer.commit(chain, rw.record(0x18, target + bytes(64)))
    bench.save(writer)
    assert bench.restore("disk") == small_content(2)
    assert "marked-removed" in bench.run("list").out
    writer.commit(chain, writer.prune_sign(chain, 0x18, target))
    bench.save(writer)
    assert bench.restore("disk") == small_content(1)
    assert bench.run("list").err.count("ignored") == 1


def test_losses_are_shown_whoever_says_so_and_bad_addresses_are_not(bench: Bench) -> None:
    writer, chain, _ = two_snapshots()
    ref = rw.ref(chain, 2, b"\2" * 16)
    some = ref + struct.pack("<QI", 5, 1) + struct.pack("<QQ", 0, 5) + struct.pack("<H", 0)
    whole = ref + bytes(14)

    def state() -> str:
        bench.save(writer)
        listed = bench.run("list")
        assert listed.code == 0 and listed.err == ""
        return next(line for line in listed.out.splitlines() if name_of(2) in line)

    for lost, value in ((True, some), (False, whole), (True, some)):
        writer.commit(chain, rw.record(0x8002, value + bytes(64)))
        assert ("parts-lost" in state()) == lost
        writer.commit(chain, writer.prune_sign(chain, 0x8002, value))
        assert ("parts-lost" in state()) == lost
    writer.commit(chain, rw.record(0x8004, struct.pack("<I", 1) + b"p" * 32 + b"\1" + b"i" * 24))
    assert "parts-lost" in state()
    writer.commit(chain, rw.record(0x8002, whole + bytes(63)))  # too short for a signature: it says nothing
    bench.save(writer)
    assert "record 0x8002" in bench.run("list").err


# -- order -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newest", ["bob", "alice"])
def test_in_a_circle_the_newest_moment_is_the_latest(bench: Bench, newest: str) -> None:
    """Bob says that he saw what Alice has not made yet: it counts as what she has, and is missed until given up."""
    writer, chain, bob = *simple(), fresh(BOB)
    given = writer.prune_sign(chain, GIVE, VOLUME + bob.writer)
    writer.commit(chain, DISK + given + one_chunk(writer, chain, 9).record())
    lie = head(chain, 1 << 63, b"f" * 32)
    theirs, hers = one_chunk(writer, bob, 4), one_chunk(writer, chain, 3)
    (theirs if newest == "bob" else hers).when += 1000
    sha = writer.commit(bob, theirs.record(), [lie])
    writer.commit(chain, hers.record(), [head(bob, 1, sha)])
    bench.save(writer)
    assert f"{1 << 63:016x}" in refused(bench, "disk")
    writer.commit(bob, writer.prune_sign(bob, 0x16, lie + bytes(40)))
    bench.save(writer)
    assert bench.run("list").code == 0
    assert bench.restore("disk") == small_content(4 if newest == "bob" else 3)


@pytest.mark.parametrize("right", [True, False])
def test_a_seen_entry_of_another_hash_counts_nothing(bench: Bench, right: bool) -> None:
    writer, chain, shas = two_snapshots()
    bob = fresh(BOB)
    theirs = one_chunk(writer, bob, 4)
    theirs.when -= 10_000
    given = writer.prune_sign(bob, GIVE, VOLUME + bob.writer)
    writer.commit(bob, given + theirs.record(), [head(chain, 2, shas[1] if right else b"x" * 32)])
    bench.save(writer)
    assert bench.run("list").code == 0
    assert bench.restore("disk") == small_content(4 if right else 2)


@pytest.mark.parametrize("how", ["claim", "given", "joined", "succeeded", "stolen"])
def test_only_an_owners_snapshot_is_the_latest(bench: Bench, how: str) -> None:
    writer, chain, shas = two_snapshots()
    bob = fresh(BOB)
    message = b"lamella/1 succeeds\0" + writer.r + bob.writer
    own = rw.record(2, rw.volume_record(VOLUME, DOMAIN, "stolen")[6:])
    said = {
        "claim": b"",
        "given": writer.prune_sign(bob, GIVE, VOLUME + bob.writer),
        "joined": writer.prune_sign(bob, 0x19, bob.writer + chain.writer),
        "succeeded": rw.record(0x0D, rw.public_of(chain.key) + chain.key.sign(message)),
        "stolen": own + rw.record(0x0D, rw.public_of(chain.key) + bob.key.sign(message)),
    }
    writer.commit(bob, said[how] + one_chunk(writer, bob, 4).record(), [head(chain, 2, shas[1])])
    bench.save(writer)
    listed = bench.run("list")
    owned = how in ("given", "joined", "succeeded")
    assert listed.code == 0 and ("claim" in listed.out) == (not owned)
    assert bench.restore("disk") == small_content(4 if owned else 2)
    assert bench.restore(f"disk@{name_of(4)}") == small_content(4)


def test_restore_says_which_snapshot_before_it_begins(bench: Bench) -> None:
    writer, chain, _ = two_snapshots()
    bench.save(writer)
    result = bench.run("restore", "disk", "--to", str(bench.target))
    by = f"{chain.writer.hex()[:8]} box"
    lines = result.err.splitlines()
    assert lines[0] == f"restoring disk@{name_of(2)} of 2025-11-22T18:45:01Z, written by {by}"
    assert "restored and compared" in lines[-1] and result.code == 0
    result = bench.run("restore", "disk", "--to", str(bench.target))
    assert result.code == 2 and result.err.startswith("restoring disk@")


@pytest.mark.parametrize("hidden", ["w", "the writer", "many names"])
def test_a_folder_of_commits_that_is_not_listed_to_its_end_is_missing_history(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    """A storage that hides the newest commits this way would otherwise be given an older snapshot as the latest."""
    writer, chain, _ = two_snapshots()
    folder = "w" if hidden == "w" else f"w/{chain.writer.hex()}"
    if hidden == "many names":
        monkeypatch.setattr(rescue, "INVALID_NAMES", 50)
        writer.objects |= {f"{folder}/{number:04}": b"" for number in range(50)}
    bench.save(writer)
    real = os.listdir

    def listed(place: int) -> list[str]:
        if hidden != "many names" and str(Path(f"/proc/self/fd/{place}").readlink()).endswith(f"/{folder}"):
            raise OSError(errno.EIO, "Input/output error")
        return real(place)

    monkeypatch.setattr(os, "listdir", listed)
    result = bench.run("list")
    assert result.code == 21 and "was not listed to its end" in result.err
    assert "was not listed to its end" in refused(bench, "disk")
