"""What of a wyng archive is read, and what a hostile archive can do.

The fears: a chunk that changed and is taken for unchanged; a forged archive that fills memory, reads another file,
hangs, ends the program with a trace, or gives bytes that nobody saved.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import os
import random
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.base.errors import LamellaError, SourceError
from lamella.format import zstd_provider
from lamella.imports.foreign_files import read_foreign
from lamella.imports.history import ForeignHistory, volume_sources
from lamella.imports.wyng import keys
from lamella.imports.wyng.history import wyng_history
from lamella.imports.xchacha import xchacha20, xchacha20_poly1305
from tests.imports.wyng_archives import EXPECTED, PASSPHRASE, unpacked

GRAIN = 1 << 16
ROUNDS = int(os.environ.get("LAMELLA_TEST_MUTATIONS", "40"))
"""2000 by hand."""


@pytest.fixture(autouse=True, scope="module")
def each_key_once() -> Iterator[None]:
    """A key costs a second and 512 MiB; the same words give the same key, so that each is derived once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "_scrypt", functools.cache(keys._scrypt))
        yield


def opened(place: Path) -> ForeignHistory:
    return wyng_history(place, lambda: PASSPHRASE.encode())


def contents(history: ForeignHistory) -> Iterator[tuple[str, str, bytes]]:
    """Session, volume and content of everything that can be read."""
    for session, volume in volume_sources(history):
        with volume.source.freeze() as frozen:
            content = bytearray(min(frozen.size, 1 << 24))
            frozen.read_into(0, memoryview(content))
            yield session.id, volume.name, bytes(content)


