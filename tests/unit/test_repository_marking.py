"""The mark: everything a tree needs is named, shared nodes once, and a node that cannot be had is never passed over."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lamella.base.errors import IntegrityError
from lamella.base.ids import ChunkId
from lamella.base.names import pack_name
from lamella.format.container import Kind
from lamella.operations.backup.story import BackupOptions, Request, plan_backup
from lamella.operations.shared.marking import LiveWalk, roots_by_domain
from lamella.packs import usage
from lamella.packs.usage import LiveIds
from lamella.repository.repository import Repository
from lamella_kit.scripted_source import ScriptedSource
from tests.unit.small_repository import CHUNK, Small


def save(small: Small, content: bytes, documents: dict[str, bytes] | None = None) -> str:
    with small.opened() as repo:
        options = BackupOptions(chunk_log2=16, workers=1, documents=documents or {})
        return plan_backup(repo, [Request("disk", ScriptedSource("disk", content))], options).execute().snapshot


def content_of(seed: int, chunks: int) -> bytearray:
    return bytearray(random.Random(seed).randbytes(chunks * CHUNK))


def marked(repo: Repository, *without: str) -> list[tuple[Kind, ChunkId]]:
    repo.refresh_map()
    gone = {shot.ref for shot in repo.catalogue.snapshots if shot.name in without}
    return [
        (kind, id_)
        for domain_id, roots in roots_by_domain(repo.catalogue, gone).items()
        for kind, ids in LiveWalk(repo.contents, domain_id).referenced(roots)
        for id_ in ids
    ]


def stored(repo: Repository) -> set[tuple[Kind, ChunkId]]:
    """Everything but tree notes, which no tree refers to."""
    rows = repo.cache.connection.execute("SELECT kind, id, content FROM blobs").fetchall()
    return {(Kind(kind), ChunkId(id_)) for kind, id_, content in rows if kind != Kind.DOCUMENT or content > 200}


def test_all_that_one_snapshot_stored_is_needed_by_it(tmp_path: Path) -> None:
    small = Small.make(tmp_path)
    save(small, bytes(content_of(1, 70)), {"settings": b"s" * 1000})
    with small.opened() as repo:
        assert set(marked(repo)) == stored(repo)


def test_what_only_a_removed_snapshot_needed_is_not_named(tmp_path: Path) -> None:
    small = Small.make(tmp_path)
    content = content_of(2, 130)
    first = save(small, bytes(content))
    content[:CHUNK] = b"x" * CHUNK
    second = save(small, bytes(content))
    with small.opened() as repo:
        both, one, other = marked(repo), marked(repo, first), marked(repo, second)
        assert set(both) == set(one) | set(other) == stored(repo)
        # One chunk, its leaf and the two nodes above it differ.
        assert len(set(one) - set(other)) == len(set(other) - set(one)) == 3
        nodes = [pair for pair in both if pair[0] in (Kind.LEAF, Kind.INNER)]
        assert len(nodes) == len(set(nodes)), "a shared node was walked twice"


def test_a_lost_node_ends_the_mark(tmp_path: Path) -> None:
    small = Small.make(tmp_path)
    save(small, bytes(content_of(3, 10)))
    with small.opened() as repo:
        repo.refresh_map()
        leaf = next(id_ for kind, id_ in marked(repo) if kind == Kind.LEAF)
        small.store.delete(pack_name(repo.blobs.find(Kind.LEAF, leaf)[0].pack))
        with pytest.raises(IntegrityError, match="cannot be read"):
            marked(repo)


def test_ids_are_kept_on_disk_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_SPILL_BYTES", 240)
    chance = random.Random(4)
    ids = [ChunkId(chance.randbytes(24)) for _ in range(20_000)]
    with LiveIds(tmp_path) as live:
        for start in range(0, 10_000, 64):
            live.add(ids[start : min(start + 64, 10_000)])
        live.add(ids[:100])
        assert live.added == 10_100
        found = [live.part(number) for number in range(256)]
        assert set().union(*found) == set(ids[:10_000])
        assert all(id_[0] == number for number, part in enumerate(found) for id_ in part)
        assert live.among(ids[9_000:11_000]) == set(ids[9_000:10_000])
    assert not list(tmp_path.iterdir())
