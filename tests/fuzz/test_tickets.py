"""Tickets and stores of qubes that lie, by whoever holds the lent key and so can seal anything (docs/decisions/0107).

Whatever is handed in: it is refused by name and nothing is published, or what is published is whole: each node and
each chunk of the tree is in the repository, as long as its position implies. Nothing that the qube compressed is
decoded.
"""

from __future__ import annotations

import hashlib
import os
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lamella.base.errors import SourceError, StoreError, UsageError
from lamella.base.ids import CATALOGUE, ChunkId
from lamella.base.names import pack_name
from lamella.base.trust import Opened
from lamella.crypto.chunk_id import identifier
from lamella.crypto.derive import Keys
from lamella.crypto.seal import PackSealer, new_salt
from lamella.crypto.slots import Secret, key_file
from lamella.format import compression, container
from lamella.format.container import Blob, Header, Kind
from lamella.format.cursor import u8, u32
from lamella.format.ticket import Ticket
from lamella.operations.backup.handed_in import plan_hand_in
from lamella.operations.backup.story import Request, plan_backup
from lamella.operations.keyring import export_inside
from lamella.operations.shared.lending import sealed
from lamella.operations.shared.newest import newest
from lamella.packs.building import raw_body
from lamella.packs.containers import BlobOpener
from lamella.packs.tree import Tree
from lamella.repository.create import SlotWanted, create_repository
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from tests.fuzz.mutations import change
from tests.unit.small_repository import ADMIN, OPTIONS, Small, image, tick

ROUNDS = int(os.environ.get("LAMELLA_TICKET_ROUNDS", "200"))
LETTERS = "abcdefghijklmnopqrstuvwxyz" * 3


@dataclass
class Inside:
    """A qube's store and keys, and the ticket of its last honest run."""

    store: MemoryStore
    keys: Keys
    ticket: Ticket
    nodes: dict[Kind, list[tuple[ChunkId, bytes]]]

    def pack(self, *blobs: tuple[Kind, bytes, bytes, int]) -> tuple[str, bytes]:
        """A pack of kind, id, body and length of each blob, sealed with the keys of the domain."""
        lent = self.keys.lent
        assert lent is not None
        sealer = PackSealer(lent.keys, new_salt())
        parts = [(kind, ChunkId(id_), sealer.seal(kind, ChunkId(id_), body), rlen) for kind, id_, body, rlen in blobs]
        directory = sealer.seal_directory(
            container.encode_directory([(kind, id_, len(part), rlen) for kind, id_, part, rlen in parts])
        )
        content = Header(sealer.aead, len(directory), sealer.salt, os.urandom(24)).encode() + directory
        for *_, part, _ in parts:
            content += bytes(-len(content) % 16) + part
        return pack_name(hashlib.sha256(content).digest()), content

    def id_of(self, kind: Kind, content: bytes) -> ChunkId:
        """The id of a content in the domain."""
        assert self.keys.lent is not None
        return identifier(self.keys.lent.keys, kind)(content)


def saved(place: Path, secret: Secret, letters: str) -> Inside:
    """A store inside with one volume, and its ticket."""
    store, host = MemoryStore(), Small(place).host("inside")
    create_repository(store, host, [SlotWanted(secret, True)], tick, id_alg=2)
    source = Small(place).source(image(place / "data", letters), "inside")
    with Repository.open(store, secret, host, clock=tick) as repo:
        plan_backup(repo, [Request("data", source)], OPTIONS).execute()
        (volume,) = repo.catalogue.own_volumes()
        added, lent = newest(repo, volume).added, repo.keys.lent
        assert lent is not None
        ticket = Ticket(lent.keys.root, added.domain_id, added.volume_id, 16, 1, added.size, added.root, added.time_ms)
        repo.refresh_map()
        nodes: dict[Kind, list[tuple[ChunkId, bytes]]] = {}
        for kind in (Kind.LEAF, Kind.INNER):
            rows = repo.cache.rows("SELECT DISTINCT id FROM blobs WHERE kind = ?", (int(kind),))
            ids = sorted(ChunkId(id_) for (id_,) in rows)
            nodes[kind] = [(id_, bytes(repo.contents.get(added.domain_id, kind, id_))) for id_ in ids]
        return Inside(store, repo.keys, ticket, nodes)


