"""Packs that hold the same blobs, as racing and killed runs leave them: what a deletion may rely on."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest

from lamella.base.trust import Clear, Sealed
from lamella.format.container import Kind
from lamella.operations.backup.story import BackupOptions, Request, plan_backup
from lamella.operations.prune.prune import run_prune
from lamella.operations.prune.rewrite import Rewriting
from lamella.operations.shared.selection import select
from lamella.packs.building import raw_body
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from lamella_kit.fault_store import FaultStore
from lamella_kit.scripted_source import ScriptedSource
from tests.fault.world import CHUNK, SECRET, Truth, check_rescue, check_sound, fresh_host, host_at, init
from tests.fault.world import short_rescue as short

OPTIONS = BackupOptions(chunk_log2=16, workers=1)


class Volatile(FaultStore):
    """A store in which objects of a killed process lie that a power cut takes away, until they are put again."""

    def __init__(self, memory: MemoryStore) -> None:
        super().__init__(memory)
        self.memory = memory
        self.volatile: set[str] = set()
        self._again: set[str] = set()

    def put(self, name: str, content: Sealed | Clear) -> None:
        super().put(name, content)
        self._again.add(name)

    def sync(self) -> None:
        super().sync()
        self.volatile -= self._again
        self._again.clear()

    def after_power_cut(self) -> MemoryStore:
        """What is left."""
        return MemoryStore({name: held for name, held in self.memory.objects().items() if name not in self.volatile})


def packs(memory: MemoryStore) -> set[str]:
    return {name for name in memory.objects() if name.startswith("p/")}


def put_by_a_killed_run(repo: Repository, chunks: list[bytes]) -> None:
    """Packs with these chunks that no commit names."""
    repo.refresh_map()
    rewriting = Rewriting(repo, lambda event: None)
    packer = rewriting._packer(repo.catalogue.snapshots[0].added.domain_id)
    for chunk in chunks:
        packer.store_blob(Kind.CHUNK, packer.identify(Kind.CHUNK)(chunk), len(chunk), partial(raw_body, chunk))
    rewriting.run([])


def test_a_twin_that_nobody_made_durable_is_before_anything_rests_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, host, truth = Volatile(MemoryStore()), host_at(tmp_path / "host"), Truth()
    with short(monkeypatch):
        init(store, host)
    content = random.Random(1).randbytes(60 * CHUNK)
    kept = content[: 10 * CHUNK] + random.Random(2).randbytes(50 * CHUNK)
    names = []
    for image in (content, kept):
        with Repository.open(store, SECRET, host) as repo:
            result = plan_backup(repo, [Request("disk", ScriptedSource("disk", image))], OPTIONS).execute()
        truth.learn(result, {"disk": image})
        names.append(f"disk@{result.snapshot}")
    before = packs(store.memory)
    with Repository.open(store, SECRET, host) as repo:
        put_by_a_killed_run(repo, [content[at : at + CHUNK] for at in range(0, 10 * CHUNK, CHUNK)])
    (twin,) = packs(store.memory) - before
    store.volatile.add(twin)
    with Repository.open(store, SECRET, host, exclusive=True) as repo:
        refs = [row.snapshot.ref for row in select(repo, [names[0]])]
        pruned = run_prune(repo, refs)
    truth.volumes.pop(names[0])
    assert pruned.deleted_packs == 1 and not pruned.repacked_bytes, "the old pack went in favour of its twin"
    left = store.after_power_cut()
    check_sound(left, fresh_host(tmp_path / "fresh"), truth, tmp_path)
    check_rescue(left.objects(), truth, tmp_path)
