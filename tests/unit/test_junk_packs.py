"""Objects under names of packs that are none: whoever may add objects can place them, and nobody may cry wolf for them.

A real pack whose head rots is damage all the same: a snapshot lacks something, or a record says that the pack exists.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.base.errors import StoreError
from lamella.base.names import pack_hash, pack_name
from lamella.base.trust import Clear
from lamella.crypto.seal import PackSealer, new_salt
from lamella.operations.shared.findings import VerifyResult
from lamella.operations.shared.selection import select
from lamella.operations.verify.verify import VerifyOptions, verify
from lamella.packs.blobmap import Place
from lamella.packs.building import SealedBlob, build, raw_body
from lamella.packs.heads import genuine_head
from lamella.stores.memory import MemoryStore
from tests.unit.small_repository import Small, image

LEVELS = ("structure", "full", "restore")


@pytest.fixture
def small(tmp_path: Path) -> Small:
    small = Small.make(tmp_path)
    small.backup(image(tmp_path / "disk.img", "abc.0def"))
    small.backup(image(tmp_path / "other.img", "uvw"))
    return small


class Unreadable(MemoryStore):
    """Cannot read one object."""

    def __init__(self, inner: MemoryStore, name: str) -> None:
        super().__init__(inner.objects())
        self._name = name

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name == self._name:
            raise StoreError("Input/output error", obj=name)
        return super().get(name, offset, length)


def proof(small: Small, level: str, host: str = "one", volumes: tuple[str, ...] = ()) -> VerifyResult:
    with small.opened(host) as repo:
        return verify(repo, select(repo, volumes), VerifyOptions(level))


def packs(small: Small) -> list[str]:
    return [entry.name for entry in small.store.list("p/")]


def replace(small: Small, name: str, content: bytes) -> None:
    if name in small.store.objects():
        small.store.delete(name)
    small.store.put(name, Clear(content))


def own_name(content: bytes) -> str:
    return pack_name(hashlib.sha256(content).digest())


def junk(small: Small) -> Iterator[tuple[str, bytes]]:
    """What a thief can make of nothing, and of the packs that are there; under its own name, as a server asks for."""
    pack = small.store.get(packs(small)[0])
    header_changed = bytes([pack[0] ^ 1]) + pack[1:]
    directory_changed = pack[:70] + bytes([pack[70] ^ 1]) + pack[71:]
    for content in (b"", b"x", os.urandom(5000), pack[:-16], pack + bytes(16), header_changed, directory_changed):
        yield own_name(content), content


def told(found: VerifyResult) -> dict[str, str]:
    return {one.obj: one.severity for one in found.findings}


@pytest.mark.parametrize("level", LEVELS)
def test_junk_is_a_note(small: Small, level: str) -> None:
    """For every host, at every level, again and again, whichever volumes are asked for."""
    placed = dict(junk(small))
    for name, content in placed.items():
        replace(small, name, content)
    for host in ("one", "fresh", "one"):
        for volumes in ((), ("disk",)):
            found = proof(small, level, host, volumes)
            assert told(found) == dict.fromkeys(placed, "note")
            assert not found.bad and not found.recorded and not found.unrestorable


@pytest.mark.parametrize("level", LEVELS)
def test_junk_under_any_name_is_a_note_where_every_snapshot_is_whole(small: Small, level: str) -> None:
    """A plain destination does not compare names. Then rot could look so, and a look at one volume does not tell."""
    name = pack_name(os.urandom(32))
    replace(small, name, os.urandom(5000))
    for host in ("one", "fresh"):
        assert told(proof(small, level, host)) == {name: "note"}
        assert proof(small, level, host, ("disk",)).damaged


@pytest.mark.parametrize("level", LEVELS)
def test_a_rotten_head_that_a_snapshot_needs_is_damage(small: Small, level: str) -> None:
    for name in packs(small):
        whole = small.store.get(name)
        rot_head(small, name)
        found = proof(small, level, f"fresh for {name}")
        assert told(found)[name] == "damage" and found.unrestorable
        replace(small, name, whole)


def stored_again(small: Small, name: str) -> str:
    """Another pack with the same contents, named by no record."""
    with small.opened() as repo:
        repo.refresh_map()
        head = genuine_head(repo.store, repo.keys, name)
        sealer = PackSealer(repo.keys.domain(head.domain_id), new_salt())
        blobs: list[SealedBlob] = []
        for one in head.blobs:
            place = Place(pack_hash(name) or b"", head.header, head.domain_id, one, own=True)
            sealer.reserve(one.kind, one.id)
            sealed = sealer.seal(one.kind, one.id, raw_body(repo.contents.open_at(place)))
            blobs.append((one.kind, one.id, sealed, one.content_length))
        content, _ = build(repo.keys, head.domain_id, sealer, blobs)
        replace(small, own_name(content), content)
        return own_name(content)


def rot_head(small: Small, name: str) -> None:
    content = small.store.get(name)
    replace(small, name, content[:70] + bytes([content[70] ^ 1]) + content[71:])


@pytest.mark.parametrize("level", LEVELS)
def test_a_rotten_head_of_which_a_record_tells_is_damage(small: Small, level: str) -> None:
    """Also where every snapshot has what it needs in another pack: such a disk loses more."""
    rotten = packs(small)[0]
    again = stored_again(small, rotten)
    rot_head(small, rotten)
    found = proof(small, level, "fresh")
    assert told(found) == {rotten: "damage"} and not found.unrestorable
    small.store.delete(rotten)
    assert told(proof(small, level, "fresh")) == {}
    rot_head(small, again)
    assert proof(small, level, "fresh too").unrestorable


def test_a_rotten_head_of_which_an_index_segment_tells_is_damage(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    again = stored_again(small, packs(small)[0])
    monkeypatch.setattr("lamella.packs.blobmap.WORTH_WRITING", 0)
    monkeypatch.setattr("lamella.packs.blobmap.WORTH_READING", 1)
    with small.opened() as repo:
        repo.refresh_map()
        assert repo.blobs.write_segments()
    rot_head(small, again)
    assert told(proof(small, "structure", "fresh")) == {again: "damage"}


def test_a_pack_that_the_store_cannot_read_is_no_junk(small: Small) -> None:
    """A failing disk is never junk, whoever may have placed what lies there."""
    name, content = own_name(b"y" * 500), b"y" * 500
    replace(small, name, content)
    with small.opened("fresh", store=Unreadable(small.store, name)) as repo:
        assert told(verify(repo, select(repo, []), VerifyOptions("structure"))) == {name: "damage"}