Lie = Callable[[random.Random, Inside, Ticket, dict[str, bytes]], Ticket | bytes]
"""Makes another ticket, or another file of one; may change the objects of the store."""


def altered_file(chosen: random.Random, inside: Inside, ticket: Ticket, objects: dict[str, bytes]) -> bytes:
    assert inside.keys.lent is not None
    return change(chosen, sealed(ticket, inside.keys.lent.keys))


def lying_ticket(chosen: random.Random, inside: Inside, ticket: Ticket, objects: dict[str, bytes]) -> Ticket:
    place = chosen.randrange(len(ticket))
    fields: list[Any] = list(ticket)
    if isinstance(fields[place], bytes):
        fields[place] = chosen.randbytes(len(fields[place]))
    else:
        value, numbers = fields[place], {3: range(16, 23), 4: range(6)}.get(place)
        some = [1, value + 1, value - 1, 65536, 1 << 40, (1 << 62) + 5, (1 << 63) - 1]
        fields[place] = chosen.choice(numbers or some)
    return Ticket(*fields)


def damaged_packs(chosen: random.Random, inside: Inside, ticket: Ticket, objects: dict[str, bytes]) -> Ticket:
    names = [name for name in objects if name.startswith("p/")]
    for name in chosen.sample(names, chosen.randint(1, len(names))):
        content = objects.pop(name)
        if chosen.random() < 0.8:
            changed = change(chosen, content)
            objects[chosen.choice((name, pack_name(hashlib.sha256(changed).digest())))] = changed
    for _ in range(chosen.choice((0, 0, 30))):
        objects[pack_name(chosen.randbytes(32))] = chosen.randbytes(chosen.choice((0, 72, 200, 5000)))
    return ticket


def lying_nodes(chosen: random.Random, inside: Inside, ticket: Ticket, objects: dict[str, bytes]) -> Ticket:
    """A root of the qube's own making: changed, under another id, compressed, or longer than a node can be."""
    root = next(content for id_, content in inside.nodes[Kind.INNER] if id_ == ticket.root)
    made = chosen.choice((root, change(chosen, root), change(chosen, root), root + bytes(3000)))[:1592]
    id_ = chosen.choice((inside.id_of(Kind.INNER, made), chosen.randbytes(24)))
    packed = u8(1) + u32(len(made)) + zlib.compress(made)
    body = chosen.choice((raw_body(made), raw_body(made), packed, b"\7" + raw_body(made)[1:], raw_body(made)[:-1]))
    name, content = inside.pack((Kind.INNER, id_, body, len(made)))
    objects[name] = content
    return ticket._replace(root=ChunkId(id_))