def test_no_chunk_outside_a_delta_differs(tmp_path: Path) -> None:
    history = opened(unpacked("plain", tmp_path))
    before: dict[bytes, tuple[str, bytes]] = {}
    narrower = 0
    for session, volume in volume_sources(history):
        with volume.source.freeze() as frozen:
            content = bytearray(frozen.size)
            frozen.read_into(0, memoryview(content))
            there = bytearray(frozen.size)
            for extent in frozen.allocated():
                there[extent.start : extent.end] = content[extent.start : extent.end]
            assert there == content, "what is not allocated is zero"
            earlier = before.get(volume.source.identity)
            if earlier is not None:
                delta = frozen.delta_since(earlier[0], GRAIN)
                touched = delta.changed | delta.zeroed
                chunks = -(-len(content) // GRAIN)
                for chunk in range(chunks):
                    part = slice(chunk * GRAIN, (chunk + 1) * GRAIN)
                    assert chunk in touched or content[part] == earlier[1][part], (session.id, volume.name, chunk)
                narrower += len(touched) < chunks
        before[volume.source.identity] = session.id, bytes(content)
    assert narrower >= 3, "and not everything is read again"


@pytest.mark.parametrize("name", ["msr", "ct"] if os.environ.get("LAMELLA_TEST_MUTATIONS") else ["ct"])
def test_other_ciphers_and_codecs(tmp_path: Path, name: str) -> None:
    found = {
        session: (hashlib.sha256(content).hexdigest(), len(content))
        for session, _, content in contents(opened(unpacked(name, tmp_path)))
    }
    assert found == {session: tuple(row) for session, row in EXPECTED[name]["disk.img"].items()}


def test_xchacha_as_in_its_draft() -> None:
    # draft-irtf-cfrg-xchacha-03, A.3.1: key 80..9f, nonce 40..57, and what the message becomes, its beginning.
    key, nonce = bytes(range(0x80, 0xA0)), bytes(range(0x40, 0x58))
    message = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen"
    sealed = bytes.fromhex("bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb")
    # The counter of the AEAD begins at 1: one block of nothing before.
    assert xchacha20(key, nonce + bytes(64) + sealed)[64:] == message[:32]
    assert xchacha20_poly1305(key, nonce + bytes(16) + sealed) is None


# --- hostile archives ------------------------------------------------------------------------------------------------


def survives(place: Path, known: set[tuple[str, str, bytes]] | None) -> None:
    """Everything that can be read is read; nothing but an error of Lamella is raised, on one line."""
    try:
        history = opened(place)
        assert all("\n" not in warning for warning in (*history.warnings, *history.lacks))
        for session, volume in volume_sources(history):
            try:
                with volume.source.freeze() as frozen:
                    content = bytearray(min(frozen.size, 1 << 22))
                    frozen.read_into(0, memoryview(content))
                    frozen.delta_since(session.id, GRAIN)
                    list(frozen.allocated())
            except LamellaError as error:
                assert "\n" not in error.message
            else:
                assert known is None or (session.id, volume.name, bytes(content)) in known
    except LamellaError as error:
        assert "\n" not in error.message


def mutated(numbers: random.Random, content: bytes) -> bytes:
    """A few bytes changed, cut out, doubled, or the end cut off."""
    found = bytearray(content)
    for _ in range(numbers.randint(1, 3)):
        at = numbers.randrange(len(found) + 1)
        how = numbers.randrange(5)
        if how == 0 and at < len(found):
            found[at] ^= 1 << numbers.randrange(8)
        elif how == 1:
            del found[at:]
        elif how == 2:
            del found[at : at + numbers.randint(1, 40)]
        elif how == 3:
            found[at:at] = found[max(0, at - numbers.randint(1, 60)) : at]
        else:
            found[at:at] = numbers.choice((b"\n", b"\0", b"=", b"-", b"99999999999", b"x", b"../", b"0"))
    return bytes(found)


@pytest.mark.parametrize("name", ["plain", "ct"])
def test_a_damaged_archive_gives_what_was_saved_or_an_error(tmp_path: Path, name: str) -> None:
    place = unpacked(name, tmp_path)
    known = set(contents(opened(place)))
    files = sorted(path for path in place.rglob("*") if path.is_file() and path.stat().st_size)
    for seed in range(ROUNDS):
        numbers = random.Random(seed)
        path = numbers.choice(files)
        before = path.read_bytes()
        path.unlink()  # the copy may be a hard link
        path.write_bytes(mutated(numbers, before))
        # The root of an archive without encryption is not authentic: it may name other sizes and volumes.
        survives(place, None if path.name == "archive.ini" and name == "plain" else known)
        path.write_bytes(before)
    assert set(contents(opened(place))) == known


class Forgery:
    """An archive without encryption whose hashes are made to fit what somebody wrote into it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.codec = zstd_provider.load()[1]

    def text(self, path: Path) -> bytes:
        """The text of a file of metadata."""
        content = path.read_bytes()
        if path.name == "archive.ini":
            return gzip.decompress(content[17:])
        return bytes(self.codec.ZstdDecompressor().decompress(content))

    def put(self, path: Path, text: bytes) -> None:
        """Write the text of a file of metadata, and its hash into the file above, up to the root."""
        if path.name == "archive.ini":
            path.write_bytes(path.read_bytes()[:17] + gzip.compress(text))
            return
        before = self._hash(path)
        path.write_bytes(self.codec.compress(text))
        above = {
            "manifest.z": path.parent / "info",
            "info": path.parent.parent / "volinfo",
            "volinfo": self.place / "archive.ini",
        }[path.name]
        self.put(above, self.text(above).replace(before, self._hash(path)))

    def _hash(self, path: Path) -> bytes:
        return base64.urlsafe_b64encode(hashlib.blake2b(path.read_bytes(), digest_size=32).digest())


def test_a_forged_archive_does_no_harm(tmp_path: Path) -> None:
    place = unpacked("plain", tmp_path)
    forgery = Forgery(place)
    names = ("archive.ini", "volinfo", "info", "manifest.z")
    files = {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.name in names}
    known = set(contents(opened(place)))
    for seed in range(ROUNDS):
        numbers = random.Random(seed)
        path = numbers.choice(list(files))
        forgery.put(path, mutated(numbers, forgery.text(path)))
        survives(place, None)
        for one, content in files.items():
            if one.read_bytes() != content:
                one.write_bytes(content)
    assert set(contents(opened(place))) == known, "and the next round begins with what wyng wrote"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("info", b"volsize = 1000000", b"volsize = 140737488355328"),
        ("info", b"volsize = 1000000", b"volsize = -1"),
        ("info", b"volsize = 1000000", b"volsize = " + b"9" * 5000),
        ("volinfo", b"name = disk.img", b"name = ../../\x1b[31m"),
        ("archive.ini", b"chunksize = 65536", b"chunksize = 3"),
        ("archive.ini", b"hashtype = blake2b", b"hashtype = hmac-sha256"),
    ],
)
def test_values_out_of_range_are_errors(tmp_path: Path, file: str, old: bytes, new: bytes) -> None:
    place = unpacked("plain", tmp_path)
    forgery = Forgery(place)
    path = next(path for path in sorted(place.rglob(file)) if old in forgery.text(path))
    forgery.put(path, forgery.text(path).replace(old, new))
    survives(place, None)


def test_a_bomb_a_link_and_a_pipe_are_refused(tmp_path: Path) -> None:
    place = unpacked("plain", tmp_path)
    forgery = Forgery(place)
    info = next(iter(sorted(place.rglob("info"))))
    forgery.put(info, forgery.text(info) + b"tag = " + bytes(1 << 28))
    with pytest.raises(SourceError, match="larger than its kind"):
        list(contents(opened(place)))
    chunks = sorted(path for path in place.rglob("x*") if path.is_file())
    content = chunks[0].read_bytes()
    outside = tmp_path / "outside"
    outside.write_bytes(content)
    chunks[0].unlink()
    chunks[0].symlink_to(outside)
    chunks[-1].unlink()
    os.mkfifo(chunks[-1])
    survives(place, None)
    with pytest.raises(SourceError, match="symbolic"):
        read_foreign(chunks[0], 1 << 20)
    with pytest.raises(SourceError, match="no regular file"):
        read_foreign(chunks[-1], 1 << 20)
    assert zlib.crc32(outside.read_bytes()) == zlib.crc32(content)


def test_an_address_far_away_takes_no_memory(tmp_path: Path) -> None:
    place = unpacked("plain", tmp_path)
    forgery = Forgery(place)
    path = next(path for path in sorted(place.rglob("info")) if b"volsize = 1000000" in forgery.text(path))
    forgery.put(path, forgery.text(path).replace(b"volsize = 1000000", b"volsize = 140737488355328"))
    manifest = path.with_name("manifest.z")
    forgery.put(manifest, forgery.text(manifest) + b"0 x00003fffffff0000\n")
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match="no session has the chunk at"):
            list(contents(opened(place)))
        assert tracemalloc.get_traced_memory()[1] < 3 << 30, "one is what a manifest may have itself"
    finally:
        tracemalloc.stop()
