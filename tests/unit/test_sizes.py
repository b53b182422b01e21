"""What snapshots take, told by bytes that can be counted another way."""

from __future__ import annotations

import functools
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from lamella.format.deletion import Remove
from lamella.operations.look.sizes import Sizes, sizes_of, totals_of
from lamella.operations.shared.selection import Selected, select
from lamella.packs.building import raw_body
from lamella.packs.packer import Packer
from lamella.repository.repository import Repository
from lamella.run.pipeline import Outbox
from tests.unit.small_repository import CHUNK, OPTIONS, Small, image


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small.make(tmp_path)


def sealed(repo: Repository, *chosen: Selected) -> dict[bytes, int]:
    """Every blob these snapshots need, found by walking their trees: id and sealed length."""
    found: dict[bytes, int] = {}
    for one in chosen:
        added = one.snapshot.added
        tree, reader = repo.tree(one.snapshot), repo.tree_reader(added.domain_id)
        nodes = [(tree.root, tree.shape.depth - 1, 0)]
        ids = [part for document in added.documents for part in document.parts]
        while nodes:
            id_, level, first = nodes.pop()
            ids.append(id_)
            for place, slot in enumerate(reader.node(tree.shape, id_, level, first).slots):
                if isinstance(slot, bytes) and level:
                    nodes.append((slot, level - 1, first + place * 64**level))
                elif isinstance(slot, bytes):
                    ids.append(slot)
        for id_ in ids:
            query = "SELECT sealed FROM blobs WHERE id = ?"
            found[id_] = repo.cache.connection.execute(query, (id_,)).fetchone()[0]
    return found


def check(repo: Repository, chosen: list[Selected]) -> Sizes:
    """The sizes of a selection against a walk of everything."""
    sizes = sizes_of(repo, chosen)
    others = [one for one in select(repo, []) if one.snapshot.ref not in {row.snapshot.ref for row in chosen}]
    mine, rest = sealed(repo, *chosen), sealed(repo, *others)
    assert sizes.stored_bytes == sum(mine.values())
    assert sizes.unique_bytes == sum(length for id_, length in mine.items() if id_ not in rest)
    assert sizes.shared_bytes == sizes.stored_bytes - sizes.unique_bytes
    return sizes


def test_each_alone_and_every_pair(small: Small, tmp_path: Path) -> None:
    options = replace(OPTIONS, domain="together", documents={"notes": b"xyz" * 1000})
    disk = tmp_path / "disk.img"
    for letters in ("ab.0cd" * 20, "ab.0cX" * 20, "ab.0cX" * 20, "ZZZ"):
        small.backup(image(disk, letters), options=options)
    small.backup(image(tmp_path / "other.img", "abQ"), options=options)
    small.backup(image(tmp_path / "apart.img", "ab"), options=OPTIONS)
    with small.opened() as repo:
        everything = select(repo, [])
        assert len(everything) == 6
        for number, one in enumerate(everything):
            check(repo, [one])
            for other in everything[number + 1 :]:
                check(repo, [one, other])
        whole = check(repo, everything)
        assert (whole.shared_bytes, whole.unique_bytes) == (0, whole.stored_bytes)
        totals = totals_of(repo)
        assert totals.needed_bytes == whole.stored_bytes
        sizes = [len(content) for name, content in small.store.objects().items() if name.startswith("p/")]
        assert (totals.packs, totals.packs_bytes) == (len(sizes), sum(sizes)) and whole.freed_bytes == sum(sizes)
        rest = len(small.store.objects()) - len(sizes)
        assert (totals.other_objects, totals.snapshots_bytes) == (rest, whole.apparent_bytes)
        assert totals.unneeded_bytes == totals.packs_bytes - totals.needed_bytes


def test_apparent_and_allocated(small: Small, tmp_path: Path) -> None:
    small.backup(image(tmp_path / "disk.img", "a..0b..", tail=100))
    with small.opened() as repo:
        sizes = check(repo, select(repo, ["disk"]))
    assert (sizes.apparent_bytes, sizes.allocated_bytes) == (7 * CHUNK + 100, 3 * CHUNK + 100)


def test_what_is_freed_is_what_lies_in_packs_of_its_own(small: Small, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    packs = [set[str]()]
    for letters in ("abcd", "abcX", "abcY"):
        small.backup(image(disk, letters))
        packs.append({name for name in small.store.objects() if name.startswith("p/")})
    made = [sum(len(small.store.objects()[name]) for name in new - old) for old, new in pairwise(packs)]
    with small.opened() as repo:
        first, second, third = select(repo, [])
        # The first snapshot's pack holds what the later ones share.
        assert check(repo, [first]).freed_bytes == 0
        assert check(repo, [first]).unique_bytes > 0
        assert [check(repo, [one]).freed_bytes for one in (second, third)] == made[1:]
        assert check(repo, [second, third]).freed_bytes == sum(made[1:])
        assert check(repo, [first, second, third]).freed_bytes == sum(made)
        unneeded, unique = totals_of(repo).unneeded_bytes, check(repo, [second]).unique_bytes
        repo.publish([Remove((second.snapshot.ref,))])
        repo.reload()
        # What is removed already is nobody's any more.
        assert totals_of(repo).unneeded_bytes == unneeded + unique > unneeded
        assert check(repo, [first, third]).freed_bytes == made[0] + made[2]


def test_further_copies_of_a_blob_are_nobodys(small: Small, tmp_path: Path) -> None:
    small.backup(image(tmp_path / "disk.img", "abcd"))
    with small.opened() as repo, Outbox() as outbox:
        (one,) = select(repo, [])
        before, unneeded = check(repo, [one]), totals_of(repo).unneeded_bytes
        domain_id = one.snapshot.added.domain_id
        packer = Packer(repo.keys, domain_id, small.store, repo.blobs, outbox)
        for entry in list(repo.blobs.packs(domain_id)):
            for blob in repo.blobs.directory(bytes.fromhex(entry.name[5:])).blobs:  # type: ignore[union-attr]
                content = repo.contents.get(domain_id, blob.kind, blob.id)
                packer.store_blob(blob.kind, blob.id, len(content), functools.partial(raw_body, content))
        packer.finish()
        outbox.drain()
        after = check(repo, [one])
        assert (after.stored_bytes, after.unique_bytes) == (before.stored_bytes, before.unique_bytes)
        assert totals_of(repo).unneeded_bytes > unneeded
