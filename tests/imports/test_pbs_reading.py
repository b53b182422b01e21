"""What of a datastore of Proxmox Backup is read, and what a hostile datastore can do.

The fears: a chunk that changed and is taken for unchanged; a datastore that forges an encrypted disk; one that fills
memory, reads another file, hangs, or gives bytes that nobody saved.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lamella.base.errors import CheckpointLost, LamellaError, SourceError
from lamella.imports.history import ForeignHistory, volume_sources
from lamella.imports.pbs.blob import PbsKey, blob_content
from lamella.imports.pbs.history import Datastore, pbs_history
from lamella.imports.pbs.key import read_key
from lamella.imports.pbs.snapshot import signed_text
from tests.imports.pbs_store import CHUNK, PbsStore, filled
from tests.imports.test_wyng_reading import ROUNDS, mutated


def opened(store: PbsStore) -> ForeignHistory:
    return pbs_history(Datastore(store.place, store.group, None if store.key is None else PbsKey(store.key)))


def contents(history: ForeignHistory) -> Iterator[tuple[str, str, bytes]]:
    """Session, volume and content of everything that can be read."""
    for session, volume in volume_sources(history):
        with volume.source.freeze() as frozen:
            content = bytearray(frozen.size)
            frozen.read_into(0, memoryview(content))
            yield session.id, volume.name, bytes(content)


def test_a_signature_is_that_of_proxmox_backup() -> None:
    # The manifest, the key and the signature that the tests of pbs-datastore/src/manifest.rs have.
    key = PbsKey(hashlib.scrypt(b"test", salt=b"", n=65536, r=8, p=1, maxmem=1 << 27, dklen=32))
    files = [
        {"filename": "test1.img.fidx", "crypt-mode": "encrypt", "size": 200, "csum": "01" * 32},
        {"filename": "abc.blob", "crypt-mode": "none", "size": 200, "csum": "02" * 32},
    ]
    manifest = {"backup-type": "host", "backup-id": "elsa", "backup-time": 1593179765, "files": files}
    text = signed_text({**manifest, "unprotected": {"note": "not protected"}, "signature": None})
    assert key.signature(text).hex() == "d7b446fb7db081662081d4b40fedd858a1d6307a5aff4ecff7d5bf4fd35679e9"


@pytest.mark.parametrize("encrypted", [False, True])
def test_no_chunk_outside_a_delta_differs(tmp_path: Path, encrypted: bool) -> None:
    store = filled(PbsStore(tmp_path / "store", os.urandom(32) if encrypted else None))
    before: dict[bytes, tuple[str, bytes]] = {}
    holes = 0
    for _, volume in volume_sources(opened(store)):
        with volume.source.freeze() as frozen:
            content = bytearray(frozen.size)
            frozen.read_into(0, memoryview(content))
            there = bytearray(frozen.size)
            for extent in frozen.allocated():
                there[extent.start : extent.end] = content[extent.start : extent.end]
            holes += sum(extent.length for extent in frozen.allocated()) < frozen.size
            assert there == content
            if volume.source.identity in before:
                base, earlier = before[volume.source.identity]
                delta = frozen.delta_since(base, CHUNK)
                for chunk in range(-(-frozen.size // CHUNK)):
                    part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
                    assert chunk in delta.changed or content[part] == earlier[part]
                assert len(delta.changed) <= 5
            before[volume.source.identity] = frozen.checkpoint, bytes(content)
    assert holes == 6, "zeros are not read"


def test_a_snapshot_of_the_same_name_elsewhere_is_no_base(tmp_path: Path) -> None:
    moment, content = datetime(2025, 3, 30, 2, 30, tzinfo=UTC), os.urandom(2 * CHUNK)
    first, second = PbsStore(tmp_path / "a/store"), PbsStore(tmp_path / "b/store")
    first.snapshot(moment, {"disk": content[:CHUNK] + bytes(CHUNK)})
    second.snapshot(moment, {"disk": content})
    second.snapshot(moment + timedelta(hours=1), {"disk": bytes(CHUNK) + content[CHUNK:]})
    ((_, before),) = volume_sources(opened(first))
    (_, there), (_, now) = volume_sources(opened(second))
    assert before.source.identity == now.source.identity
    with before.source.freeze() as old, there.source.freeze() as base, now.source.freeze() as frozen:
        assert list(frozen.delta_since(base.checkpoint, CHUNK).changed.runs()) == [(0, 1)]
        with pytest.raises(CheckpointLost):
            frozen.delta_since(old.checkpoint, CHUNK)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_damaged_datastore_gives_what_was_saved_or_an_error(tmp_path: Path, encrypted: bool) -> None:
    store = filled(PbsStore(tmp_path / "store", os.urandom(32) if encrypted else None))
    known = set(contents(opened(store)))
    files = sorted(path for path in store.place.rglob("*") if path.is_file())
    for seed in range(ROUNDS):
        numbers = random.Random(seed)
        path = numbers.choice(files)
        before = path.read_bytes()
        path.write_bytes(mutated(numbers, before))
        _survives(store, known)
        path.write_bytes(before)
    assert set(contents(opened(store))) == known


def _survives(store: PbsStore, known: set[tuple[str, str, bytes]] | None) -> None:
    try:
        history = opened(store)
        assert all("\n" not in text for text in (*history.warnings, *history.lacks))
        for session, volume in volume_sources(history):
            try:
                with volume.source.freeze() as frozen:
                    content = bytearray(min(frozen.size, 1 << 22))
                    frozen.read_into(0, memoryview(content))
                    list(frozen.allocated())
            except LamellaError as error:
                assert "\n" not in error.message
            else:
                assert known is None or (session.id, volume.name, bytes(content)) in known
    except LamellaError as error:
        assert "\n" not in error.message


def test_forged_manifests_do_no_harm(tmp_path: Path) -> None:
    store = filled(PbsStore(tmp_path / "store"))
    folder = sorted((store.place / "vm/100").iterdir())[0]
    blob = blob_content((folder / "index.json.blob").read_bytes(), None, 1 << 20, "")
    for seed in range(ROUNDS):
        text = mutated(random.Random(seed), blob)
        (folder / "index.json.blob").write_bytes(store.blob(text, plain=True))
        _survives(store, None)
    for name in ("../../outside.img.fidx", "a.img.fidx\n", "/etc/passwd.blob"):
        manifest = json.loads(blob)
        manifest["files"][0]["filename"] = name
        store.manifest(folder, manifest)
        assert all(name not in volume.name for _, volume in volume_sources(opened(store)))


def test_nothing_of_an_encrypted_disk_can_be_forged_without_the_key(tmp_path: Path) -> None:
    store = filled(PbsStore(tmp_path / "store", os.urandom(32)), disks=1)
    folder = sorted((store.place / "vm/100").iterdir())[0]
    honest = opened(store)
    thief = PbsStore(store.place, None)
    # A plain chunk in the place of an encrypted one, with a digest that is right for plain ones.
    content = b"forged" * 100
    chunk = next(path for path in sorted((store.place / ".chunks").rglob("*")) if path.is_file())
    chunk.write_bytes(thief.blob(content))
    with pytest.raises(SourceError, match="not encrypted"):
        list(contents(honest))
    # A manifest that says: nothing is encrypted, nothing is signed.
    blob = blob_content((folder / "index.json.blob").read_bytes(), None, 1 << 20, "")
    manifest = json.loads(blob)
    manifest["signature"] = "00" * 32
    (folder / "index.json.blob").write_bytes(thief.blob(json.dumps(manifest).encode()))
    assert len(opened(store).lacks) == 1
    del manifest["signature"]
    (folder / "index.json.blob").write_bytes(thief.blob(json.dumps(manifest).encode()))
    assert len(opened(store).lacks) == 1
    for row in manifest["files"]:
        row["crypt-mode"] = "none"
    (folder / "index.json.blob").write_bytes(thief.blob(json.dumps(manifest).encode()))
    assert any("is not signed" in text for text in opened(store).warnings)


@pytest.mark.parametrize("encrypted", [False, True])
def test_chunks_in_each_others_places_are_found(tmp_path: Path, encrypted: bool) -> None:
    store = filled(PbsStore(tmp_path / "store", os.urandom(32) if encrypted else None), disks=1)
    session, volume = next(iter(volume_sources(opened(store))))
    content = store.snapshots[session.id]["drive-scsi0"]
    one, other = (
        store.place / ".chunks" / digest.hex()[:4] / digest.hex()
        for digest in (store.digest(content[:CHUNK]), store.digest(content[2 * CHUNK : 3 * CHUNK]))
    )
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    with volume.source.freeze() as frozen, pytest.raises(SourceError, match="not what its name says"):
        frozen.read_into(0, memoryview(bytearray(frozen.size)))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"data": 3}',
        b'{"data": "AAAA", "kdf": null}',
        b'{"data": "AAAA", "kdf": {"Scrypt": {"n": 4611686018427387904, "r": 8, "p": 1, "salt": ""}}}',
        b'{"data": "AAAA", "kdf": {"PBKDF2": {"iter": 99999999999, "salt": ""}}}',
        b'{"data": "AAAA", "kdf": {"Other": {"salt": ""}}}',
        b"[" * 50_000,
    ],
)
def test_what_is_no_key_file_is_refused(text: bytes) -> None:
    with pytest.raises(LamellaError, match="key file"):
        read_key(text, lambda: b"a passphrase")