def lying_chunks(chosen: random.Random, inside: Inside, ticket: Ticket, objects: dict[str, bytes]) -> Ticket:
    """A leaf and a root of the qube's own making, with chunks in forms that nobody reads, too short, or not there."""
    made = chosen.randbytes(chosen.choice((65536, 65536, 65535, 10)))
    id_ = chosen.choice((inside.id_of(Kind.CHUNK, made), chosen.randbytes(24)))
    bodies = (
        raw_body(made),
        chosen.choice((b"\7", b"\3")) + raw_body(made)[1:],
        u8(2) + u32(7) + made,
        u8(2) + u32(len(made)) + chosen.randbytes(50),
    )
    chunk = Kind.CHUNK, id_, chosen.choice(bodies), len(made)
    leaves = inside.nodes[Kind.LEAF]
    old, leaf = chosen.choice(leaves)
    slot = 56 + 24 * chosen.randrange((len(leaf) - 56) // 24)
    leaf = leaf[:slot] + id_ + leaf[slot + 24 :]
    if chosen.random() < 0.2:  # a difference, which a tree of files never has
        leaf = leaf[:40] + bytes([leaf[40] | 3]) + leaf[41:] + bytes(48)
    leaf_id = inside.id_of(Kind.LEAF, leaf)
    root = next(content for known, content in inside.nodes[Kind.INNER] if known == ticket.root)
    root = root.replace(old, leaf_id)
    root_id = inside.id_of(Kind.INNER, root)
    blobs = [(Kind.LEAF, leaf_id, raw_body(leaf), len(leaf)), (Kind.INNER, root_id, raw_body(root), len(root))]
    name, content = inside.pack(*([chunk] if chosen.random() < 0.8 else []), *blobs)
    objects[name] = content
    return ticket._replace(root=root_id)


LIES: tuple[Lie, ...] = (altered_file, lying_ticket, damaged_packs, damaged_packs, lying_nodes, lying_chunks)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codecs of what was decoded of the domain that was lent: not of what the host itself wrote of its history."""
    met: list[int] = []
    decode, opens, catalogue = compression.decode, BlobOpener.open, [False]

    def opened(opener: BlobOpener, blob: Blob, sealed: bytes | memoryview) -> Opened:
        catalogue[0] = opener._keys.domain_id == CATALOGUE
        try:
            return opens(opener, blob, sealed)
        finally:
            catalogue[0] = False

    def watched(body: Opened, length: int, name: str) -> Opened:
        if not catalogue[0]:
            met.append(body[0])
        return decode(body, length, name)

    monkeypatch.setattr(BlobOpener, "open", opened)
    monkeypatch.setattr(compression, "decode", watched)
    return met


def test_a_lie_is_refused_or_hurts_the_liar_alone(tmp_path: Path, decoded: list[int]) -> None:
    small = Small.make(tmp_path)
    with small.opened() as repo:
        secret = key_file(export_inside(repo, "work"))
    inside = saved(tmp_path, secret, LETTERS)
    lent, honest = inside.keys.lent, inside.store.objects()
    assert lent is not None
    published, refusals = 0, dict[str, int]()
    for number in range(ROUNDS):
        chosen = random.Random(number)
        objects = dict(honest)
        made = chosen.choice(LIES)(chosen, inside, inside.ticket._replace(time_ms=tick()), objects)
        content = made if isinstance(made, bytes) else sealed(made, lent.keys)
        decoded.clear()
        with small.opened() as repo:
            before = len(repo.catalogue.snapshots)
            try:
                plan_hand_in(repo, "work", content).execute(MemoryStore(objects))
            except (SourceError, UsageError, StoreError) as error:
                repo.reload()
                assert len(repo.catalogue.snapshots) == before, number
                refusals[type(error).__name__] = refusals.get(type(error).__name__, 0) + 1
                continue
            finally:
                assert set(decoded) <= {0}, number
            published += 1
        whole(small, small.host().cache_dir, number)
    assert published >= ROUNDS // 20
    assert refusals["SourceError"] >= ROUNDS // 4
    # In the end the honest ticket counts as if nothing had been.
    with small.opened() as repo:
        last = inside.ticket._replace(time_ms=tick())
        assert plan_hand_in(repo, "work", sealed(last, lent.keys)).execute(MemoryStore(honest)).published
    whole(small, tmp_path / "fresh", -1)


@pytest.mark.parametrize("more", [-1, -65536, -(40 << 16), 5 << 30])
def test_the_same_root_with_another_size(tmp_path: Path, more: int) -> None:
    """A node is the same, and what it says of the end is not."""
    small = Small.make(tmp_path)
    with small.opened() as repo:
        secret = key_file(export_inside(repo, "work"))
    inside = saved(tmp_path, secret, LETTERS)
    assert inside.keys.lent is not None
    for size, published in ((inside.ticket.size, True), (inside.ticket.size + more, False)):
        ticket = inside.ticket._replace(size=size, time_ms=tick())
        content = sealed(ticket, inside.keys.lent.keys)
        with small.opened() as repo:
            plan = plan_hand_in(repo, "work", content)
            if published:
                assert plan.execute(inside.store).published
                continue
            with pytest.raises(SourceError):
                plan.execute(inside.store)


def whole(small: Small, cache: Path, number: int) -> None:
    """Everything that the newest snapshot needs is there, and as long as its position implies, for a fresh reader."""
    host = replace(small.host(), cache_dir=cache)
    with Repository.open(small.store, ADMIN, host) as repo:
        repo.refresh_map()
        (volume,) = repo.catalogue.own_volumes()
        snapshot = newest(repo, volume)
        tree: Tree = repo.tree(snapshot)
        for run in repo.tree_reader(snapshot.added.domain_id).runs(tree):
            if isinstance(run.slot, bytes):
                lengths = [place.blob.content_length for place in repo.blobs.find(Kind.CHUNK, run.slot)]
                assert tree.shape.chunk_length(run.first) in lengths, number
